// What the CPU and the CUDA twin of aggregate share: from sums over the map to regions in the film's pixels.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "ops/aggregate.hpp"

namespace ptxsdk {

// Sums over the map pixels of one region.
struct Moments {
    std::int64_t area = 0;
    std::int32_t first_x = 0;  // the first pixel in raster order
    std::int32_t first_y = 0;
    std::int32_t x0 = std::numeric_limits<std::int32_t>::max();
    std::int32_t y0 = 0;
    std::int32_t x1 = 0;
    std::int32_t y1 = 0;
    double twice_x = 0;  // sum of 2 x + 1, an integer
    double twice_y = 0;
    float peak = -std::numeric_limits<float>::infinity();
    std::int32_t peak_x = 0;
    std::int32_t peak_y = 0;
    double probability = 0;
};

// The region without its outline.
MapRegion describe(const Moments& moments, const FilmGeometry& film);

// The outline of the region whose first pixel in raster order is (first_x, first_y); low as a logit.
std::vector<Point> trace_outline(const MaskLogits& mask, const FilmGeometry& film, float low,
                                 std::int64_t first_x, std::int64_t first_y);

// Throws std::invalid_argument for sizes and parameters out of range.
void check_aggregate(std::int64_t patches, std::int64_t rows, std::int64_t columns, const FilmGeometry& film,
                     const AggregateParameters& parameters);

}  // namespace ptxsdk
