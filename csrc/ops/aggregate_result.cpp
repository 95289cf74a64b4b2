// aggregate: reading what the CUDA twin wrote.
#include "ops/aggregate_result.hpp"

#include <cmath>
#include <cstring>

#include "ops/aggregate_regions.hpp"

namespace ptxsdk::cuda {
namespace {

double image_logit(const AggregateResult& result, ScoreMethod method) {
    const Score& score = result.score;
    if (method == ScoreMethod::max) return score.top;
    if (method == ScoreMethod::top_k) return result.top_k;
    const bool noisy_or = method == ScoreMethod::noisy_or;
    const double s = noisy_or ? -(score.linear + score.rest) : score.rest;
    // Where s is tiny, 1 - exp(s) is the (weighted) sum of exp z to more digits than float32 has, and s may
    // underflow.
    if (s > -1e-8)
        return (noisy_or ? 0.0 : std::log(0.02)) + score.top + std::log(static_cast<double>(score.sum_exp));
    return std::log(-std::expm1(s)) - s;
}

Moments moments_of(const RegionRecord& record, std::int64_t columns) {
    const auto x_of = [columns](std::uint32_t pixel) { return static_cast<std::int32_t>(pixel % columns); };
    const auto y_of = [columns](std::uint32_t pixel) { return static_cast<std::int32_t>(pixel / columns); };
    const std::uint32_t peak = peak_pixel(record.peak);
    return {.area = record.area,
            .first_x = x_of(record.first),
            .first_y = y_of(record.first),
            .x0 = record.x0,
            .y0 = record.y0,
            .x1 = record.x1,
            .y1 = record.y1,
            .twice_x = static_cast<double>(record.twice_x),
            .twice_y = static_cast<double>(record.twice_y),
            .peak = peak_logit(record.peak),
            .peak_x = x_of(peak),
            .peak_y = y_of(peak),
            .probability = static_cast<double>(record.probability) / 4294967296.0};
}

// A device that fell over leaves anything behind: nothing is computed from a record outside the film.
void check_record(const RegionRecord& record, const FilmGeometry& film, std::int64_t columns) {
    const auto in_content = [&](std::int64_t pixel) {
        const std::int64_t x = pixel % columns, y = pixel / columns;
        return x >= film.x0 && x < film.x1 && y >= film.y0 && y < film.y1;
    };
    const bool sound = record.area > 0 && in_content(record.first) && in_content(peak_pixel(record.peak)) &&
                       film.x0 <= record.x0 && record.x0 < record.x1 && record.x1 <= film.x1 &&
                       film.y0 <= record.y0 && record.y0 < record.y1 && record.y1 <= film.y1;
    if (!sound) throw std::invalid_argument("a region of the device's lies outside the film");
}

}  // namespace

std::optional<Aggregation> read_result(std::span<const std::byte> bytes, const FilmGeometry& film,
                                       const MaskLogits& mask, ScoreMethod method, double low) {
    AggregateResult result{};
    constexpr std::size_t head = offsetof(AggregateResult, records);
    if (bytes.size() < head || bytes.size() > sizeof result) throw std::invalid_argument("not a result");
    std::memcpy(&result, bytes.data(), bytes.size());
    if ((result.flags & patch_not_finite) != 0) throw NotFinite("the patch logits hold NaN or infinity");
    if ((result.flags & mask_not_finite) != 0) throw NotFinite("the mask logits hold NaN or infinity");
    if ((result.flags & too_many_regions) != 0 || head + result.regions * sizeof(RegionRecord) > bytes.size())
        return std::nullopt;
    check_aggregate(1, mask.rows, mask.columns, film, {.high = low, .low = low});
    Aggregation found;
    found.logit = image_logit(result, method);
    for (std::uint32_t i = 0; i < result.regions; ++i) {
        check_record(result.records[i], film, mask.columns);
        const Moments moments = moments_of(result.records[i], mask.columns);
        found.regions.push_back(describe(moments, film));
        if (!mask.values.empty())
            found.regions.back().outline =
                trace_outline(mask, film, logit_threshold(low), moments.first_x, moments.first_y);
    }
    return found;
}

}  // namespace ptxsdk::cuda
