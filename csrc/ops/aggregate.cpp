// aggregate, CPU: scores in double, run-based union-find labelling, crack-following outlines.
#include "ops/aggregate.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <string>

#include "ops/aggregate_regions.hpp"

namespace ptxsdk {
namespace {

// A window of equally long rows.
struct Rows {
    const float* data;
    std::ptrdiff_t stride;
    std::int64_t count;
    std::size_t columns;

    std::span<const float> operator[](std::int64_t row) const { return {data + row * stride, columns}; }

    template <typename Visit>
    void for_each(Visit visit) const {
        for (std::int64_t row = 0; row < count; ++row) {
            for (const float z : (*this)[row]) visit(z);
        }
    }
};

void check_finite(std::span<const float> logits, const char* name) {
    int broken = 0;  // not bool: so that the loop vectorizes
    for (const float z : logits) broken |= !is_finite(z);
    if (broken != 0) throw NotFinite(std::string("the ") + name + " logits hold NaN or infinity");
}

// ---- image logit
// ----------------------------------------------------------------------------------------------------

// Logits and probabilities of this many factors are multiplied before a logarithm is taken; 2^64 is far from
// overflow.
constexpr int factors_per_log = 64;

// log of the product of (1 + e), e in [0, 1], kept as the product less one: only positive terms, so nothing
// cancels however small every e is.
class LogProduct {
  public:
    void multiply(double e) {
        excess_ += e * (1 + excess_);
        if (++factors_ == factors_per_log) flush();
    }
    double value() {
        flush();
        return log_;
    }

  private:
    void flush() {
        log_ += std::log1p(excess_);
        excess_ = 0;
        factors_ = 0;
    }

    double log_ = 0;
    double excess_ = 0;
    int factors_ = 0;
};

// log of the product of (1 - a), a in [0, 0.02], kept as one less the product.
class LogShrinkage {
  public:
    void multiply(double a) {
        deficit_ += a * (1 - deficit_);
        if (++factors_ == factors_per_log) flush();
    }
    double value() {
        flush();
        return log_;
    }

  private:
    void flush() {
        log_ += std::log1p(-deficit_);
        deficit_ = 0;
        factors_ = 0;
    }

