// Fuzz target: aggregate with any logits, geometry and parameters.  It throws NotFinite or
// std::invalid_argument, or its regions lie in the film and its logit is finite.
#include <array>
#include <cmath>
#include <vector>

#include "ops/aggregate.hpp"
#include "tests/fuzz.hpp"

namespace {

using namespace ptxsdk;

// Few values, so that regions form; now and then any float.
float some_logit(std::uint8_t byte) {
    static constexpr std::array<float, 8> levels{-40.0F, -3.0F, -0.5F, 0.0F, 0.5F, 3.0F, 40.0F, 1e30F};
    return levels[byte % 8];
}

void check(const Aggregation& found, const FilmGeometry& film, const AggregateParameters& parameters) {
    fuzz::expect(std::isfinite(found.logit), "the logit is finite");
    for (const MapRegion& region : found.regions) {
        fuzz::expect(region.x0 >= 0 && region.x0 < region.x1 && region.x1 <= film.source_columns,
                     "x in the film");
        fuzz::expect(region.y0 >= 0 && region.y0 < region.y1 && region.y1 <= film.source_rows,
                     "y in the film");
        fuzz::expect(region.area_px > 0, "a region has an area");
        fuzz::expect(region.probability >= 0 && region.probability <= 1, "a probability");
        fuzz::expect(region.outline.empty() != parameters.want_outlines, "outlines as wanted");
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Bytes bytes(data, size);
    const int rows = bytes.within(0, 40), columns = bytes.within(0, 40), patches = bytes.within(0, 70);
    FilmGeometry film{bytes.within(1, 9000), bytes.within(1, 9000), 0, 0, columns, rows};
    if (bytes.flag())
        film = {bytes.take<std::int32_t>(), bytes.within(-1, 300), bytes.within(-1, 41),
                bytes.within(-1, 41),       bytes.within(-1, 41),  bytes.within(-1, 41)};
    AggregateParameters parameters;
    parameters.method = std::array{ScoreMethod::noisy_or, ScoreMethod::paper_098, ScoreMethod::top_k,
                                   ScoreMethod::max}[static_cast<std::size_t>(bytes.within(0, 3))];
    parameters.source = bytes.flag() ? ScoreSource::mask : ScoreSource::patch;
    parameters.k = bytes.within(-1, 90);
    parameters.low = bytes.within(-5, 1005) / 1000.0;
    parameters.high = bytes.flag() ? parameters.low : bytes.within(-5, 1005) / 1000.0;
    parameters.min_area = bytes.within(-1, 30);
    parameters.want_outlines = bytes.flag();
    const int raw_logits = bytes.within(0, 9);
    std::vector<float> patch(static_cast<std::size_t>(patches));
    std::vector<float> mask(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
    for (float& z : patch) z = some_logit(bytes.take<std::uint8_t>());
    if (raw_logits == 0) {
        bytes.fill(mask.data(), mask.size() * sizeof(float));
    } else {
        std::vector<std::uint8_t> levels(mask.size());
        bytes.fill(levels.data(), levels.size());
        for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = some_logit(levels[i]);
    }
    try {
        check(aggregate(patch, {mask, rows, columns}, film, parameters), film, parameters);
    } catch (const NotFinite&) {
        fuzz::expect(raw_logits == 0, "levels are finite");
    } catch (const std::invalid_argument&) {
    }
    return 0;
}
