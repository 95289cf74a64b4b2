// aggregate on CUDA: what one thread block does, on the device and, for tests, on the host.
//
// One launch.  A block takes a strip of kStripRows rows of one film's map: it turns them into bits (z >=
// low), finds the horizontal runs, joins runs of neighbouring rows by union-find in shared memory, and adds
// what each component is (area, box, sums, peak) to a record in device memory.  One block more takes the
// patches.  The block that arrives last joins the components across the borders of strips, adds their
// records, drops what is no region, and writes the regions in order.
//
// Everything that is added by several threads is an integer (the probabilities as multiples of 2^-32), and
// scores are added along a fixed tree: the result does not depend on which thread comes first.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "ops/aggregate.hpp"
#include "ops/aggregate_result.hpp"
#include "ops/block.hpp"
#include "ops/preprocess.hpp"

namespace ptxsdk::cuda {

constexpr int kAggregateThreads = 256;  // a power of two
constexpr int kStripRows = 8;
constexpr int kChunk = 16;             // pixels that a thread takes in one go; half a word of bits
constexpr int kMostMapColumns = 1024;  // what shared memory holds
constexpr int kMostMapRows = 4096;

// Row-major logits, float32 or float16.
struct Logits {
    const void* data;
    bool half;
};

struct AggregateInput {
    Logits patch;  // `patches` a film
    Logits mask;   // rows * columns a film
    std::int32_t patches, rows, columns;
};

struct AggregateRules {
    ScoreMethod method;
    ScoreSource source;
    std::uint32_t k;
    float low, high;  // logits
    std::uint32_t min_area;
};

inline AggregateRules make_rules(const AggregateParameters& parameters) {
    const auto limited = [](std::int64_t value) {
        return static_cast<std::uint32_t>(std::min<std::int64_t>(value, 0xffffffff));
    };
    return {parameters.method,
            parameters.source,
            limited(parameters.k),
            logit_threshold(parameters.low),
            logit_threshold(parameters.high),
            limited(parameters.min_area)};
}

// Where what lies in the scratch memory of one film, in bytes; zeroed once, before the first launch.
struct ScratchLayout {
    std::size_t scores, borders, before, ids, parents, records, size;
    std::int32_t strips, words, row_runs;

    PTXSDK_HD ScratchLayout(std::int32_t rows, std::int32_t columns)
        : strips((rows + kStripRows - 1) / kStripRows),
          words((columns + 31) / 32),
          row_runs((columns + 1) / 2) {
        const auto n = static_cast<std::size_t>(strips);
        const auto most_components = n * (kStripRows / 2) * static_cast<std::size_t>(row_runs);
        std::size_t end = 4 * sizeof(std::uint32_t);  // components, blocks done, flags, spare
        const auto take = [&end](std::size_t bytes) {
            const std::size_t begin = end;
            end += (bytes + 15) / 16 * 16;
            return begin;
        };
        scores = take((n + 1) * sizeof(Score));  // a block each
        borders = take(2 * n * static_cast<std::size_t>(words) * sizeof(std::uint32_t));
        before = take(2 * n * static_cast<std::size_t>(words) * sizeof(std::uint32_t));
        ids = take(2 * n * static_cast<std::size_t>(row_runs) * sizeof(std::uint32_t));
        parents = take(most_components * sizeof(std::uint32_t));
        records = take(most_components * sizeof(RegionRecord));
        size = (end + 255) / 256 * 256;
    }

