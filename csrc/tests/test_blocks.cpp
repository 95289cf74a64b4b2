// The CUDA kernels on the host (host_block.hpp) against the CPU twins: what the sanitizers watch, a race
// among the kernels' own threads included.  Exit status 0: all held.
#include <cmath>
#include <random>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/aggregate_block.hpp"
#include "ops/aggregate_result.hpp"
#include "ops/cuda.hpp"
#include "ops/preprocess_block.hpp"
#include "tests/check.hpp"
#include "tests/host_block.hpp"

namespace {

using namespace ptxsdk;

std::mt19937 random_bits(3);

int within(int low, int high) {
    return low + static_cast<int>(random_bits() % static_cast<unsigned>(high - low + 1));
}

template <typename Stored>
void test_preprocess(StoredType type, int rows, int columns, int extra, int target_rows, int target_columns) {
    const auto pitch = static_cast<std::size_t>(columns + extra);
    std::vector<Stored> pixels(static_cast<std::size_t>(rows) * pitch - static_cast<std::size_t>(extra));
    for (Stored& pixel : pixels) pixel = static_cast<Stored>(within(0, 255));
    std::vector<float> table(65536);
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<float>(i % 256) / 255;
    const Content content{0, 1, target_columns, target_rows};
    for (const Transfer transfer : {Transfer::linear, Transfer::sigmoid, Transfer::table}) {
        if ((type == StoredType::f32 ? Transfer::table : Transfer::sigmoid) == transfer) continue;
        const PreprocessParameters parameters{.transfer = transfer,
                                              .low = 20,
                                              .high = 200,
                                              .table = table.data(),
                                              .invert = true,
                                              .mean = 0.5F,
                                              .std = 0.25F};
        const SourceImage image{reinterpret_cast<const std::byte*>(pixels.data()),
                                type,
                                rows,
                                columns,
                                static_cast<std::ptrdiff_t>(pitch * sizeof(Stored)),
                                static_cast<std::ptrdiff_t>(sizeof(Stored))};
        const auto size = static_cast<std::size_t>(target_rows) * static_cast<std::size_t>(target_columns);
        std::vector<float> wanted(size), found(2 * size), sample(2 * size);
        preprocess(image,
                   {reinterpret_cast<std::byte*>(wanted.data()), TensorType::f32, target_rows, target_columns,
                    static_cast<std::ptrdiff_t>(target_columns * sizeof(float))},
                   content, parameters);
        const std::vector<cuda::Film> films(
            2, cuda::make_film(image, content, target_rows, target_columns, parameters, 2));
        std::vector<std::uint32_t> not_finite(2);
        cuda::preprocess(films.data(), 2, static_cast<int>(cuda::tile_source_columns(columns, content)),
                         {found.data(), TensorType::f32, target_rows, target_columns, sample.data(),
                          static_cast<std::int32_t>(size), not_finite.data()},
                         nullptr);
        bool same = not_finite[0] == 0 && not_finite[1] == 0;
        for (std::size_t i = 0; i < 2 * size; ++i)
            same = same && std::abs(found[i] - wanted[i % size]) <= 1e-5F;
        check(same, "preprocess: the twins agree");
    }
}

bool same(const Aggregation& a, const Aggregation& b) {
    bool same =
        std::abs(a.logit - b.logit) <= 2e-6 * std::abs(b.logit) && a.regions.size() == b.regions.size();
    for (std::size_t i = 0; same && i < a.regions.size(); ++i) {
        const MapRegion &one = a.regions[i], &other = b.regions[i];
        same = one.x0 == other.x0 && one.y0 == other.y0 && one.x1 == other.x1 && one.y1 == other.y1 &&
               one.area_px == other.area_px && one.peak.x == other.peak.x && one.peak.y == other.peak.y;
    }
    return same;
}

// `grain`: how many neighbours share a value; 1 is noise.
void test_aggregate(int rows, int columns, int grain) {
    constexpr std::size_t films = 2, patches = 300;
    const auto size = static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns);
    std::vector<float> patch(films * patches), mask(films * size);
    for (float& z : patch) z = static_cast<float>(within(-6000, 2000)) / 1000;
    std::vector<float> grains(films * (size + 1));
    for (float& z : grains) z = static_cast<float>(within(-3000, 2000)) / 1000;
    for (std::size_t i = 0; i < mask.size(); ++i) {
        const std::size_t y = i / static_cast<std::size_t>(columns),
                          x = i % static_cast<std::size_t>(columns);
        const auto g = static_cast<std::size_t>(grain);
        mask[i] = grains[(y / g * static_cast<std::size_t>(columns) + x) / g];
    }
    const FilmGeometry geometry{3 * rows, 3 * columns, 0, 0, columns, rows};
    std::vector<cuda::Film> descriptions(films);
    for (cuda::Film& film : descriptions) film.content = {0, 0, columns, rows};
    const cuda::ScratchLayout layout(rows, columns);
    std::vector<cuda::Vector16> scratch(films * layout.size / sizeof(cuda::Vector16));  // zeros, once
    std::vector<cuda::AggregateResult> results(films);
    for (const auto& [method, source] : {std::pair{ScoreMethod::noisy_or, ScoreSource::patch},
                                         {ScoreMethod::paper_098, ScoreSource::mask},
                                         {ScoreMethod::top_k, ScoreSource::mask},
                                         {ScoreMethod::max, ScoreSource::patch}}) {
        const AggregateParameters parameters{
            .method = method, .source = source, .k = 40, .high = 0.7, .low = 0.4, .min_area = 3};
        cuda::aggregate(descriptions.data(), films,
                        {{patch.data(), false}, {mask.data(), false}, patches, rows, columns},
                        cuda::make_rules(parameters), reinterpret_cast<std::byte*>(scratch.data()),
                        reinterpret_cast<std::byte*>(results.data()), sizeof results[0], nullptr);
        for (std::size_t i = 0; i < films; ++i) {
            const std::span<const float> own_patch(patch.data() + i * patches, patches);
            const MaskLogits own_mask{{mask.data() + i * size, size}, rows, columns};
            const auto found = cuda::read_result(std::as_bytes(std::span(&results[i], 1)), geometry, own_mask,
                                                 method, parameters.low);
            const Aggregation wanted = aggregate(own_patch, own_mask, geometry, parameters);
            check(found ? same(*found, wanted) : wanted.regions.size() > cuda::kMostRegions,
                  "aggregate: the twins agree");
        }
    }
}

