// preprocess on CUDA: what one thread block does, on the device and, for tests, on the host.
//
// A block makes kTileColumns target pixels of one target row of one film.  Its threads add the source rows
// under that row into column sums in registers, 16 bytes of a row at a time, each load aligned: rows that
// begin at different offsets from a 16-byte boundary are visited in separate phases, so any pitch is read
// with wide loads. The column sums meet in shared memory, where each target pixel gathers its own.  Nothing
// but the result is written.  Every source row is read once, save the one that two target rows share, which
// the second block finds in the L2 cache.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "ops/block.hpp"
#include "ops/preprocess_film.hpp"

namespace ptxsdk::cuda {

constexpr int kPreprocessThreads = 128;
constexpr int kTileColumns = 128;  // target pixels a block makes
constexpr int kLongestSource = 1 << 15;
constexpr int kLongestTarget = 1 << 12;

// A film and how it is shown; plain data that travels to the device.
struct Film {
    const std::byte* data;  // device address of the first pixel
    const float* table;     // device address; Transfer::table only
    std::int64_t pitch;     // bytes from row to row, a multiple of the pixel's size; may be negative
    std::int32_t rows, columns;
    Content content;
    StoredType type;
    Transfer transfer;
    Ramp ramp;                       // linear
    float low, low_rest, steepness;  // sigmoid: 1 / (1 + exp(-steepness * ((v - low) - low_rest)))
    float scale;                     // 1 / the area of a target pixel in source pixels
    float mean, inverse_std;
    std::uint32_t invert;
    std::int32_t sample_step;  // 0: no sample
};

// Where the results of a batch go; row-major, films one after the other.
struct PreprocessTarget {
    void* tensor;
    TensorType type;
    std::int32_t rows, columns;
    float* sample;                 // display values of every sample_step-th pixel of the content, or null
    std::int32_t sample_capacity;  // floats a film
    std::uint32_t* not_finite;     // one word a film: not 0 once a float source held NaN or infinity
};

// Shared memory that holds `columns` sums; see sum_index.
PTXSDK_HD constexpr std::size_t sums_bytes(std::int64_t columns) {
    return static_cast<std::size_t>(columns + columns / 32 + 1) * sizeof(float);
}

// One unused word in 33, so that threads which each store 4, 8 or 16 sums in a row hit different banks.
PTXSDK_HD inline std::int32_t sum_index(std::int32_t column) { return column + (column >> 5); }

// The most source columns that a tile can cover.
PTXSDK_HD inline std::int64_t tile_source_columns(std::int64_t columns, const Content& content) {
    const std::int64_t width = content.x1 - content.x0;
    return (columns * (width < kTileColumns ? width : kTileColumns) + width - 1) / width + 2;
}

template <typename Stored>
struct Lanes {
    Stored values[sizeof(Vector16) / sizeof(Stored)];
};

// Contributions: what one stored value adds, before the row's weight; the float ones say when it is not
// finite.
template <typename Stored>
struct RampContribution {
    Ramp ramp;
    PTXSDK_DEVICE float operator()(Stored stored, bool&) const {
        const float v = static_cast<float>(static_cast<std::int32_t>(stored) - ramp.base);
        return fminf(fmaxf(v, ramp.low), ramp.high);
    }
};

template <>
struct RampContribution<float> {
    Ramp ramp;
    PTXSDK_DEVICE float operator()(float stored, bool& finite) const {
        finite = finite && stored - stored == 0.0f;
        return fminf(fmaxf(stored - ramp.base_f, ramp.low), ramp.high);
    }
};

struct SigmoidContribution {
    float low, low_rest, steepness;
    PTXSDK_DEVICE float operator()(float stored, bool& finite) const {
        finite = finite && stored - stored == 0.0f;
        return 1.0f / (1.0f + expf(-steepness * ((stored - low) - low_rest)));
    }
};

template <typename Stored>
struct TableContribution {
    const float* table;
    PTXSDK_DEVICE float operator()(Stored stored, bool&) const {
        constexpr int lowest = std::is_signed_v<Stored> ? -(1 << (8 * sizeof(Stored) - 1)) : 0;
        return table[static_cast<int>(stored) - lowest];
    }
};

// Adds the source rows of `rows` into `sums`, for the source columns [first, first + count).
template <typename Stored, typename Contribution, typename Block>
PTXSDK_DEVICE void add_rows(const Block& block, const Film& film, const Span& rows, std::int32_t first,
                            std::int32_t count, Contribution contribution, float* sums,
                            std::uint32_t* not_finite) {
    constexpr int lanes = sizeof(Vector16) / sizeof(Stored);
    const auto offset = static_cast<std::uint32_t>(film.pitch) & 15;
    const int period = offset == 0 ? 1 : static_cast<int>(16 / (offset & (0 - offset)));
    const int row_count = rows.count();
    for (int phase = 0; phase < period && phase < row_count; ++phase) {
        block.each([&](int thread) {
            const std::byte* row0 =
                film.data + (rows.first + phase) * film.pitch +
                static_cast<std::int64_t>(first) * static_cast<std::int64_t>(sizeof(Stored));
            const auto shift =
                static_cast<std::int32_t>((reinterpret_cast<std::uintptr_t>(row0) & 15) / sizeof(Stored));
            const std::int64_t step = period * film.pitch;
            bool finite = true;
            for (std::int32_t begin = thread * lanes - shift; begin < count;
                 begin += block.threads() * lanes) {
                const std::byte* from = row0 + begin * static_cast<std::int32_t>(sizeof(Stored));
                float column[lanes] = {};
                if (begin >= 0 && begin + lanes <= count) {
                    // Loads of several rows are under way before the first is needed; where there are no more
                    // rows, one is read again and weighs nothing.
                    constexpr int depth = 4;
                    for (int k = phase; k < row_count; k += depth * period, from += depth * step) {
                        Vector16 words[depth];
                        float weights[depth];
                        PTXSDK_UNROLL(4)
                        for (int u = 0; u < depth; ++u) {
                            const bool there = k + u * period < row_count;
                            words[u] = Block::load16(there ? from + u * step : from);
                            weights[u] = there ? rows.weight(k + u * period) : 0.0f;
                        }
                        PTXSDK_UNROLL(4)
                        for (int u = 0; u < depth; ++u) {
                            const auto stored = std::bit_cast<Lanes<Stored>>(words[u]);
                            PTXSDK_UNROLL(16)
                            for (int lane = 0; lane < lanes; ++lane)
                                column[lane] += weights[u] * contribution(stored.values[lane], finite);
                        }
                    }
                } else {  // the first and last few columns, beside which memory is someone else's
                    for (int k = phase; k < row_count; k += period, from += step) {
                        const float weight = rows.weight(k);
                        for (int lane = 0; lane < lanes; ++lane)
                            if (begin + lane >= 0 && begin + lane < count)
                                column[lane] +=
                                    weight *
                                    contribution(reinterpret_cast<const Stored*>(from)[lane], finite);
                    }
                }
                for (int lane = 0; lane < lanes; ++lane) {
                    const std::int32_t at = begin + lane;
                    if (at < 0 || at >= count) continue;
                    float& sum = sums[sum_index(at)];
                    sum = phase == 0 ? column[lane] : sum + column[lane];
                }
            }
            if (!finite) Block::set_bits(not_finite, 1);
        });
    }
}

template <typename Block>
PTXSDK_DEVICE void add_film_rows(const Block& block, const Film& film, const Span& rows, std::int32_t first,
                                 std::int32_t count, float* sums, std::uint32_t* not_finite) {
    const auto add = [&]<typename Stored>(auto contribution, Stored) {
        add_rows<Stored>(block, film, rows, first, count, contribution, sums, not_finite);
    };
    const bool table = film.transfer == Transfer::table;
    switch (film.type) {
        case StoredType::u8:
            if (table) return add(TableContribution<std::uint8_t>{film.table}, std::uint8_t{});
            return add(RampContribution<std::uint8_t>{film.ramp}, std::uint8_t{});
        case StoredType::u16:
            if (table) return add(TableContribution<std::uint16_t>{film.table}, std::uint16_t{});
            return add(RampContribution<std::uint16_t>{film.ramp}, std::uint16_t{});
        case StoredType::i16:
            if (table) return add(TableContribution<std::int16_t>{film.table}, std::int16_t{});
            return add(RampContribution<std::int16_t>{film.ramp}, std::int16_t{});
        case StoredType::f32:
            if (film.transfer == Transfer::sigmoid)
                return add(SigmoidContribution{film.low, film.low_rest, film.steepness}, float{});
            return add(RampContribution<float>{film.ramp}, float{});
    }
}

// Makes target pixels [tile * kTileColumns, + kTileColumns) of target row `i` of film number `index`.
template <typename Block>
PTXSDK_DEVICE void preprocess_block(const Block& block, const Film& film, const PreprocessTarget& target,
                                    std::int32_t tile, std::int32_t i, std::int32_t index) {
    auto* sums = reinterpret_cast<float*>(block.shared);
    const std::int32_t begin = tile * kTileColumns;
    const std::int32_t end = begin + kTileColumns < target.columns ? begin + kTileColumns : target.columns;
    const Content& content = film.content;
    const std::int32_t from = begin > content.x0 ? begin : content.x0;  // of the tile, what the film fills
    const std::int32_t to = end < content.x1 ? end : content.x1;
    const bool filled = i >= content.y0 && i < content.y1 && from < to;
    const auto width = static_cast<std::uint32_t>(content.x1 - content.x0);
    const auto columns = static_cast<std::uint32_t>(film.columns);
    const auto column_span = [&](std::int32_t j) {
        return make_span(static_cast<std::uint32_t>(j - content.x0), columns, width);
    };

    std::int32_t first = 0;
    if (filled) {
        first = column_span(from).first;
        const Span last = column_span(to - 1);
        add_film_rows(
            block, film,
            make_span(static_cast<std::uint32_t>(i - content.y0), static_cast<std::uint32_t>(film.rows),
                      static_cast<std::uint32_t>(content.y1 - content.y0)),
            first, last.first + last.count() - first, sums, target.not_finite + index);
    }
    block.each([&](int thread) {
        const std::size_t row = (static_cast<std::size_t>(index) * target.rows + i) * target.columns;
        for (std::int32_t j = begin + thread; j < end; j += block.threads()) {
            float value = 0;  // padding is black
            if (filled && j >= from && j < to) {
                const Span span = column_span(j);
                float sum = 0;
                for (std::int32_t k = 0; k < span.count(); ++k)
                    sum += span.weight(k) * sums[sum_index(span.first - first + k)];
                value = display_value(sum * film.scale, film.transfer == Transfer::linear, film.ramp,
                                      film.invert);
                if (target.sample != nullptr && film.sample_step > 0) {
                    const std::int32_t y = i - content.y0, x = j - content.x0, step = film.sample_step;
                    const std::int32_t at =
                        y / step * ((static_cast<std::int32_t>(width) + step - 1) / step) + x / step;
                    if (y % step == 0 && x % step == 0 && at < target.sample_capacity)
                        target.sample[static_cast<std::size_t>(index) * target.sample_capacity + at] = value;
                }
            }
            value = (value - film.mean) * film.inverse_std;
            if (target.type == TensorType::f32)
                static_cast<float*>(target.tensor)[row + j] = value;
            else
                static_cast<std::uint16_t*>(target.tensor)[row + j] = to_half(value);
        }
    });
}

}  // namespace ptxsdk::cuda
