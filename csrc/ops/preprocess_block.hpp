// preprocess on CUDA: what one thread block does, on the device and, for tests, on the host.
//
// A block makes kTileColumns target pixels of kTileRows target rows of one film.  It copies the source rows
// under a target row into shared memory, all at once and 16 bytes a copy, so that many bytes are under way
// together and none of them in registers; whatever the pitch, a row's copies begin at the 16-byte boundary
// before it. Then its threads add the rows into column sums, 16 bytes of each at a time, and every target
// pixel gathers its own. Nothing but the result is written.  Every source row is read once, save the one that
// two target rows share, which the second block finds in the L2 cache.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "ops/block.hpp"
#include "ops/preprocess_film.hpp"

namespace ptxsdk::cuda {

constexpr int kPreprocessThreads = 128;
constexpr int kTileColumns = 256;  // target pixels of a row that a block makes
constexpr int kTileRows = 2;       // rows, one after the other: what is found out once a block serves both
constexpr int kLongestSource = 1 << 15;
constexpr int kLongestTarget = 1 << 12;
constexpr int kStageBytes = 24 * 1024;  // shared memory for source rows, as many as it holds

// A linear window: the display value of v is (v - origin) * slope + offset, held in [0, 1].  v - origin is
// exact where it matters.  Integers are read as float32 of 2^23 and up, so their origin begins there too;
// `high` are the upper bits of such a float.
struct Slope {
    float origin, slope, offset;
    std::uint32_t high;
};

// `source` pixels in `count` equal parts, with what makes a part cheap to find.
struct Split {
    std::uint32_t source, count;
    std::uint32_t whole, rest;  // source / count
    float inverse;              // 1 / count
};

// A film and how it is shown; plain data that travels to the device.
struct Film {
    const std::byte* data;  // device address of the first pixel
    const float* table;     // device address; Transfer::table only
    std::int64_t pitch;     // bytes from row to row, a multiple of the pixel's size; may be negative
    Split rows, columns;
    Content content;
    StoredType type;
    Transfer transfer;
    Slope slope;                     // linear
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

// A source row in shared memory: where its columns begin in the stage, and what it weighs.
struct StagedRow {
    std::int32_t offset;
    float weight;
};
constexpr int kStagedRows = 32;  // at a time

// From row to row of the stage: the bytes of a row, and those between a 16-byte boundary and its first.
PTXSDK_HD constexpr std::int32_t stage_pitch(std::int32_t bytes) { return (bytes + 15) / 16 * 16 + 16; }

PTXSDK_HD constexpr int rows_staged(std::int32_t pitch) {
    return kStageBytes / pitch < kStagedRows ? kStageBytes / pitch : kStagedRows;
}

// Before the sums of the source columns.
constexpr std::size_t kSumsAt = sizeof(StagedRow) * kStagedRows + kStageBytes;

// Shared memory of a block: which rows are staged, the stage, the sums.
PTXSDK_HD constexpr std::size_t preprocess_shared_bytes(std::int64_t columns) {
    return kSumsAt + (static_cast<std::size_t>(columns) + 3) / 4 * sizeof(Vector16);
}

// The most columns for which the stage holds a row, and a block has the memory without asking for more.
constexpr std::int64_t kWidestTile = 6000;
static_assert(rows_staged(stage_pitch(4 * kWidestTile)) >= 1 &&
              preprocess_shared_bytes(kWidestTile) <= 48 * 1024);

inline Split make_split(std::int32_t source, std::int32_t count) {
    const auto parts = static_cast<std::uint32_t>(count), all = static_cast<std::uint32_t>(source);
    return {all, parts, all / parts, all % parts, 1.0f / static_cast<float>(count)};
}

// `make_span` without a division: source * count is below 2^28.
PTXSDK_HD inline Span span_of(const Split& split, std::int32_t j) {
    const std::uint32_t begin = static_cast<std::uint32_t>(j) * split.source;
    auto first = static_cast<std::uint32_t>(static_cast<float>(begin) * split.inverse);  // or one beside it
    auto into = static_cast<std::int32_t>(begin - first * split.count);
    if (into < 0) {
        --first;
        into += static_cast<std::int32_t>(split.count);
    } else if (into >= static_cast<std::int32_t>(split.count)) {
        ++first;
        into -= static_cast<std::int32_t>(split.count);
    }
    // The part ends `whole` pixels and `rest` / count further on.
    const std::int32_t reach = into + static_cast<std::int32_t>(split.rest);
    std::int32_t beyond = static_cast<std::int32_t>(split.whole), left = reach;
    if (reach > static_cast<std::int32_t>(split.count)) {
        ++beyond;
        left -= static_cast<std::int32_t>(split.count);
    } else if (reach == 0) {
        --beyond;
        left = static_cast<std::int32_t>(split.count);
    }
    const auto at = static_cast<std::int32_t>(first);
    if (beyond == 0) return {at, 0, static_cast<float>(split.source) * split.inverse, 0};
    return {at, beyond - 1, static_cast<float>(static_cast<std::int32_t>(split.count) - into) * split.inverse,
            static_cast<float>(left) * split.inverse};
}

// Of what `make_ramp` made.
inline Slope make_slope(StoredType type, Ramp ramp) {
    double origin = ramp.base_f;
    if (type != StoredType::f32) {
        // An integer that lies in a narrow window lies at its own origin, so nothing is lost in the
        // difference.
        if (ramp.low > 0.5f) {
            ramp.base += 1;
            ramp.low -= 1;
            ramp.high -= 1;
        }
        origin = (type == StoredType::i16 ? 0x1p23 + 0x1p15 : 0x1p23) + ramp.base;
    }
    const double slope = std::min(1.0 / (static_cast<double>(ramp.high) - ramp.low), 3e38);
    return {static_cast<float>(origin), static_cast<float>(slope), static_cast<float>(-ramp.low * slope),
            0x4B000000};
}

// The film of an image whose pixels lie on the device, side by side; the table of `parameters` lies there
// too. Throws std::invalid_argument for what preprocess refuses, for a side too long, and for pixels that are
// not aligned.
inline Film make_film(const SourceImage& image, const Content& content, int target_rows, int target_columns,
                      const PreprocessParameters& parameters, std::int32_t sample_step) {
    if (image.rows > kLongestSource || image.columns > kLongestSource)
        throw std::invalid_argument("a side of the film exceeds 32768");
    if (target_rows > kLongestTarget || target_columns > kLongestTarget)
        throw std::invalid_argument("a side of the target exceeds 4096");
    check_preprocess(image.type, image.rows, image.columns, target_rows, target_columns, content, parameters);
    const auto size = static_cast<std::ptrdiff_t>(size_of(image.type));
    if (image.row_stride % size != 0 ||
        reinterpret_cast<std::uintptr_t>(image.data) % size_of(image.type) != 0)
        throw std::invalid_argument("the film is not aligned");
    Film film{};
    film.data = image.data;
    film.table = parameters.table;
    film.pitch = image.row_stride;
    film.rows = make_split(image.rows, content.y1 - content.y0);
    film.columns = make_split(image.columns, content.x1 - content.x0);
    film.content = content;
    film.type = image.type;
    film.transfer = parameters.transfer;
    if (film.transfer == Transfer::linear)
        film.slope = make_slope(film.type, make_ramp(film.type, parameters.low, parameters.high));
    film.low = static_cast<float>(parameters.low);
    film.low_rest = static_cast<float>(parameters.low - film.low);
    film.steepness = static_cast<float>(std::min(1.0 / (parameters.high - parameters.low), 1e30));
    film.scale = inverse_area(image.rows, image.columns, content);
    film.mean = parameters.mean;
    film.inverse_std = 1.0f / parameters.std;
    film.invert = parameters.invert ? 1 : 0;
    film.sample_step = sample_step;
    return film;
}

// The most source columns that a tile can cover, with those beside them in words of 16 pixels.
PTXSDK_HD inline std::int64_t tile_source_columns(std::int64_t columns, const Content& content) {
    const std::int64_t width = content.x1 - content.x0;
    return (columns * (width < kTileColumns ? width : kTileColumns) + width - 1) / width + 2 + 2 * 15;
}

// The stored values of 4 bytes of a row.
template <typename Stored>
constexpr int lanes = 4 / static_cast<int>(sizeof(Stored));

// One of them, unsigned integers as 2^23 + value, signed ones as 2^23 + 2^15 + value.
template <typename Stored>
PTXSDK_DEVICE float value_of(std::uint32_t word, int lane, std::uint32_t high) {
    if constexpr (std::is_same_v<Stored, float>) return std::bit_cast<float>(word);
    if constexpr (std::is_signed_v<Stored>) word ^= 0x80008000;
    const std::uint32_t selector = sizeof(Stored) == 1 ? 0x7650 + lane : lane == 0 ? 0x7610 : 0x7632;
    return std::bit_cast<float>(permute_bytes(word, high, selector));
}

// Contributions: what a stored value adds, before the row's weight; those of floats say where one that is
// `there` is not finite.
template <typename Stored>
struct LinearContribution {
    Slope slope;
    PTXSDK_DEVICE float operator()(std::uint32_t word, int lane, bool there, bool& finite) const {
        const float value = value_of<Stored>(word, lane, slope.high);
        if constexpr (std::is_same_v<Stored, float>) finite = finite && (!there || value - value == 0.0f);
        return saturated(fmaf(value - slope.origin, slope.slope, slope.offset));
    }
};

struct SigmoidContribution {
    float low, low_rest, steepness;
    PTXSDK_DEVICE float operator()(std::uint32_t word, int, bool there, bool& finite) const {
        const float value = std::bit_cast<float>(word);
        finite = finite && (!there || value - value == 0.0f);
        return 1.0f / (1.0f + expf(-steepness * ((value - low) - low_rest)));
    }
};

template <typename Stored>
struct TableContribution {
    const float* table;  // begins at the lowest value of the type
    PTXSDK_DEVICE float operator()(std::uint32_t word, int lane, bool, bool&) const {
        constexpr std::uint32_t mask = sizeof(Stored) == 1 ? 0xff : 0xffff;
        if constexpr (std::is_signed_v<Stored>) word ^= 0x80008000;
        return table[(word >> (8 * static_cast<int>(sizeof(Stored)) * lane)) & mask];
    }
};

struct alignas(8) Vector8 {
    std::uint32_t words[2];
};

struct alignas(16) Sums {
    float values[4];
};

// 16 bytes of shared memory, `offset` bytes from an aligned address.
PTXSDK_DEVICE inline Vector16 staged16(const std::byte* aligned, std::int32_t offset) {
    if (offset % 16 == 0) return *reinterpret_cast<const Vector16*>(aligned + offset);
    if (offset % 8 == 0) {
        const auto* halves = reinterpret_cast<const Vector8*>(aligned + offset);
        return {{halves[0].words[0], halves[0].words[1], halves[1].words[0], halves[1].words[1]}};
    }
    const auto* words = reinterpret_cast<const std::uint32_t*>(aligned + (offset & ~3));
    const int bits = 8 * (offset & 3);
    Vector16 joined;
    PTXSDK_UNROLL(4)
    for (int q = 0; q < 4; ++q) joined.words[q] = funnel_shift(words[q], words[q + 1], bits);
    return joined;
}

// Adds the source rows of `rows` into `sums`, for the source columns [first, first + count); `first` is a
// multiple of 16 bytes of pixels, and there is room for sums up to another such multiple.
template <typename Stored, typename Contribution, typename Block>
PTXSDK_DEVICE void add_rows(const Block& block, const Film& film, const Span& rows, std::int32_t first,
                            std::int32_t count, Contribution contribution, float* sums,
                            std::uint32_t* not_finite) {
    constexpr int size = sizeof(Stored), pixels = 16 / size;
    const std::int32_t bytes = count * size, pitch = stage_pitch(bytes);
    const int row_count = rows.count(), room = rows_staged(pitch);
    auto* staged_rows = reinterpret_cast<StagedRow*>(block.shared);
    std::byte* stage = block.shared + sizeof(StagedRow) * kStagedRows;
    // Words beside a row are those of its neighbours in memory; the last row has none.
    const bool narrow = film.pitch > -32 && film.pitch < 32;
    const std::int32_t last = film.pitch < 0 ? 0 : static_cast<std::int32_t>(film.rows.source) - 1;
    for (int k = 0; k < row_count; k += room) {
        const int staged = row_count - k < room ? row_count - k : room;
        const std::byte* row0 =
            film.data + (rows.first + k) * film.pitch + static_cast<std::int64_t>(first) * size;
        const auto shift_of = [&](int r) {
            return static_cast<std::int32_t>((reinterpret_cast<std::uintptr_t>(row0) + r * film.pitch) & 15);
        };
        const int alone = last - rows.first - k;
        const int begin = narrow ? staged : alone == 0 ? 1 : 0, end = alone == staged - 1 ? alone : staged;
        block.each([&](int thread) {
            if (thread < staged)
                staged_rows[thread] = {thread * pitch + shift_of(thread), rows.weight(k + thread)};
            for (std::int32_t at = 16 * thread; at < pitch; at += 16 * block.threads()) {
                const std::byte* from = row0 + begin * film.pitch + at;
                std::byte* to = stage + begin * pitch + at;
                PTXSDK_UNROLL(4)
                for (int r = begin; r < end; ++r, from += film.pitch, to += pitch)
                    Block::copy16(to, from - (reinterpret_cast<std::uintptr_t>(from) & 15));
            }
            for (int r = 0; r < staged; ++r) {
                if (r >= begin && r < end) continue;
                const std::int32_t shift = shift_of(r);
                for (std::int32_t at = 16 * thread; at < shift + bytes; at += 16 * block.threads()) {
                    const std::int32_t left = shift + bytes - at;
                    Block::copy16(stage + r * pitch + at, row0 + r * film.pitch - shift + at,
                                  at == 0 ? shift : 0, left < 16 ? left : 16);
                }
            }
            Block::await_copies();
        });
        block.each([&](int thread) {
            bool finite = true;
            for (std::int32_t column = thread * pixels; column < count; column += block.threads() * pixels) {
                float added[pixels] = {};
                PTXSDK_UNROLL(2)
                for (int r = 0; r < staged; ++r) {
                    const StagedRow row = staged_rows[r];
                    const Vector16 found = staged16(stage, row.offset + column * size);
                    PTXSDK_UNROLL(16)
                    for (int i = 0; i < pixels; ++i)
                        added[i] =
                            fmaf(row.weight,
                                 contribution(found.words[i * size / 4], i % lanes<Stored>,
                                              column + i < count, finite),  // beside them lies anything
                                 added[i]);
                }
                PTXSDK_UNROLL(4)
                for (int i = 0; i < pixels; i += 4) {
                    auto* sum = reinterpret_cast<Sums*>(sums + column + i);
                    Sums four = k == 0 ? Sums{} : *sum;
                    PTXSDK_UNROLL(4)
                    for (int u = 0; u < 4; ++u) four.values[u] += added[i + u];
                    *sum = four;
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
            return add(LinearContribution<std::uint8_t>{film.slope}, std::uint8_t{});
        case StoredType::u16:
            if (table) return add(TableContribution<std::uint16_t>{film.table}, std::uint16_t{});
            return add(LinearContribution<std::uint16_t>{film.slope}, std::uint16_t{});
        case StoredType::i16:
            if (table) return add(TableContribution<std::int16_t>{film.table}, std::int16_t{});
            return add(LinearContribution<std::int16_t>{film.slope}, std::int16_t{});
        case StoredType::f32:
            if (film.transfer == Transfer::sigmoid)
                return add(SigmoidContribution{film.low, film.low_rest, film.steepness}, float{});
            return add(LinearContribution<float>{film.slope}, float{});
    }
}

// Makes target pixels [tile * kTileColumns, + kTileColumns) of target rows [strip * kTileRows, + kTileRows)
// of film number `index`.
template <typename Block>
PTXSDK_DEVICE void preprocess_block(const Block& block, const Film& film, const PreprocessTarget& target,
                                    std::int32_t tile, std::int32_t strip, std::int32_t index) {
    auto* sums = reinterpret_cast<float*>(block.shared + kSumsAt);
    const std::int32_t begin = tile * kTileColumns;
    const std::int32_t end = begin + kTileColumns < target.columns ? begin + kTileColumns : target.columns;
    const Content& content = film.content;
    const std::int32_t from = begin > content.x0 ? begin : content.x0;  // of the tile, what the film fills
    const std::int32_t to = end < content.x1 ? end : content.x1;
    const auto column_span = [&](std::int32_t j) { return span_of(film.columns, j - content.x0); };
    std::int32_t first = 0, count = 0;  // source columns
    if (from < to) {
        first = column_span(from).first & ~15;  // 16 pixels fill words of 16 bytes, whatever the type
        const Span last = column_span(to - 1);
        count = last.first + last.count() - first;
    }
    for (std::int32_t i = strip * kTileRows; i < (strip + 1) * kTileRows && i < target.rows; ++i) {
        const std::int32_t y = i - content.y0, step = film.sample_step;
        const bool filled = i >= content.y0 && i < content.y1 && from < to;
        if (filled)
            add_film_rows(block, film, span_of(film.rows, y), first, count, sums, target.not_finite + index);
        block.each([&](int thread) {
            const bool sampled = filled && target.sample != nullptr && step > 0 && y % step == 0;
            const std::size_t row = (static_cast<std::size_t>(index) * target.rows + i) * target.columns;
            for (std::int32_t j = begin + thread; j < end; j += block.threads()) {
                float value = 0;  // padding is black
                if (filled && j >= from && j < to) {
                    const Span span = column_span(j);
                    std::int32_t column = span.first - first;
                    float sum = span.first_weight * sums[column];
                    for (std::int32_t k = 0; k < span.whole; ++k) sum += sums[++column];
                    if (span.last_weight > 0) sum += span.last_weight * sums[++column];
                    value = saturated(sum * film.scale);
                    if (film.invert) value = 1.0f - value;
                    const std::int32_t x = j - content.x0;
                    if (sampled && x % step == 0) {
                        const std::int32_t at =
                            y / step * ((content.x1 - content.x0 + step - 1) / step) + x / step;
                        if (at < target.sample_capacity)
                            target.sample[static_cast<std::size_t>(index) * target.sample_capacity + at] =
                                value;
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
}

}  // namespace ptxsdk::cuda