    // Of a film: one a strip, and one for the patches.
    PTXSDK_HD std::int32_t blocks() const { return strips + 1; }
};

// Shared memory of a block, in bytes.
PTXSDK_HD constexpr std::size_t aggregate_shared_bytes(std::int32_t columns) {
    const auto words = static_cast<std::size_t>(kStripRows) * static_cast<std::size_t>((columns + 31) / 32);
    const auto runs = static_cast<std::size_t>(kStripRows) * static_cast<std::size_t>((columns + 1) / 2);
    const std::size_t strip = (2 * words + 2 * runs) * sizeof(std::uint32_t);
    constexpr std::size_t merge = 3 * kMostRegions * sizeof(std::uint32_t);
    return kAggregateThreads * sizeof(Score) + (2 * kAggregateThreads + 4) * sizeof(std::uint32_t) +
           (strip > merge ? strip : merge);
}

// ---- bits and runs

// Rows of bits, each `words` long, and the number of runs that begin before each word.
struct BitRows {
    const std::uint32_t* bits;
    const std::uint32_t* before;
    std::int32_t words;
};

PTXSDK_HD inline std::uint32_t run_starts(std::uint32_t bits, std::uint32_t previous) {
    return bits & ~(bits << 1 | previous >> 31);
}

// The run that pixel x of row `row` lies in.
template <typename Load>
PTXSDK_DEVICE std::uint32_t run_of(const BitRows& rows, std::int32_t row, std::int32_t x, Load load) {
    const std::int32_t word = x / 32, at = row * rows.words + word;
    const std::uint32_t previous = word == 0 ? 0 : load(rows.bits + at - 1);
    const std::uint32_t upto = 0xffffffffu >> (31 - x % 32);
    return load(rows.before + at) +
           static_cast<std::uint32_t>(count_bits(run_starts(load(rows.bits + at), previous) & upto)) - 1;
}

// Calls visit(x, x of the row above) for at least one pair of pixels of every two runs that touch, corners
// included, among the pixels of `here` in word `word`.
template <typename Load, typename Visit>
PTXSDK_DEVICE void for_touching(const std::uint32_t* here, const std::uint32_t* above, std::int32_t word,
                                std::int32_t words, Load load, Visit visit) {
    const std::uint32_t own = load(here + word);
    if (own == 0) return;
    const auto at = [&](const std::uint32_t* row, std::int32_t i) {
        return i < 0 || i >= words ? 0u : load(row + i);
    };
    const std::uint32_t up = load(above + word);
    const std::uint32_t own_before = own << 1 | at(here, word - 1) >> 31;  // bit x: pixel x - 1
    const std::uint32_t own_after = own >> 1 | at(here, word + 1) << 31;
    const std::uint32_t up_before = up << 1 | at(above, word - 1) >> 31;
    const std::uint32_t up_after = up >> 1 | at(above, word + 1) << 31;
    const auto each_bit = [&](std::uint32_t bits, std::int32_t dx) {
        for (; bits != 0; bits &= bits - 1) {
            const std::int32_t x = 32 * word + lowest_bit(bits);
            visit(x, x + dx);
        }
    };
    each_bit(own & up & ~(own_before & up_before), 0);
    each_bit(own & ~up & up_before & ~own_before, -1);
    each_bit(own & ~up & up_after & ~own_after, 1);
}

template <typename Load>
PTXSDK_DEVICE std::uint32_t find_root(std::uint32_t* parents, std::uint32_t node, Load load) {
    for (std::uint32_t parent = load(parents + node); parent != node; parent = load(parents + node))
        node = parent;
    return node;
}

// Joins two trees; the smaller index becomes the root, whoever else joins at the same time.
template <typename Block, typename Load>
PTXSDK_DEVICE void unite(std::uint32_t* parents, std::uint32_t a, std::uint32_t b, Load load) {
    for (;;) {
        a = find_root(parents, a, load);
        b = find_root(parents, b, load);
        if (a == b) return;
        if (a < b) {
            const std::uint32_t larger = b;
            b = a;
            a = larger;
        }
        const std::uint32_t before = Block::fetch_min(parents + a, b);
        if (before == a) return;
        a = before;
    }
}

// values[i] becomes the sum of those before it.  `partial` holds two values a thread.
template <typename Block>
PTXSDK_DEVICE void exclusive_scan(const Block& block, std::uint32_t* values, std::int32_t count,
                                  std::uint32_t* partial) {
    const std::int32_t threads = block.threads(), share = (count + threads - 1) / threads;
    block.each([&](int thread) {
        std::uint32_t sum = 0;
        for (std::int32_t i = thread * share; i < (thread + 1) * share && i < count; ++i) sum += values[i];
        partial[thread] = sum;
    });
    std::int32_t from = 0;
    for (std::int32_t step = 1; step < threads; step *= 2, from = threads - from) {
        block.each([&](int thread) {
            const std::uint32_t own = partial[from + thread];
            partial[threads - from + thread] = thread < step ? own : own + partial[from + thread - step];
        });
    }
    block.each([&](int thread) {
        std::uint32_t sum = thread == 0 ? 0 : partial[from + thread - 1];
        for (std::int32_t i = thread * share; i < (thread + 1) * share && i < count; ++i) {
            const std::uint32_t own = values[i];
            values[i] = sum;
            sum += own;
        }
    });
}

// ---- scores

PTXSDK_HD inline float from_half(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude < 0x0400u)  // subnormal
        return std::bit_cast<float>(
            std::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 5.9604644775390625e-8f) | sign);
    if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