    double log_ = 0;
    double deficit_ = 0;
    int factors_ = 0;
};

double sum_log_noisy_or(const Rows& logits) {
    double linear = 0;
    LogProduct rest;
    logits.for_each([&](double z) {
        linear += std::max(z, 0.0);
        rest.multiply(std::exp(-std::fabs(z)));
    });
    return -(linear + rest.value());
}

double sum_log_paper_098(const Rows& logits) {
    LogShrinkage product;
    logits.for_each([&](double z) {
        const double e = std::exp(-std::fabs(z));
        product.multiply(0.02 * (z < 0 ? e : 1.0) / (1 + e));
    });
    return product.value();
}

float largest(const Rows& logits) {
    float best = -std::numeric_limits<float>::infinity();
    logits.for_each([&](float z) { best = std::max(best, z); });
    return best;
}

// log sum exp z: the logit of both products where s itself would underflow, as 1 - exp(s) is then -s.
double log_sum_exp(const Rows& logits) {
    const double top = largest(logits);
    double sum = 0;
    logits.for_each([&](double z) { sum += std::exp(z - top); });
    return top + std::log(sum);
}

double mean_of_largest(const Rows& logits, std::int64_t k) {
    std::vector<float> values;
    values.reserve(static_cast<std::size_t>(logits.count) * logits.columns);
    for (std::int64_t row = 0; row < logits.count; ++row) {
        values.insert(values.end(), logits[row].begin(), logits[row].end());
    }
    k = std::min(k, static_cast<std::int64_t>(values.size()));
    std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<>());
    return std::accumulate(values.begin(), values.begin() + k, 0.0) / static_cast<double>(k);
}

double image_logit(const Rows& logits, const AggregateParameters& parameters) {
    constexpr double underflow = -1e-290;
    double s = 0;
    double weight = 0;
    switch (parameters.method) {
        case ScoreMethod::max:
            return largest(logits);
        case ScoreMethod::top_k:
            return mean_of_largest(logits, parameters.k);
        case ScoreMethod::noisy_or:
            s = sum_log_noisy_or(logits);
            break;
        case ScoreMethod::paper_098:
            s = sum_log_paper_098(logits);
            weight = std::log(0.02);
            break;
    }
    return s > underflow ? weight + log_sum_exp(logits) : std::log(-std::expm1(s)) - s;
}

// ---- regions
// --------------------------------------------------------------------------------------------------------

// Pixels [begin, end) of one row at or above `low`.  `parent` leads to the first run of the component.
struct Run {
    std::int32_t row;
    std::int32_t begin;
    std::int32_t end;
    std::uint32_t parent;
    bool strong;
};

// What is known of one component, at the index of its first run.
struct Component {
    std::int64_t area = 0;
    bool strong = false;
    std::int32_t region = -1;  // index in raster order of those kept
};

constexpr std::ptrdiff_t word_bits = 64;

// Bit i: z[i] >= threshold, for count <= 64 pixels.
std::uint64_t bits_at_least(const float* z, std::ptrdiff_t count, float threshold) {
    std::array<std::uint8_t, word_bits> flags{};
    if (count == word_bits) {
        for (std::ptrdiff_t i = 0; i < word_bits; ++i) flags[static_cast<std::size_t>(i)] = z[i] >= threshold;
    } else {
        for (std::ptrdiff_t i = 0; i < count; ++i) flags[static_cast<std::size_t>(i)] = z[i] >= threshold;
    }
    std::uint64_t bits = 0;
    for (std::size_t byte = 0; byte < 8; ++byte) {
        std::uint64_t eight = 0;
        std::memcpy(&eight, &flags[8 * byte], 8);
        bits |= ((eight * 0x0102040810204080) >> 56) << (8 * byte);  // the low bit of each byte, side by side
    }
    return bits;
}

// Largest of z and, over all of it, the sum of sigma(z).
struct RunSummary {
    float peak;
    double probability;
};

RunSummary summarize(std::span<const float> z) {
    constexpr std::size_t lanes = 8;  // independent sums, so the loops vectorize
    constexpr std::size_t chunk = 64;
    float peak = z[0];
    double sum = 0;
    std::size_t i = 0;
    if (z.size() >= chunk) {
        std::array<float, lanes> peaks;
        peaks.fill(peak);
        std::array<double, lanes> sums{};
        std::array<float, chunk> probability;
        for (; i + chunk <= z.size(); i += chunk) {
            for (std::size_t j = 0; j < chunk; ++j) probability[j] = sigmoid(z[i + j]);
            for (std::size_t j = 0; j < chunk; j += lanes) {
                for (std::size_t lane = 0; lane < lanes; ++lane) {
                    peaks[lane] = z[i + j + lane] > peaks[lane] ? z[i + j + lane] : peaks[lane];
                    sums[lane] += probability[j + lane];
                }
            }
        }
        peak = *std::max_element(peaks.begin(), peaks.end());
        sum = std::accumulate(sums.begin(), sums.end(), 0.0);
    }
    for (; i < z.size(); ++i) {
        peak = std::max(peak, z[i]);
        sum += sigmoid(z[i]);
    }
    return {peak, sum};
}

class Labelling {
  public:
    Labelling(const MaskLogits& mask, const FilmGeometry& film, const AggregateParameters& parameters)
        : mask_(mask),
          film_(film),
          parameters_(parameters),
          low_(logit_threshold(parameters.low)),
          high_(logit_threshold(parameters.high)) {}

