// Code that runs on the host and on a CUDA device.
#pragma once

#include <bit>
#include <cstdint>

// PTXSDK_HD: for host and device.  PTXSDK_DEVICE: for the device, and for the host where no CUDA compiler is
// at work. PTXSDK_UNROLL(n): unroll the loop that follows on the device.
#if defined(__CUDACC__)
#define PTXSDK_HD __host__ __device__
#define PTXSDK_DEVICE __device__
#define PTXSDK_PRAGMA(text) _Pragma(#text)
#define PTXSDK_UNROLL(n) PTXSDK_PRAGMA(unroll n)
#else
#define PTXSDK_HD
#define PTXSDK_DEVICE
#define PTXSDK_UNROLL(n)
#endif

namespace ptxsdk {

PTXSDK_HD inline int count_bits(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __popc(bits);
#else
    return std::popcount(bits);
#endif
}

// Index of the lowest bit set; 32 if there is none.
PTXSDK_HD inline int lowest_bit(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return bits == 0 ? 32 : __ffs(static_cast<int>(bits)) - 1;
#else
    return std::countr_zero(bits);
#endif
}

}  // namespace ptxsdk