PTXSDK_DEVICE inline float logit_at(const Logits& logits, std::size_t i) {
    return logits.half ? from_half(static_cast<const std::uint16_t*>(logits.data)[i])
                       : static_cast<const float*>(logits.data)[i];
}

struct Chunk {
    float z[kChunk];
};

// Logits [first, first + count), at most kChunk; 16 bytes at a time where they lie so.
template <typename Block>
PTXSDK_DEVICE Chunk chunk_at(const Logits& logits, std::size_t first, std::int32_t count) {
    Chunk chunk;
    const auto* from = static_cast<const float*>(logits.data) + first;
    if (!logits.half && count == kChunk && reinterpret_cast<std::uintptr_t>(from) % sizeof(Vector16) == 0) {
        PTXSDK_UNROLL(4)
        for (int i = 0; i < kChunk; i += 4) {
            const Vector16 four = Block::load16(reinterpret_cast<const std::byte*>(from + i));
            for (int j = 0; j < 4; ++j) chunk.z[i + j] = std::bit_cast<float>(four.words[j]);
        }
    } else {
        PTXSDK_UNROLL(16)
        for (int i = 0; i < kChunk; ++i) chunk.z[i] = i < count ? logit_at(logits, first + i) : 0.0f;
    }
    return chunk;
}

PTXSDK_HD inline Score no_score() { return {0, 0, -INFINITY, 0}; }

PTXSDK_DEVICE inline Score combined(const Score& a, const Score& b) {
    const float top = fmaxf(a.top, b.top);
    const float sum = top == -INFINITY ? 0.0f : a.sum_exp * expf(a.top - top) + b.sum_exp * expf(b.top - top);
    return {a.linear + b.linear, a.rest + b.rest, top, sum};
}

// The score of a few logits, added in float32.
class ScoreSum {
  public:
    PTXSDK_DEVICE void add(float z, ScoreMethod method) {
        const float e = expf(-fabsf(z));
        if (method == ScoreMethod::paper_098) {
            rest_ += log1pf(-0.02f * (z < 0 ? e : 1.0f) / (1.0f + e));
        } else {
            linear_ += fmaxf(z, 0.0f);
            rest_ += log1pf(e);
        }
        if (z > top_) {
            sum_exp_ = sum_exp_ * expf(top_ - z) + 1.0f;
            top_ = z;
        } else {
            sum_exp_ += expf(z - top_);
        }
    }
    PTXSDK_DEVICE Score score() const { return {linear_, rest_, top_, sum_exp_}; }

  private:
    float linear_ = 0, rest_ = 0, top_ = -INFINITY, sum_exp_ = 0;
};

// scores[0] becomes the sum of all threads'.
template <typename Block>
PTXSDK_DEVICE void add_scores(const Block& block, Score* scores) {
    for (int half = block.threads() / 2; half > 0; half /= 2)
        block.each([&](int thread) {
            if (thread < half) scores[thread] = combined(scores[thread], scores[thread + half]);
        });
}

// The logits that a film's score is made of, as one list.
struct Scored {
    Logits logits;
    std::size_t first;  // of this film
    std::int32_t count, columns, stride;

