// Copies and waiting, through the CUDA runtime.
#include <chrono>
#include <thread>

#include "ops/cuda_check.hpp"

namespace ptxsdk::cuda {

void copy(std::byte* to, const std::byte* from, std::size_t size, Stream stream) {
    check(cudaMemcpyAsync(to, from, size, cudaMemcpyDefault, static_cast<cudaStream_t>(stream)), "copy");
}

void zero(std::byte* to, std::size_t size, Stream stream) {
    check(cudaMemsetAsync(to, 0, size, static_cast<cudaStream_t>(stream)), "zero");
}

bool wait(Stream stream, double seconds) {
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    const auto end = begin + std::chrono::duration<double>(seconds);
    for (;;) {
        const cudaError_t status = cudaStreamQuery(static_cast<cudaStream_t>(stream));
        if (status != cudaErrorNotReady) {
            check(status, "wait");
            return true;
        }
        const auto now = Clock::now();
        if (now > end) return false;
        // At first without pause, for the latency; a network that takes longer leaves the core to others.
        if (now - begin > std::chrono::milliseconds(2))
            std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
}

}  // namespace ptxsdk::cuda
