// Unit tests of the operations without Python: what the sanitizers watch.  Exit status 0: all held.
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "ops/aggregate.hpp"
#include "ops/aggregate_result.hpp"
#include "ops/preprocess.hpp"
#include "ops/preprocess_block.hpp"
#include "tests/check.hpp"

namespace {

using namespace ptxsdk;

template <typename Error>
bool throws(const std::function<void()>& call) {
    try {
        call();
    } catch (const Error&) {
        return true;
    }
    return false;
}

struct Film {
    int rows, columns;
    std::vector<std::uint16_t> pixels;

    Film(int r, int c)
        : rows(r), columns(c), pixels(static_cast<std::size_t>(r) * static_cast<std::size_t>(c)) {
        for (std::size_t i = 0; i < pixels.size(); ++i)
            pixels[i] = static_cast<std::uint16_t>(i * 2654435761u >> 16);
    }
    SourceImage image() const {
        return {reinterpret_cast<const std::byte*>(pixels.data()),
                StoredType::u16,
                rows,
                columns,
                static_cast<std::ptrdiff_t>(columns) * 2,
                2};
    }
};

std::vector<float> preprocessed(const Film& film, int side, int threads, Isa isa = Isa::best) {
    std::vector<float> out(static_cast<std::size_t>(side) * static_cast<std::size_t>(side));
    PreprocessParameters parameters;
    parameters.high = 65535;
    parameters.threads = threads;
    parameters.isa = isa;
    const TargetTensor target{reinterpret_cast<std::byte*>(out.data()), TensorType::f32, side, side,
                              side * 4};
    check(preprocess(film.image(), target, {0, 0, side, side}, parameters), "an integer film is finite");
    return out;
}

void test_threads_change_nothing() {
    const Film film(1031, 517);
    const auto one = preprocessed(film, 96, 1);
    for (const int threads : {2, 3, 7, 16})
        check(preprocessed(film, 96, threads) == one, "threads change nothing");
}

void test_many_callers_at_once() {
    const Film film(300, 211);
    const auto expected = preprocessed(film, 64, 1);
    std::atomic<int> different = 0;
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 8; ++caller)
        callers.emplace_back([&] {
            for (int i = 0; i < 20; ++i)
                if (preprocessed(film, 64, 1 + i % 3) != expected) ++different;
        });
    for (std::thread& caller : callers) caller.join();
    check(different == 0, "callers do not disturb each other");
}

void test_a_uniform_film_stays_uniform() {
    Film film(77, 131);
    film.pixels.assign(film.pixels.size(), 13107);  // a fifth of white
    for (const Isa isa : usable_isas())
        for (const float value : preprocessed(film, 40, 1, isa))
            check(std::abs(value - 0.2F) < 1e-6F, "the mean of equal pixels is the pixel");
}

void test_preprocess_refuses() {
    const Film film(8, 8);
    float out[16] = {};
    const TargetTensor target{reinterpret_cast<std::byte*>(out), TensorType::f32, 4, 4, 16};
    const auto refuses = [&](Content content, PreprocessParameters parameters) {
        return throws<std::invalid_argument>([&] { preprocess(film.image(), target, content, parameters); });
    };
    check(refuses({0, 0, 5, 4}, {}), "a content outside the target");
    check(refuses({2, 0, 2, 4}, {}), "an empty content");
    PreprocessParameters flat;
    flat.high = flat.low;
    check(refuses({0, 0, 4, 4}, flat), "a window without width");
    PreprocessParameters endless;
    endless.low = -1.7e38;
    check(refuses({0, 0, 4, 4}, endless), "a window whose sums would overflow");
    PreprocessParameters tableless;
    tableless.transfer = Transfer::table;
    check(refuses({0, 0, 4, 4}, tableless), "a table that is missing");
}

void test_a_table_leaves_the_window_unread() {
    const Film film(8, 8);
    const std::vector<float> table(65536, 0.5F);
    std::vector<float> out(16);
    PreprocessParameters parameters;
    parameters.transfer = Transfer::table;
    parameters.table = table.data();
    parameters.low = parameters.high = std::numeric_limits<double>::quiet_NaN();
    preprocess(film.image(), {reinterpret_cast<std::byte*>(out.data()), TensorType::f32, 4, 4, 16},
               {0, 0, 4, 4}, parameters);
    check(out == std::vector<float>(16, 0.5F), "a table's value everywhere");
}

void test_a_window_too_narrow_for_float32_is_a_step() {
    Film film(4, 4);
    film.pixels.assign(film.pixels.size(), 0);
    film.pixels[5] = 7;
    std::vector<float> out(16);
    PreprocessParameters parameters;
    for (const double width : {1e-300, 1e-30, 1e-12}) {
        parameters.low = -width;
        parameters.high = width / 2;
        preprocess(film.image(), {reinterpret_cast<std::byte*>(out.data()), TensorType::f32, 4, 4, 16},
                   {0, 0, 4, 4}, parameters);
        for (std::size_t i = 0; i < out.size(); ++i)
            check(out[i] >= 0 && out[i] <= 1 && (i != 5 || out[i] == 1), "black or white, never NaN");
    }
}