    PTXSDK_DEVICE float operator[](std::int32_t i) const {
        return logit_at(logits, first + static_cast<std::size_t>(i / columns) * stride + i % columns);
    }
};

// The mean of the k largest, by radix select: the k-th largest digit by digit, then the sum of all above it.
template <typename Block>
PTXSDK_DEVICE double mean_of_largest(const Block& block, const Scored& scored, std::uint32_t k,
                                     std::uint32_t* histogram, std::uint32_t* partial, Score* sums) {
    const auto count = static_cast<std::uint32_t>(scored.count);
    const std::uint32_t wanted = k < count ? k : count;
    std::uint32_t prefix = 0,
                  rank = wanted;  // the k-th largest begins with prefix; it is rank-th among those
    for (int shift = 24; shift >= 0; shift -= 8) {
        block.each([&](int thread) { histogram[thread] = 0; });
        block.each([&](int thread) {
            for (std::int32_t i = thread; i < scored.count; i += block.threads()) {
                const std::uint32_t key = ordered(scored[i]);
                if (shift == 24 || key >> (shift + 8) == prefix)
                    Block::fetch_add(histogram + (255 - (key >> shift & 255u)), 1);  // largest digit first
            }
        });
        // After the scan histogram[d] counts the larger digits; the last bin that leaves rank above it is
        // ours.
        exclusive_scan(block, histogram, 256, partial);
        std::uint32_t digit = 0;
        for (std::uint32_t bit = 128; bit > 0; bit /= 2)
            if (histogram[digit + bit] < rank) digit += bit;
        const std::uint32_t larger = histogram[digit];
        block.each([](int) {});  // all have read before the next round writes
        rank -= larger;
        prefix = prefix << 8 | (255 - digit);
    }
    block.each([&](int thread) {
        double sum = 0;
        for (std::int32_t i = thread; i < scored.count; i += block.threads())
            if (ordered(scored[i]) > prefix) sum += scored[i];
        sums[thread] = {sum, 0, -INFINITY, 0};
    });
    add_scores(block, sums);
    return (sums[0].linear + static_cast<double>(rank) * unordered(prefix)) / wanted;
}

// ---- one film

struct FilmMap {
    const AggregateInput& input;
    const AggregateRules& rules;
    Content content;
    std::byte* scratch;
    AggregateResult* result;
    std::int32_t index;  // of the film in the batch

    PTXSDK_DEVICE std::size_t pixels() const { return static_cast<std::size_t>(input.rows) * input.columns; }
    PTXSDK_DEVICE std::size_t pixel(std::int32_t y, std::int32_t x) const {
        return index * pixels() + static_cast<std::size_t>(y) * input.columns + x;
    }
    PTXSDK_DEVICE Scored scored() const {
        const std::int32_t width = content.x1 - content.x0;
        if (rules.source == ScoreSource::patch)
            return {input.patch, static_cast<std::size_t>(index) * input.patches, input.patches,
                    input.patches, 0};
        return {input.mask, pixel(content.y0, content.x0), width * (content.y1 - content.y0), width,
                input.columns};
    }
    template <typename T>
    PTXSDK_DEVICE T* at(std::size_t offset) const {
        return reinterpret_cast<T*>(scratch + offset);
    }
    PTXSDK_DEVICE std::uint32_t* counters() const { return at<std::uint32_t>(0); }
};

enum Counter { components, blocks_done, flags };

