// preprocess, CUDA twin: the launch.
#include "ops/cuda_check.hpp"
#include "ops/preprocess_block.hpp"

namespace ptxsdk::cuda {

// Not in an unnamed namespace: nvcc would name that after the folder it works in.
__global__ void __launch_bounds__(kPreprocessThreads, 6)
    preprocess_kernel(const Film* films, PreprocessTarget target) {
    extern __shared__ __align__(16) std::byte shared[];
    const auto index = static_cast<std::int32_t>(blockIdx.z);
    const Film film = films[index];
    preprocess_block(DeviceBlock{shared}, film, target, static_cast<std::int32_t>(blockIdx.x),
                     static_cast<std::int32_t>(blockIdx.y), index);
}

void preprocess(const Film* films, int count, int widest_tile, const PreprocessTarget& target,
                Stream stream) {
    const dim3 grid(static_cast<unsigned>((target.columns + kTileColumns - 1) / kTileColumns),
                    static_cast<unsigned>((target.rows + kTileRows - 1) / kTileRows),
                    static_cast<unsigned>(count));
    preprocess_kernel<<<grid, kPreprocessThreads, preprocess_shared_bytes(widest_tile),
                        static_cast<cudaStream_t>(stream)>>>(films, target);
    check(cudaGetLastError(), "preprocess");
}

}  // namespace ptxsdk::cuda