    std::vector<MapRegion> regions() {
        std::size_t above = 0;  // runs [above, here) are those of the row above
        std::size_t here = 0;
        for (std::int64_t row = 0; row < mask_.rows; ++row) {
            check_finite(row_of(row), "mask");
            if (row < film_.y0 || row >= film_.y1) continue;
            append_runs(static_cast<std::int32_t>(row));
            join(above, here);
            above = here;
            here = runs_.size();
        }
        return describe(keep());
    }

  private:
    std::span<const float> row_of(std::int64_t row) const {
        return mask_.values.subspan(static_cast<std::size_t>(row * mask_.columns),
                                    static_cast<std::size_t>(mask_.columns));
    }

    void append_runs(std::int32_t row) {
        const float* z = row_of(row).data();
        const std::size_t here = runs_.size();
        for (std::int64_t start = film_.x0; start < film_.x1; start += word_bits) {
            const std::ptrdiff_t count = std::min<std::ptrdiff_t>(word_bits, film_.x1 - start);
            std::uint64_t rest = bits_at_least(z + start, count, low_);
            if (rest == 0) continue;
            const std::uint64_t strong_bits = bits_at_least(z + start, count, high_);
            while (rest != 0) {
                const int offset = std::countr_zero(rest);
                const int length = std::countr_one(rest >> offset);
                const std::uint64_t segment = (~std::uint64_t{0} >> (word_bits - length)) << offset;
                const auto begin = static_cast<std::int32_t>(start + offset);
                const bool strong = (strong_bits & segment) != 0;
                if (runs_.size() > here && runs_.back().end == begin) {  // goes on from the word before
                    runs_.back().end = begin + length;
                    runs_.back().strong |= strong;
                } else {
                    runs_.push_back(
                        {row, begin, begin + length, static_cast<std::uint32_t>(runs_.size()), strong});
                }
                rest &= ~segment;
            }
        }
    }

    std::uint32_t root(std::uint32_t run) {
        while (runs_[run].parent != run) run = runs_[run].parent = runs_[runs_[run].parent].parent;
        return run;
    }

    // Unites the runs of the newest row, [here, end), with those of the row above that they touch, corners
    // included.
    void join(std::size_t above, std::size_t here) {
        for (std::size_t run = here; run < runs_.size(); ++run) {
            while (above < here && runs_[above].end < runs_[run].begin) ++above;
            for (std::size_t other = above; other < here && runs_[other].begin <= runs_[run].end; ++other) {
                const std::uint32_t a = root(static_cast<std::uint32_t>(run));
                const std::uint32_t b = root(static_cast<std::uint32_t>(other));
                runs_[std::max(a, b)].parent = std::min(a, b);
            }
        }
    }

    // Flattens the forest and returns the components that are regions, in raster order.
    std::vector<Moments> keep() {
        std::vector<Component> components(runs_.size());
        for (Run& run : runs_) {
            run.parent = runs_[run.parent].parent;  // parents come first and are flat already
            components[run.parent].area += run.end - run.begin;
            components[run.parent].strong |= run.strong;
        }
        std::vector<Moments> kept;
        for (std::uint32_t run = 0; run < runs_.size(); ++run) {
            Component& component = components[run];
            if (component.strong && component.area >= parameters_.min_area) {
                component.region = static_cast<std::int32_t>(kept.size());
                kept.push_back(
                    {.area = component.area, .first_x = runs_[run].begin, .first_y = runs_[run].row});
            }
        }
        if (!kept.empty()) {
            for (const Run& run : runs_) {
                const std::int32_t region = components[run.parent].region;
                if (region >= 0) accumulate(run, kept[static_cast<std::size_t>(region)]);
            }
        }
        return kept;
    }

