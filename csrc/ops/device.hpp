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

// Four of the eight bytes of low and high, numbered 0 to 7 from the lowest: one a hexadecimal digit of
// `selector`, the lowest first.
PTXSDK_HD inline std::uint32_t permute_bytes(std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
#if defined(__CUDA_ARCH__)
    return __byte_perm(low, high, selector);
#else
    const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
    std::uint32_t picked = 0;
    for (int i = 0; i < 4; ++i)
        picked |= static_cast<std::uint32_t>(bytes >> (8 * ((selector >> (4 * i)) & 7)) & 0xff) << (8 * i);
    return picked;
#endif
}

// The lower word of high and low, shifted right by fewer than 32 bits.
PTXSDK_HD inline std::uint32_t funnel_shift(std::uint32_t low, std::uint32_t high, int bits) {
#if defined(__CUDA_ARCH__)
    return __funnelshift_r(low, high, static_cast<unsigned>(bits));
#else
    return static_cast<std::uint32_t>((std::uint64_t{high} << 32 | low) >> bits);
#endif
}

// Held in [0, 1]; NaN becomes 0.
PTXSDK_HD inline float saturated(float value) {
#if defined(__CUDA_ARCH__)
    return __saturatef(value);
#else
    return value > 0.0f ? (value < 1.0f ? value : 1.0f) : 0.0f;
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