const FilmGeometry kFilm{80, 60, 0, 0, 6, 8};

Aggregation aggregated(const std::vector<float>& mask, AggregateParameters parameters = {}) {
    const std::vector<float> patch{-1.0F, 2.0F};
    parameters.method = ScoreMethod::max;
    return aggregate(patch, {mask, 8, 6}, kFilm, parameters);
}

// The kernels find the parts of a split without a division.
void test_spans_of_the_kernels() {
    std::mt19937 random(11);
    for (int i = 0; i < 20000; ++i) {
        const auto source = static_cast<std::int32_t>(1 + random() % (i % 2 == 0 ? 32768 : 40));
        const auto count = static_cast<std::int32_t>(1 + random() % (i % 3 == 0 ? 4096 : 40));
        const cuda::Split split = cuda::make_split(source, count);
        for (const std::int32_t j :
             {0, count - 1, static_cast<std::int32_t>(random() % static_cast<unsigned>(count))}) {
            const Span found = cuda::span_of(split, j);
            const Span wanted = make_span(static_cast<std::uint64_t>(j), static_cast<std::uint64_t>(source),
                                          static_cast<std::uint64_t>(count));
            bool same = found.first == wanted.first && found.count() == wanted.count();
            for (std::int32_t k = 0; same && k < wanted.count(); ++k)
                same = std::abs(found.weight(k) - wanted.weight(k)) <= 1e-6F * wanted.weight(k);
            check(same, "a part of a split");
        }
    }
}

void test_regions() {
    std::vector<float> mask(48, -5.0F);
    for (const std::size_t i : {7, 8, 13, 14, 21}) mask[i] = 3.0F;  // 21 touches 14 at a corner
    mask[47] = 3.0F;
    const Aggregation found = aggregated(mask);
    check(found.logit == 2.0, "the largest patch");
    check(found.regions.size() == 2, "two regions");
    check(found.regions[0].area_px == 5 * 100, "the larger one first");
    check(found.regions[0].outline.size() >= 8, "an outline around the corner");
    check(found.regions[1].x1 == 60 && found.regions[1].y1 == 80, "up to the edge of the film");
}

void test_aggregate_refuses() {
    std::vector<float> mask(48, 0.0F);
    AggregateParameters crossed;
    crossed.low = 0.6;
    check(throws<std::invalid_argument>([&] { aggregated(mask, crossed); }), "low above high");
    mask[5] = std::numeric_limits<float>::quiet_NaN();
    check(throws<NotFinite>([&] { aggregated(mask); }), "a logit that is no number");
}

// A region record that a broken device might leave behind.
void test_results_of_a_broken_device() {
    const std::vector<float> mask(48, 3.0F);
    const auto read = [&](const cuda::RegionRecord& record) {
        cuda::AggregateResult result{};
        result.regions = 1;
        result.records[0] = record;
        const auto* bytes = reinterpret_cast<const std::byte*>(&result);
        return cuda::read_result({bytes, sizeof result}, kFilm, {mask, 8, 6}, ScoreMethod::max, 0.5);
    };
    cuda::RegionRecord whole{.area = 48,
                             .first = 0,
                             .x0 = 0,
                             .y0 = 0,
                             .x1 = 6,
                             .y1 = 8,
                             .twice_x = 288,
                             .twice_y = 384,
                             .peak = cuda::peak_key(3.0F, 0),
                             .probability = 0};
    check(read(whole).has_value(), "a sound record");
    const auto refused = [&](const char* what, auto change) {
        cuda::RegionRecord record = whole;
        change(record);
        check(throws<std::invalid_argument>([&] { read(record); }), what);
    };
    refused("no area", [](auto& record) { record.area = 0; });
    refused("a first pixel outside", [](auto& record) { record.first = 48; });
    refused("a first pixel that is not the first", [](auto& record) { record.first = 15; });
    refused("a box outside", [](auto& record) { record.x1 = 7; });
    refused("a peak outside", [](auto& record) { record.peak = cuda::peak_key(3.0F, 4711); });
}

}  // namespace

int main() {
    test_threads_change_nothing();
    test_many_callers_at_once();
    test_a_uniform_film_stays_uniform();
    test_preprocess_refuses();
    test_a_table_leaves_the_window_unread();
    test_a_window_too_narrow_for_float32_is_a_step();
    test_spans_of_the_kernels();
    test_regions();
    test_aggregate_refuses();
    test_results_of_a_broken_device();
    return ptxsdk::end_of_tests();
}