// Adds pixels [x, x + length) of row y to a record that other threads add to as well.
template <typename Block>
PTXSDK_DEVICE void add_run(const FilmMap& film, RegionRecord& record, std::int32_t y, std::int32_t x,
                           std::int32_t length) {
    const auto pixel = static_cast<std::uint32_t>(y * film.input.columns + x);
    std::uint64_t peak = 0, probability = 0;
    for (std::int32_t i = 0; i < length; ++i) {
        const float z = logit_at(film.input.mask, film.pixel(y, x + i));
        const std::uint64_t key = peak_key(z, pixel + static_cast<std::uint32_t>(i));
        peak = key > peak ? key : peak;
        probability += static_cast<std::uint64_t>(sigmoid(z) * 4294967296.0f);
    }
    Block::fetch_add(&record.area, static_cast<std::uint32_t>(length));
    Block::fetch_min(&record.first, pixel);
    Block::lower(&record.x0, x);
    Block::lower(&record.y0, y);
    Block::raise(&record.x1, x + length);
    Block::raise(&record.y1, y + 1);
    Block::add(&record.twice_x,
               static_cast<std::uint64_t>(length) * static_cast<std::uint64_t>(2 * x + length));
    Block::add(&record.twice_y, static_cast<std::uint64_t>(length) * static_cast<std::uint64_t>(2 * y + 1));
    Block::raise(&record.peak, peak);
    Block::add(&record.probability, probability);
}

template <typename Block>
PTXSDK_DEVICE RegionRecord fresh_record(const RegionRecord* record) {
    return {Block::fresh(&record->area),       Block::fresh(&record->first),   Block::fresh(&record->x0),
            Block::fresh(&record->y0),         Block::fresh(&record->x1),      Block::fresh(&record->y1),
            Block::fresh(&record->twice_x),    Block::fresh(&record->twice_y), Block::fresh(&record->peak),
            Block::fresh(&record->probability)};
}

template <typename Block>
PTXSDK_DEVICE void merge_record(RegionRecord& into, const RegionRecord& other) {
    Block::fetch_add(&into.area, other.area);
    Block::fetch_min(&into.first, other.first);
    Block::lower(&into.x0, other.x0);
    Block::lower(&into.y0, other.y0);
    Block::raise(&into.x1, other.x1);
    Block::raise(&into.y1, other.y1);
    Block::add(&into.twice_x, other.twice_x);
    Block::add(&into.twice_y, other.twice_y);
    Block::raise(&into.peak, other.peak);
    Block::add(&into.probability, other.probability);
}

// The score of the patches, if that is the film's, and whether they are finite.
template <typename Block>
PTXSDK_DEVICE void score_patches(const Block& block, const FilmMap& film, const ScratchLayout& layout,
                                 Score* scores) {
    const bool scored = film.rules.source == ScoreSource::patch;
    block.each([&](int thread) {
        ScoreSum score;
        bool finite = true;
        const std::size_t first = static_cast<std::size_t>(film.index) * film.input.patches;
        for (std::int32_t i = thread; i < film.input.patches; i += block.threads()) {
            const float z = logit_at(film.input.patch, first + i);
            finite = finite && is_finite(z);
            if (scored) score.add(z, film.rules.method);
        }
        scores[thread] = score.score();
        if (!finite) Block::set_bits(film.counters() + flags, patch_not_finite);
    });
    if (!scored) return;
    add_scores(block, scores);
    block.each([&](int thread) {
        if (thread == 0) film.at<Score>(layout.scores)[layout.strips] = scores[0];
    });
}