    void accumulate(const Run& run, Moments& moments) const {
        if (moments.y1 == 0) moments.y0 = run.row;
        moments.y1 = run.row + 1;
        moments.x0 = std::min(moments.x0, run.begin);
        moments.x1 = std::max(moments.x1, run.end);
        const double length = run.end - run.begin;
        moments.twice_x += length * (static_cast<double>(run.begin) + run.end);
        moments.twice_y += length * (2.0 * run.row + 1);
        const auto z =
            row_of(run.row).subspan(static_cast<std::size_t>(run.begin), static_cast<std::size_t>(length));
        const RunSummary summary = summarize(z);
        moments.probability += summary.probability;
        if (summary.peak > moments.peak) {
            moments.peak = summary.peak;
            moments.peak_x = run.begin + static_cast<std::int32_t>(
                                             std::find(z.begin(), z.end(), summary.peak) - z.begin());
            moments.peak_y = run.row;
        }
    }

    std::vector<MapRegion> describe(std::vector<Moments> kept) const {
        std::stable_sort(kept.begin(), kept.end(),
                         [](const Moments& a, const Moments& b) { return a.area > b.area; });
        std::vector<MapRegion> regions;
        regions.reserve(kept.size());
        for (const Moments& moments : kept) {
            regions.push_back(ptxsdk::describe(moments, film_));
            if (parameters_.want_outlines)
                regions.back().outline = trace_outline(mask_, film_, low_, moments.first_x, moments.first_y);
        }
        return regions;
    }

    const MaskLogits& mask_;
    const FilmGeometry& film_;
    const AggregateParameters& parameters_;
    float low_;
    float high_;
    std::vector<Run> runs_;
};

void require(bool holds, const char* message) {
    if (!holds) throw std::invalid_argument(message);
}

Point to_source(const FilmGeometry& film, double x, double y) {
    return {(x - static_cast<double>(film.x0)) * static_cast<double>(film.source_columns) /
                static_cast<double>(film.x1 - film.x0),
            (y - static_cast<double>(film.y0)) * static_cast<double>(film.source_rows) /
                static_cast<double>(film.y1 - film.y0)};
}

}  // namespace

void check_aggregate(std::int64_t patches, std::int64_t rows, std::int64_t columns, const FilmGeometry& film,
                     const AggregateParameters& parameters) {
    constexpr std::int64_t longest = std::numeric_limits<std::int32_t>::max() - 1;
    require(patches >= 1, "there are no patch logits");
    require(rows >= 1 && columns >= 1, "there are no mask logits");
    require(rows <= longest && columns <= longest, "the mask is too large");
    require(film.source_rows >= 1 && film.source_rows <= longest && film.source_columns >= 1 &&
                film.source_columns <= longest,
            "the geometry's source has an impossible size");
    require(0 <= film.x0 && film.x0 < film.x1 && film.x1 <= columns && 0 <= film.y0 && film.y0 < film.y1 &&
                film.y1 <= rows,
            "the geometry's content is empty or leaves the mask");
    require(0 < parameters.low && parameters.low <= parameters.high && parameters.high < 1,
            "thresholds must satisfy 0 < low <= high < 1");
    require(parameters.min_area >= 0, "min_area must not be negative");
    require(parameters.k >= 1, "k must be at least 1");
}

MapRegion describe(const Moments& moments, const FilmGeometry& film) {
    const std::int64_t width = film.x1 - film.x0;
    const std::int64_t height = film.y1 - film.y0;
    const auto area = static_cast<double>(moments.area);
    const auto below = [](std::int64_t offset, std::int64_t source, std::int64_t content) {
        return offset * source / content;
    };
    const auto above = [](std::int64_t offset, std::int64_t source, std::int64_t content) {
        return (offset * source + content - 1) / content;
    };
    MapRegion region;
    region.x0 = below(moments.x0 - film.x0, film.source_columns, width);
    region.y0 = below(moments.y0 - film.y0, film.source_rows, height);
    region.x1 = above(moments.x1 - film.x0, film.source_columns, width);
    region.y1 = above(moments.y1 - film.y0, film.source_rows, height);
    region.area_px = area * static_cast<double>(film.source_columns) * static_cast<double>(film.source_rows) /
                     (static_cast<double>(width) * static_cast<double>(height));
    region.centroid = to_source(film, moments.twice_x / (2 * area), moments.twice_y / (2 * area));
    region.peak = to_source(film, moments.peak_x + 0.5, moments.peak_y + 0.5);
    region.probability = sigmoid(moments.peak);
    region.mean_probability = std::min<double>(moments.probability / area, region.probability);
    return region;
}

