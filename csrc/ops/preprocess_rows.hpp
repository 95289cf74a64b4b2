// The two inner loops of preprocess, as a table of functions per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/preprocess_ramp.hpp"

namespace ptxsdk {

// The columns that each target pixel covers: `width` weights from column `first[j]` on, the last of them
// zero.  The width is the same for all and a multiple of kLanes, so that the loop over it neither branches on
// data nor has a tail.
constexpr std::size_t kLanes = 8;

struct Taps {
    std::vector<std::int32_t> first;
    std::vector<float> weights;  // width of them for every target pixel
    std::size_t width = 0;
};

struct RowKernels {
    // sums[i] += weight * clamp(source[i] - base, low, high); `fresh` sets instead of adding.
    void (*ramp_u8)(const std::uint8_t*, std::size_t, float weight, const Ramp&, bool fresh, float* sums);
    void (*ramp_u16)(const std::uint16_t*, std::size_t, float weight, const Ramp&, bool fresh, float* sums);
    void (*ramp_i16)(const std::int16_t*, std::size_t, float weight, const Ramp&, bool fresh, float* sums);
    // Returns false when a value is not finite.
    bool (*ramp_f32)(const float*, std::size_t, float weight, const Ramp&, bool fresh, float* sums);
    // out[j] = the weighted sum of `sums` over the taps of j; sums holds taps.width more zeros than there are
    // columns.
    void (*gather)(const float* sums, const Taps& taps, float* out);
};

extern const RowKernels rows_baseline;
#if defined(__x86_64__)
extern const RowKernels rows_x86_64_v3;
#endif

}  // namespace ptxsdk
