// The two inner loops of preprocess, as a table of functions per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ptxsdk {

// A linear window split for precision: value v contributes clamp(v - base, low, high), with v - base exact.
struct Ramp {
    std::int32_t base;  // integers
    float base_f;       // float32
    float low, high;
};

// The columns that one target pixel covers: `first` with weight `first_weight`, then `whole` columns, then
// one more with weight `last_weight` (zero where there is none; reading it is always safe).
struct Span {
    std::int32_t first, whole;
    float first_weight, last_weight;
};

struct RowKernels {
    // sums[i] += weight * clamp(source[i] - base, low, high); `fresh` sets instead of adding.
    void (*ramp_u8)(const std::uint8_t*, std::size_t, float weight, const Ramp&, bool fresh, float* sums);
    void (*ramp_u16)(const std::uint16_t*, std::size_t, float weight, const Ramp&, bool fresh, float* sums);
    void (*ramp_i16)(const std::int16_t*, std::size_t, float weight, const Ramp&, bool fresh, float* sums);
    // Returns false when a value is not finite.
    bool (*ramp_f32)(const float*, std::size_t, float weight, const Ramp&, bool fresh, float* sums);
    // out[j] = the weighted sum of `sums` over spans[j].
    void (*gather)(const float* sums, const Span* spans, std::size_t count, float* out);
};

extern const RowKernels rows_baseline;
#if defined(__x86_64__)
extern const RowKernels rows_x86_64_v3;
extern const RowKernels rows_x86_64_v4;
#endif

}  // namespace ptxsdk