void test_threads_that_part_at_a_barrier() {
    bool told = false;
    try {
        cuda::launch(8, 16, 1, [](const cuda::HostBlock& block, int) {
            if (block.thread != 3) block.each([](int) {});
        });
    } catch (const std::logic_error&) {
        told = true;
    }
    check(told, "threads that part at a barrier are told");
}

// Every thread reads what its neighbour wrote, with no barrier between.
void race_in_a_block() {
    cuda::launch(8, 8 * sizeof(int), 1, [](const cuda::HostBlock& block, int) {
        auto* values = reinterpret_cast<int*>(block.shared);
        int found = 0;
        block.each([&](int thread) {
            values[thread] = thread;
            found = values[(thread + 1) % 8];
        });
        block.each([&](int thread) { values[thread] = found; });
    });
}

// A block counts itself as done with nothing that orders what it wrote.
void race_of_blocks() {
    std::uint32_t done = 0;
    std::vector<std::uint32_t> written(4);
    cuda::launch(8, 16, 4, [&](const cuda::HostBlock& block, int index) {
        block.each([&](int thread) {
            if (thread != 0) return;
            written[static_cast<std::size_t>(index)] = 1;
            if (block.fetch_add(&done, 1) == 3) check(written == std::vector<std::uint32_t>(4, 1), "all");
        });
    });
}

}  // namespace

int main(int count, char** arguments) {
    const std::string_view wanted = count > 1 ? arguments[1] : "";
    if (wanted == "a-race-in-a-block") return race_in_a_block(), 0;
    if (wanted == "a-race-of-blocks") return race_of_blocks(), 0;
    for (const int extra : {0, 3}) {
        test_preprocess<std::uint8_t>(StoredType::u8, 90, 77, extra, 17, 16);
        test_preprocess<std::uint16_t>(StoredType::u16, 61, 300, extra, 12, 280);
        test_preprocess<std::int16_t>(StoredType::i16, 700, 40, extra, 8, 8);
        test_preprocess<float>(StoredType::f32, 33, 50, extra, 9, 70);
    }
    for (const int grain : {1, 5, 20}) test_aggregate(20, 67, grain);
    test_threads_that_part_at_a_barrier();
    return ptxsdk::end_of_tests();
}