// Follows the cracks between pixels with the region on the right, from the upper left corner of its first
// pixel in raster order, which is always a convex corner of the outer boundary.  No label is needed: pixels
// of another component never share a corner with this one.
std::vector<Point> trace_outline(const MaskLogits& mask, const FilmGeometry& film, float low,
                                 std::int64_t first_x, std::int64_t first_y) {
    struct Step {
        int dx, dy;          // of the corner
        int left_x, left_y;  // pixel ahead on the left, relative to the corner
        int right_x, right_y;
    };
    static constexpr std::array<Step, 4> steps{{
        {1, 0, 0, -1, 0, 0},     // east
        {0, 1, 0, 0, -1, 0},     // south
        {-1, 0, -1, 0, -1, -1},  // west
        {0, -1, -1, -1, 0, -1},  // north
    }};
    const auto inside = [&](std::int64_t x, std::int64_t y) {
        return x >= film.x0 && x < film.x1 && y >= film.y0 && y < film.y1 &&
               mask.values[static_cast<std::size_t>(y * mask.columns + x)] >= low;
    };
    const auto corner = [&film](std::int64_t x, std::int64_t y) {
        return to_source(film, static_cast<double>(x), static_cast<double>(y));
    };
    // The first pixel of a region has none of it to its left or above: its upper left corner is on the
    // outline.
    require(inside(first_x, first_y) && !inside(first_x - 1, first_y) && !inside(first_x, first_y - 1),
            "this is not the first pixel of a region");
    std::vector<Point> outline{corner(first_x, first_y)};
    std::int64_t x = first_x + 1;
    std::int64_t y = first_y;
    std::size_t heading = 0;
    while (x != first_x || y != first_y) {
        const Step& ahead = steps[heading];
        const std::size_t before = heading;
        if (inside(x + ahead.left_x, y + ahead.left_y)) {
            heading = (heading + 3) % 4;  // also across a corner: the region is 8-connected
        } else if (!inside(x + ahead.right_x, y + ahead.right_y)) {
            heading = (heading + 1) % 4;
        }
        if (heading != before) outline.push_back(corner(x, y));
        x += steps[heading].dx;
        y += steps[heading].dy;
    }
    return outline;
}

Aggregation aggregate(std::span<const float> patch_logits, const MaskLogits& mask, const FilmGeometry& film,
                      const AggregateParameters& parameters) {
    check_aggregate(static_cast<std::int64_t>(patch_logits.size()), mask.rows, mask.columns, film,
                    parameters);
    require(
        mask.values.size() == static_cast<std::size_t>(mask.rows) * static_cast<std::size_t>(mask.columns),
        "the mask has not rows * columns logits");
    check_finite(patch_logits, "patch");
    Aggregation result;
    result.regions = Labelling(mask, film, parameters).regions();
    if (parameters.source == ScoreSource::patch) {
        result.logit = image_logit({patch_logits.data(), 0, 1, patch_logits.size()}, parameters);
    } else {
        const auto stride = static_cast<std::ptrdiff_t>(mask.columns);
        const float* first = mask.values.data() + film.y0 * stride + film.x0;
        result.logit = image_logit(
            {first, stride, film.y1 - film.y0, static_cast<std::size_t>(film.x1 - film.x0)}, parameters);
    }
    return result;
}

void mask_probability(std::span<const float> logits, std::span<float> probability) {
    require(logits.size() == probability.size(), "logits and probability differ in size");
    for (std::size_t i = 0; i < logits.size(); ++i) probability[i] = sigmoid(logits[i]);
}

}  // namespace ptxsdk