// The strip's part of the score, if it is the mask's, and its components as records in scratch memory.
template <typename Block>
PTXSDK_DEVICE void label_strip(const Block& block, const FilmMap& film, const ScratchLayout& layout,
                               std::int32_t strip, Score* scores, std::uint32_t* partial,
                               std::uint32_t* rest) {
    const std::int32_t words = layout.words, first_row = strip * kStripRows;
    const std::int32_t rows =
        film.input.rows - first_row < kStripRows ? film.input.rows - first_row : kStripRows;
    const std::int32_t row_chunks = (film.input.columns + kChunk - 1) / kChunk;
    std::uint32_t* bits = rest;
    std::uint32_t* before = bits + kStripRows * words;
    std::uint32_t* parents = before + kStripRows * words;
    std::uint32_t* ids = parents + kStripRows * layout.row_runs;
    std::uint32_t* run_count = partial + 2 * kAggregateThreads;
    const bool scored = film.rules.source == ScoreSource::mask;
    const auto load = [](const std::uint32_t* value) { return *value; };
    const auto each_chunk = [&](int thread, auto visit) {
        for (std::int32_t chunk = thread; chunk < rows * row_chunks; chunk += block.threads()) {
            const std::int32_t row = chunk / row_chunks, x = chunk % row_chunks * kChunk;
            visit(row, x, film.input.columns - x < kChunk ? film.input.columns - x : kChunk);
        }
    };

    block.each([&](int thread) {
        for (std::int32_t i = thread; i < rows * words; i += block.threads()) bits[i] = 0;
    });
    block.each([&](int thread) {
        ScoreSum score;
        bool finite = true;
        each_chunk(thread, [&](std::int32_t row, std::int32_t x, std::int32_t count) {
            const std::int32_t y = first_row + row;
            const bool inside = y >= film.content.y0 && y < film.content.y1;
            std::uint32_t found = 0;
            const Chunk chunk = chunk_at<Block>(film.input.mask, film.pixel(y, x), count);
            PTXSDK_UNROLL(16)
            for (std::int32_t i = 0; i < kChunk; ++i) {
                const float z = chunk.z[i];
                finite = finite && is_finite(z);
                const bool counts = inside && x + i >= film.content.x0 && x + i < film.content.x1;
                if (counts && z >= film.rules.low) found |= 1u << i;
            }
            if (found != 0) Block::set_bits(bits + row * words + x / 32, found << x % 32);
            if (!scored || !inside) return;
            const std::int32_t end = x + count < film.content.x1 ? x + count : film.content.x1;
            PTXSDK_UNROLL(1)  // the logarithms are long, and most films are scored by their patches
            for (std::int32_t at = x > film.content.x0 ? x : film.content.x0; at < end; ++at)
                score.add(logit_at(film.input.mask, film.pixel(y, at)), film.rules.method);
        });
        if (scored) scores[thread] = score.score();
        if (!finite) Block::set_bits(film.counters() + flags, mask_not_finite);
    });
    if (scored) add_scores(block, scores);

    block.each([&](int thread) {
        if (scored && thread == 0) film.at<Score>(layout.scores)[strip] = scores[0];
        for (std::int32_t i = thread; i < rows * words; i += block.threads())
            before[i] =
                static_cast<std::uint32_t>(count_bits(run_starts(bits[i], i % words == 0 ? 0 : bits[i - 1])));
        // What the scan loses: the runs that begin in the last word.
        if (thread == 0) {
            const std::int32_t last = rows * words - 1;
            *run_count = static_cast<std::uint32_t>(
                count_bits(run_starts(bits[last], last % words == 0 ? 0 : bits[last - 1])));
        }
    });
    exclusive_scan(block, before, rows * words, partial);
    const std::uint32_t runs = before[rows * words - 1] + *run_count;

    const BitRows strip_rows{bits, before, words};
    block.each([&](int thread) {
        for (std::uint32_t run = static_cast<std::uint32_t>(thread); run < runs; run += block.threads())
            parents[run] = run;
    });
    const auto racing = [](std::uint32_t* value) { return Block::racing(value); };
    block.each([&](int thread) {
        for (std::int32_t i = words + thread; i < rows * words; i += block.threads()) {
            const std::int32_t row = i / words;
            for_touching(bits + row * words, bits + (row - 1) * words, i % words, words, load,
                         [&](std::int32_t x, std::int32_t above) {
                             unite<Block>(parents, run_of(strip_rows, row, x, load),
                                          run_of(strip_rows, row - 1, above, load), racing);
                         });
        }
    });
    auto* records = film.at<RegionRecord>(layout.records);
    block.each([&](int thread) {
        for (std::uint32_t run = static_cast<std::uint32_t>(thread); run < runs; run += block.threads()) {
            if (parents[run] != run) continue;
            ids[run] = Block::fetch_add(film.counters() + components, 1);
            film.at<std::uint32_t>(layout.parents)[ids[run]] = ids[run];
            records[ids[run]] = {0, 0xffffffffu, INT32_MAX, INT32_MAX, 0, 0, 0, 0, 0, 0};
        }
    });
    const auto id_of = [&](std::uint32_t run) { return ids[find_root(parents, run, load)]; };
    block.each([&](int thread) {
        each_chunk(thread, [&](std::int32_t row, std::int32_t x, std::int32_t) {
            std::uint32_t part = bits[row * words + x / 32] >> x % 32 & 0xffffu;
            while (part != 0) {
                const int begin = lowest_bit(part), length = lowest_bit(~(part >> begin));
                add_run<Block>(film, records[id_of(run_of(strip_rows, row, x + begin, load))],
                               first_row + row, x + begin, length);
                part &= ~(((1u << length) - 1) << begin);
            }
        });
        for (std::int32_t i = thread; i < 2 * words; i += block.threads()) {
            const std::int32_t border = i / words, word = i % words, row = border == 0 ? 0 : rows - 1;
            const std::size_t to = static_cast<std::size_t>(2 * strip + border) * words + word;
            const std::uint32_t row_before = before[row * words];
            film.at<std::uint32_t>(layout.borders)[to] = bits[row * words + word];
            film.at<std::uint32_t>(layout.before)[to] = before[row * words + word] - row_before;
            std::uint32_t starts =
                run_starts(bits[row * words + word], word == 0 ? 0 : bits[row * words + word - 1]);
            for (std::uint32_t run = before[row * words + word]; starts != 0; starts &= starts - 1, ++run)
                film.at<std::uint32_t>(
                    layout.ids)[static_cast<std::size_t>(2 * strip + border) * layout.row_runs + run -
                                row_before] = id_of(run);
        }
    });
}

