// One CUDA thread block as the block algorithms see it.  They are written as phases, `each(f)`: f(thread) for
// every thread of the block, then a barrier; no thread keeps anything from one phase to the next but in
// shared memory.  So the same code runs on the device and, for tests, on the host
// (csrc/tests/host_block.hpp).
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/device.hpp"

namespace ptxsdk::cuda {

struct alignas(16) Vector16 {
    std::uint32_t words[4];
};

#if defined(__CUDACC__)

struct DeviceBlock {
    std::byte* shared;

    PTXSDK_DEVICE int threads() const { return static_cast<int>(blockDim.x); }

    template <typename Phase>
    PTXSDK_DEVICE void each(Phase phase) const {
        phase(static_cast<int>(threadIdx.x));
        __syncthreads();
    }

    // 16 bytes that no one writes during the kernel.
    PTXSDK_DEVICE static Vector16 load16(const std::byte* aligned) {
        const uint4 v = __ldg(reinterpret_cast<const uint4*>(aligned));
        return {{v.x, v.y, v.z, v.w}};
    }

    // Begins to copy an aligned word of 16 bytes that no one writes during the kernel to shared memory.
    PTXSDK_DEVICE static void copy16(std::byte* to, const std::byte* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                         static_cast<unsigned>(__cvta_generic_to_shared(to))),
                     "l"(from)
                     : "memory");
#else
        *reinterpret_cast<uint4*>(to) = __ldg(reinterpret_cast<const uint4*>(from));
#endif
    }

    // The same of a word of which only bytes [skip, size) are wanted: none beyond is read.
    PTXSDK_DEVICE static void copy16(std::byte* to, const std::byte* from, int skip, int size) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        static_cast<void>(skip);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                         static_cast<unsigned>(__cvta_generic_to_shared(to))),
                     "l"(from), "r"(size)
                     : "memory");
#else
        for (int i = skip; i < size; ++i) to[i] = from[i];
#endif
    }

    // Waits for the copies that this thread began.
    PTXSDK_DEVICE static void await_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    }

    // What other blocks may have written during the kernel, before they arrived.
    template <typename T>
    PTXSDK_DEVICE static T fresh(const T* value) {
        return __ldcg(value);
    }
    PTXSDK_DEVICE static std::uint64_t fresh(const std::uint64_t* value) {
        return __ldcg(reinterpret_cast<const unsigned long long*>(value));
    }

    // Counts this thread's block as arrived; returns how many were before it.  What the block has written, if
    // a barrier lies between, is there for whoever is counted later, and theirs before for it: release and
    // acquire hold for all that their thread has seen.  (__threadfence would be sequentially consistent,
    // which takes longer and keeps the compiler from turning other atomics into reductions.)
    PTXSDK_DEVICE static std::uint32_t arrive(std::uint32_t* counter) {
        std::uint32_t before;
        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                     : "=r"(before)
                     : "l"(__cvta_generic_to_global(counter))
                     : "memory");
        return before;
    }

    PTXSDK_DEVICE static std::uint32_t fetch_add(std::uint32_t* to, std::uint32_t value) {
        return atomicAdd(to, value);
    }
    PTXSDK_DEVICE static void add(std::uint64_t* to, std::uint64_t value) {
        atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
    }
    PTXSDK_DEVICE static void set_bits(std::uint32_t* to, std::uint32_t bits) { atomicOr(to, bits); }
    PTXSDK_DEVICE static std::uint32_t fetch_min(std::uint32_t* to, std::uint32_t value) {
        return atomicMin(to, value);
    }
    // What other threads may be changing by atomic operations.
    PTXSDK_DEVICE static std::uint32_t racing(std::uint32_t* value) { return atomicOr(value, 0); }
    PTXSDK_DEVICE static void lower(std::int32_t* to, std::int32_t value) { atomicMin(to, value); }
    PTXSDK_DEVICE static void raise(std::int32_t* to, std::int32_t value) { atomicMax(to, value); }
    PTXSDK_DEVICE static void raise(std::uint64_t* to, std::uint64_t value) {
        atomicMax(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
    }
};

#endif

}  // namespace ptxsdk::cuda
