// aggregate: from the network's logits to one image logit and to regions in the pixels of the film.
//
//   patch logits  float32, any count >= 1        z_j, one a patch of the classification head
//   mask logits   float32, rows x columns        z_i, one a pixel of the network's input, row-major
//
// Image logit, over all patches or over the content pixels of the mask, with sigma(z) = 1 / (1 + exp(-z)):
//
//   noisy_or    s = sum_j log(1 - sigma(z_j)) = -sum_j max(z_j, 0) + log1p(exp(-|z_j|))
//   paper_098   s = sum_j log(1 - 0.02 sigma(z_j))      (Li et al. 2018: p and 1 - p mapped to [0.98, 1])
//               logit = log(1 - exp(s)) - s             of the probability 1 - exp(s), for both
//   top_k       mean of the k largest z_j; k beyond the count means all
//   max         largest z_j
//
// Regions: 8-connected components of sigma(z) >= low inside the content that hold a pixel of sigma(z) >= high
// and at least min_area pixels; compared as z >= log(t / (1 - t)).  Largest first, ties by the first pixel in
// raster order.
//
// Cost: one pass over the mask, then work in proportion to the pixels at or above `low`; memory in proportion
// to their horizontal runs (top_k copies its logits once).
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

#include "ops/device.hpp"

namespace ptxsdk {

enum class ScoreMethod { noisy_or, paper_098, top_k, max };
enum class ScoreSource { patch, mask };

// The network produced NaN or infinity.
class NotFinite : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// Row-major logits of the network's input size.
struct MaskLogits {
    std::span<const float> values;
    std::int64_t rows = 0;
    std::int64_t columns = 0;
};

// Where the film lies in the network's input: ptxsdk.geometry.Geometry, without the target (it is the mask's
// size).
struct FilmGeometry {
    std::int64_t source_rows = 0;
    std::int64_t source_columns = 0;
    std::int64_t x0 = 0;  // content in the map, half-open
    std::int64_t y0 = 0;
    std::int64_t x1 = 0;
    std::int64_t y1 = 0;
};

struct AggregateParameters {
    ScoreMethod method = ScoreMethod::noisy_or;
    ScoreSource source = ScoreSource::patch;
    std::int64_t k = 1;  // top_k only
    double high = 0.5;   // 0 < low <= high < 1
    double low = 0.5;
    std::int64_t min_area = 1;  // map pixels
    bool want_outlines = true;
};

struct Point {
    double x = 0;
    double y = 0;
};

// One region.  Coordinates in pixels of the film, origin at the outer corner of its first pixel, x right, y
// down.
struct MapRegion {
    std::int64_t x0 = 0;  // half-open box of the pixels of the film that the region touches
    std::int64_t y0 = 0;
    std::int64_t x1 = 0;
    std::int64_t y1 = 0;
    double area_px = 0;     // map pixels times the area of one in pixels of the film; holes are not counted
    Point centroid;         // of the map pixels, each weighing the same
    Point peak;             // centre of the map pixel of the highest logit, the first in raster order
    float probability = 0;  // at the peak
    double mean_probability = 0;
    // Outer boundary along the edges of the map pixels, clockwise as seen, first point not repeated, no
    // collinear points; empty unless wanted.  Holes are not outlined.  Where two pixels of the region touch
    // only at a corner the boundary passes that corner twice: it may touch itself there, never cross itself.
    std::vector<Point> outline;
};

struct Aggregation {
    double logit = 0;
    std::vector<MapRegion> regions;
};

// Throws NotFinite, or std::invalid_argument for sizes and parameters out of range.
Aggregation aggregate(std::span<const float> patch_logits, const MaskLogits& mask, const FilmGeometry& film,
                      const AggregateParameters& parameters);

// probability[i] = sigmoid(logits[i]).  Throws std::invalid_argument when the sizes differ.
void mask_probability(std::span<const float> logits, std::span<float> probability);

// The smallest float z with sigma(z) >= probability, for 0 < probability < 1.
inline float logit_threshold(double probability) {
    const double exact = std::log(probability / (1 - probability));
    const float rounded = static_cast<float>(exact);
    return rounded < exact ? std::nextafter(rounded, HUGE_VALF) : rounded;
}

PTXSDK_HD inline bool is_finite(float z) {
    constexpr std::uint32_t exponent = 0x7f800000;
    return (std::bit_cast<std::uint32_t>(z) & exponent) != exponent;
}

// sigma(z) within 5e-7, relatively; the same as at 87 beyond |z| = 87; NaN stays NaN.  No calls, so loops
// over it vectorize.
//
// exp(-z) = 2^n exp(r), |r| <= log(2) / 2, exp(r) = 1 + r + r^2 (c2 + c3 r + c4 r^2 + c5 r^3) to 1.1e-7
// (minimax).
PTXSDK_HD inline float sigmoid(float z) {
    constexpr float limit = 87.0F;  // 2^n stays a normal float
    constexpr float rounder =
        12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    float x = -z;
    x = x < -limit ? -limit : x;
    x = x > limit ? limit : x;
    const float shifted = x * 1.44269504F + rounder;
    const float n = shifted - rounder;
    const float r = (x - n * 0.693359375F) + n * 2.12194440e-4F;  // x - n log 2, log 2 in two parts
    float series = 8.31247773e-3F;
    series = series * r + 4.18905504e-2F;
    series = series * r + 1.66671157e-1F;
    series = series * r + 4.99992281e-1F;
    series = series * r * r + r + 1.0F;
    const std::uint32_t exponent = std::bit_cast<std::uint32_t>(shifted)
                                   << 23;  // n, where a float has its exponent
    return 1.0F / (1.0F + std::bit_cast<float>(std::bit_cast<std::uint32_t>(series) + exponent));
}

}  // namespace ptxsdk
