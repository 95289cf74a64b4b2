// What the CPU and the CUDA twin of preprocess share: the split of the source among target pixels, the linear
// window in float32, half precision.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "ops/device.hpp"
#include "ops/preprocess.hpp"
#include "ops/preprocess_ramp.hpp"

namespace ptxsdk {

constexpr std::size_t size_of(StoredType type) {
    return type == StoredType::u8 ? 1 : type == StoredType::f32 ? 4 : 2;
}

Ramp make_ramp(StoredType type, double low, double high);

// The source rows or columns that one target pixel covers: `first` with weight `first_weight`, then `whole`
// more, then one with weight `last_weight` (zero: there is none).
struct Span {
    std::int32_t first, whole;
    float first_weight, last_weight;

    PTXSDK_HD std::int32_t count() const { return 1 + whole + (last_weight > 0 ? 1 : 0); }
    PTXSDK_HD float weight(std::int32_t k) const {
        return k == 0 ? first_weight : k <= whole ? 1.0f : last_weight;
    }
};

// Part j of [0, source) split into `count` equal parts; exact integer arithmetic, weights in source pixels.
// The CUDA twin finds the same without a division (span_of).
inline Span make_span(std::uint64_t j, std::uint64_t source, std::uint64_t count) {
    const std::uint64_t begin = j * source, end = begin + source;  // in units of 1 / count source pixels
    const std::uint64_t first = begin / count, last = (end - 1) / count;
    const float whole_pixel = static_cast<float>(count);
    if (first == last)
        return {static_cast<std::int32_t>(first), 0, static_cast<float>(source) / whole_pixel, 0};
    return {static_cast<std::int32_t>(first), static_cast<std::int32_t>(last - first - 1),
            static_cast<float>((first + 1) * count - begin) / whole_pixel,
            static_cast<float>(end - last * count) / whole_pixel};
}

// 1 / the area, in source pixels, that one target pixel of the content covers.
inline float inverse_area(int rows, int columns, const Content& content) {
    return static_cast<float>(static_cast<double>(content.x1 - content.x0) * (content.y1 - content.y0) /
                              (static_cast<double>(columns) * rows));
}

// IEEE binary16, round to nearest even.
PTXSDK_HD inline std::uint16_t to_half(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x47800000u)  // too large, infinite or NaN
        return static_cast<std::uint16_t>(sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u));
    if (magnitude < 0x38800000u) {  // subnormal: let the FPU round
        const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
        return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
    }
    const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
    return static_cast<std::uint16_t>(sign | (rounded >> 13));
}

// Throws std::invalid_argument for an empty film, a content outside the target, or parameters that contradict
// each other.
void check_preprocess(StoredType type, int rows, int columns, int target_rows, int target_columns,
                      const Content& content, const PreprocessParameters& parameters);

}  // namespace ptxsdk
