// Fuzz target: what the CUDA twin wrote for a film, as any bytes.  Reading it throws NotFinite or
// std::invalid_argument, or ends; a GPU that fell over must not take its host with it.
#include <vector>

#include "ops/aggregate_result.hpp"
#include "tests/fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace ptxsdk;
    fuzz::Bytes bytes(data, size);
    const int rows = bytes.within(0, 12), columns = bytes.within(0, 12);
    FilmGeometry film{bytes.within(0, 500), bytes.within(0, 500), 0, 0, columns, rows};
    if (bytes.flag())
        film = {bytes.within(0, 9),   bytes.within(0, 9),   bytes.within(-1, 13),
                bytes.within(-1, 13), bytes.within(-1, 13), bytes.within(-1, 13)};
    std::vector<float> mask(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
    for (float& z : mask) z = bytes.flag() ? 2.0F : -2.0F;
    const bool with_map = bytes.flag();
    const int records = bytes.within(0, 6);
    cuda::AggregateResult result{};
    result.flags = bytes.within(0, 9) == 0 ? bytes.take<std::uint32_t>() : 0;
    result.regions = static_cast<std::uint32_t>(bytes.within(0, 9));
    bytes.fill(&result.score, sizeof result.score);
    for (int i = 0; i < records; ++i) {
        cuda::RegionRecord& record = result.records[i];
        bytes.fill(&record, sizeof record);
        if (bytes.flag()) {  // nearly right
            record.first = static_cast<std::uint32_t>(bytes.within(0, 150));
            record.peak = cuda::peak_key(2.0F, static_cast<std::uint32_t>(bytes.within(0, 150)));
            record.area = static_cast<std::uint32_t>(bytes.within(0, 150));
            record.x0 = bytes.within(-1, 13);
            record.y0 = bytes.within(-1, 13);
            record.x1 = bytes.within(-1, 13);
            record.y1 = bytes.within(-1, 13);
        }
    }
    const std::size_t length = offsetof(cuda::AggregateResult, records) +
                               static_cast<std::size_t>(records) * sizeof(cuda::RegionRecord);
    const MaskLogits map{with_map ? std::span<const float>(mask) : std::span<const float>(), rows, columns};
    const double low = bytes.flag() ? 0.5 : bytes.take<double>();
    try {
        cuda::read_result({reinterpret_cast<const std::byte*>(&result), length}, film, map,
                          ScoreMethod::noisy_or, low);
    } catch (const NotFinite&) {
    } catch (const std::invalid_argument&) {
    }
    return 0;
}