// Joins what the strips found, and writes the result.
template <typename Block>
PTXSDK_DEVICE void merge_strips(const Block& block, const FilmMap& film, const ScratchLayout& layout,
                                Score* scores, std::uint32_t* partial, std::uint32_t* rest) {
    constexpr int kAhead = 4;
    const std::int32_t words = layout.words;
    const bool by_mask = film.rules.source == ScoreSource::mask;
    const auto load = [](const std::uint32_t* value) { return Block::fresh(value); };
    auto* parents = film.at<std::uint32_t>(layout.parents);
    auto* records = film.at<RegionRecord>(layout.records);
    std::uint32_t* found = partial + 2 * kAggregateThreads;
    std::uint32_t* list = rest;
    std::uint32_t* areas = list + kMostRegions;
    std::uint32_t* firsts = areas + kMostRegions;
    AggregateResult& result = *film.result;

    block.each([&](int thread) {
        Score sum = no_score();
        const std::int32_t first = by_mask ? 0 : layout.strips,
                           end = by_mask ? layout.strips : layout.blocks();
        for (std::int32_t i = first + thread; i < end; i += block.threads()) {
            const Score* score = film.at<Score>(layout.scores) + i;
            sum = combined(sum, {Block::fresh(&score->linear), Block::fresh(&score->rest),
                                 Block::fresh(&score->top), Block::fresh(&score->sum_exp)});
        }
        scores[thread] = sum;
        if (thread == 0) *found = 0;
        const auto* borders = film.at<std::uint32_t>(layout.borders);
        const auto* before = film.at<std::uint32_t>(layout.before);
        const auto* ids = film.at<std::uint32_t>(layout.ids);
        const std::int32_t border_words = layout.strips * words;
        for (std::int32_t i = words + thread; i < border_words; i += kAhead * block.threads()) {
            // Most are 0: they are fetched together, not one after the other.
            std::uint32_t ahead[kAhead], filled = 0;
            PTXSDK_UNROLL(4)
            for (int k = 0; k < kAhead; ++k) {
                const std::int32_t wanted = i + k * block.threads();
                const std::int32_t at = wanted < border_words ? wanted : border_words - 1;
                ahead[k] = load(borders + at / words * 2 * words + at % words);
            }
            PTXSDK_UNROLL(4)
            for (int k = 0; k < kAhead; ++k)
                if (i + k * block.threads() < border_words && ahead[k] != 0) filled |= 1u << k;
            for (; filled != 0; filled &= filled - 1) {
                const std::int32_t at = i + lowest_bit(filled) * block.threads();
                const std::int32_t here = 2 * (at / words),
                                   above = here - 1;  // the strip's first row, the last one above it
                const BitRows rows{borders, before, words};
                for_touching(
                    borders + here * words, borders + above * words, at % words, words, load,
                    [&](std::int32_t x, std::int32_t x_above) {
                        const auto id = [&](std::int32_t row, std::int32_t column) {
                            return load(ids + row * layout.row_runs + run_of(rows, row, column, load));
                        };
                        unite<Block>(parents, id(here, x), id(above, x_above), load);
                    });
            }
        }
    });
    if (by_mask) add_scores(block, scores);
    const std::uint32_t count = load(film.counters() + components);
    block.each([&](int thread) {
        if (thread == 0) result.score = scores[0];
        for (std::uint32_t id = static_cast<std::uint32_t>(thread); id < count; id += block.threads()) {
            const std::uint32_t root = find_root(parents, id, load);
            if (root != id) merge_record<Block>(records[root], fresh_record<Block>(records + id));
        }
    });
    block.each([&](int thread) {
        for (std::uint32_t id = static_cast<std::uint32_t>(thread); id < count; id += block.threads()) {
            if (load(parents + id) != id) continue;
            const std::uint32_t area = load(&records[id].area);
            if (area < film.rules.min_area || peak_logit(Block::fresh(&records[id].peak)) < film.rules.high)
                continue;
            const std::uint32_t slot = Block::fetch_add(found, 1);
            if (slot >= kMostRegions) continue;
            list[slot] = id;
            areas[slot] = area;
            firsts[slot] = load(&records[id].first);
        }
    });
    const std::uint32_t regions = *found < kMostRegions ? *found : kMostRegions;
    block.each([&](int thread) {
        for (std::uint32_t i = static_cast<std::uint32_t>(thread); i < regions; i += block.threads()) {
            std::uint32_t rank = 0;
            for (std::uint32_t j = 0; j < regions; ++j)
                rank += areas[j] > areas[i] || (areas[j] == areas[i] && firsts[j] < firsts[i]) ? 1 : 0;
            result.records[rank] = fresh_record<Block>(records + list[i]);
        }
        if (thread == 0) {
            result.regions = regions;
            result.flags = load(film.counters() + flags) | (*found > kMostRegions ? too_many_regions : 0u);
            result.top_k = 0;
            film.counters()[components] = film.counters()[blocks_done] = film.counters()[flags] =
                0;  // the next launch
        }
    });
    if (film.rules.method == ScoreMethod::top_k) {
        const double mean = mean_of_largest(block, film.scored(), film.rules.k, rest, partial, scores);
        block.each([&](int thread) {
            if (thread == 0) result.top_k = mean;
        });
    }
}

// Strip number `strip` of a film, or its patches where that is the number of strips.
template <typename Block>
PTXSDK_DEVICE void aggregate_block(const Block& block, const FilmMap& film, std::int32_t strip) {
    auto* scores = reinterpret_cast<Score*>(block.shared);
    auto* partial = reinterpret_cast<std::uint32_t*>(scores + kAggregateThreads);  // two a thread and four
    std::uint32_t* rest = partial + 2 * kAggregateThreads + 4;
    std::uint32_t* last = partial + 2 * kAggregateThreads + 1;
    const ScratchLayout layout(film.input.rows, film.input.columns);
    if (strip == layout.strips)
        score_patches(block, film, layout, scores);
    else
        label_strip(block, film, layout, strip, scores, partial, rest);
    block.each([&](int thread) {
        if (thread != 0) return;
        const std::uint32_t before = Block::arrive(film.counters() + blocks_done);
        *last = before + 1 == static_cast<std::uint32_t>(layout.blocks()) ? 1 : 0;
    });
    if (*last != 0) merge_strips(block, film, layout, scores, partial, rest);
}

}  // namespace ptxsdk::cuda
