// What the CUDA twin of aggregate writes for one film, and how the host reads it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "ops/aggregate.hpp"
#include "ops/device.hpp"

namespace ptxsdk::cuda {

constexpr int kMostRegions = 1024;  // of one film; with more the result says so

struct RegionRecord {
    std::uint32_t area;
    std::uint32_t first;  // raster index of its first pixel
    std::int32_t x0, y0, x1, y1;
    std::uint64_t twice_x, twice_y;  // sums of 2 x + 1 and 2 y + 1
    std::uint64_t peak;              // peak_key
    std::uint64_t probability;       // sum, in 2^-32
};

enum ResultFlag : std::uint32_t { patch_not_finite = 1, mask_not_finite = 2, too_many_regions = 4 };

// Of the logits scored; see aggregate.hpp.
struct Score {
    double linear;  // noisy_or: sum of max(z, 0)
    double rest;    // noisy_or: sum of log1p(exp(-|z|)); paper_098: sum of log1p(-0.02 sigma(z))
    float top;      // max z
    float sum_exp;  // sum of exp(z - top)
};

struct AggregateResult {
    Score score;
    double top_k;  // mean of the k largest; that method only
    std::uint32_t flags;
    std::uint32_t regions;
    RegionRecord records[kMostRegions];
};

// Order of floats as order of integers; -0 counts as 0.
PTXSDK_HD inline std::uint32_t ordered(float z) {
    const auto bits = std::bit_cast<std::uint32_t>(z + 0.0f);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
PTXSDK_HD inline float unordered(std::uint32_t key) {
    return std::bit_cast<float>((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// The larger logit wins, then the earlier pixel.
PTXSDK_HD inline std::uint64_t peak_key(float z, std::uint32_t pixel) {
    return std::uint64_t{ordered(z)} << 32 | (~pixel & 0xffffffffu);
}
PTXSDK_HD inline float peak_logit(std::uint64_t key) {
    return unordered(static_cast<std::uint32_t>(key >> 32));
}
PTXSDK_HD inline std::uint32_t peak_pixel(std::uint64_t key) { return ~static_cast<std::uint32_t>(key); }

// Image logit and regions of a result, whose last records may be missing from `bytes`; outlines if the map's
// values are there.  None if more regions were found than records are there.  Throws NotFinite.
std::optional<Aggregation> read_result(std::span<const std::byte> bytes, const FilmGeometry& film,
                                       const MaskLogits& mask, ScoreMethod method, double low);

}  // namespace ptxsdk::cuda
