// preprocess: the pass over the source.  Rows are accumulated into column sums (vectorised), columns then
// gathered into target pixels; only whole target rows are shared out to threads.
#include "ops/preprocess.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <type_traits>

#include "ops/preprocess_film.hpp"
#include "ops/preprocess_rows.hpp"

namespace ptxsdk {
namespace {

constexpr double kPixelsPerThread = 1 << 20;  // below this a thread costs more than it brings
constexpr int kRowsPerBlock = 8;
constexpr int kMostThreads = 256;

std::vector<Span> make_spans(int source, int count) {
    std::vector<Span> spans;
    for (int j = 0; j < count; ++j)
        spans.push_back(make_span(static_cast<std::uint64_t>(j), static_cast<std::uint64_t>(source),
                                  static_cast<std::uint64_t>(count)));
    return spans;
}

Taps make_taps(const std::vector<Span>& spans) {
    int widest = 1;
    for (const Span& span : spans) widest = std::max(widest, span.whole + 2);
    Taps taps;
    taps.width = (static_cast<std::size_t>(widest) + kLanes - 1) / kLanes * kLanes;
    taps.weights.assign(taps.width * spans.size(), 0.0f);
    float* weights = taps.weights.data();
    for (const Span& span : spans) {
        taps.first.push_back(span.first);
        weights[0] = span.first_weight;
        std::fill_n(weights + 1, span.whole, 1.0f);
        weights[span.whole + 1] = span.last_weight;
        weights += taps.width;
    }
    return taps;
}

const RowKernels& kernels_for(Isa isa) {
    const auto usable = usable_isas();
    if (isa == Isa::best) isa = usable.back();
    if (std::find(usable.begin(), usable.end(), isa) == usable.end())
        throw std::invalid_argument("this CPU or build lacks the instruction set");
#if defined(__x86_64__)
    if (isa == Isa::x86_64_v3) return rows_x86_64_v3;
#endif
    return rows_baseline;
}

template <typename T>
int table_index(T value) {
    return static_cast<int>(value) - static_cast<int>(std::numeric_limits<T>::lowest());
}

// What one thread needs to turn source rows into target rows.
class RowWorker {
  public:
    RowWorker(const SourceImage& source, const PreprocessParameters& parameters, const Taps& columns)
        : source_(source),
          parameters_(parameters),
          columns_(columns),
          kernels_(kernels_for(parameters.isa)),
          packed_(is_packed(source)),
          sums_(static_cast<std::size_t>(source.columns) + columns.width, 0.0f),
          scratch_(packed_ ? 0 : static_cast<std::size_t>(source.columns) * size_of(source.type)) {
        // A table leaves low and high unchecked.
        if (parameters.transfer != Transfer::table)
            ramp_ = make_ramp(source.type, parameters.low, parameters.high);
    }

    // Adds source row `row` to the column sums.  False: it holds a value that is not finite.
    bool add(int row, float weight, bool fresh) {
        const std::byte* data = source_.data + row * source_.row_stride;
        if (!packed_) data = pack(data);
        switch (source_.type) {
            case StoredType::u8:
                return add_integer(reinterpret_cast<const std::uint8_t*>(data), kernels_.ramp_u8, weight,
                                   fresh);
            case StoredType::u16:
                return add_integer(reinterpret_cast<const std::uint16_t*>(data), kernels_.ramp_u16, weight,
                                   fresh);
            case StoredType::i16:
                return add_integer(reinterpret_cast<const std::int16_t*>(data), kernels_.ramp_i16, weight,
                                   fresh);
            case StoredType::f32:
                return add_float(reinterpret_cast<const float*>(data), weight, fresh);
        }
        return false;
    }

    // The sum of the rows added over the columns of each target pixel.
    void gather(float* out) const { kernels_.gather(sums_.data(), columns_, out); }

    // From the mean of a target pixel's contributions to its display value.
    float display(float mean) const {
        if (parameters_.transfer == Transfer::linear) mean = (mean - ramp_.low) / (ramp_.high - ramp_.low);
        const float value = std::clamp(mean, 0.0f, 1.0f);
        return parameters_.invert ? 1.0f - value : value;
    }

  private:
    static bool is_packed(const SourceImage& source) {
        const auto size = static_cast<std::ptrdiff_t>(size_of(source.type));
        return source.column_stride == size && source.row_stride % size == 0 &&
               reinterpret_cast<std::uintptr_t>(source.data) % static_cast<std::uintptr_t>(size) == 0;
    }

    const std::byte* pack(const std::byte* data) {
        const std::size_t size = size_of(source_.type);
        const auto columns = static_cast<std::size_t>(source_.columns);
        if (source_.column_stride == static_cast<std::ptrdiff_t>(size)) {
            std::memcpy(scratch_.data(), data, columns * size);
        } else {
            for (std::size_t i = 0; i < columns; ++i)
                std::memcpy(scratch_.data() + i * size,
                            data + static_cast<std::ptrdiff_t>(i) * source_.column_stride, size);
        }
        return scratch_.data();
    }

    template <typename T, typename RampKernel>
    bool add_integer(const T* row, RampKernel ramp_kernel, float weight, bool fresh) {
        const auto columns = static_cast<std::size_t>(source_.columns);
        if (parameters_.transfer == Transfer::table) {
            for (std::size_t i = 0; i < columns; ++i) {
                const float value = weight * parameters_.table[table_index(row[i])];
                sums_[i] = fresh ? value : sums_[i] + value;
            }
        } else {
            ramp_kernel(row, columns, weight, ramp_, fresh, sums_.data());
        }
        return true;
    }

    bool add_float(const float* row, float weight, bool fresh) {
        const auto columns = static_cast<std::size_t>(source_.columns);
        if (parameters_.transfer == Transfer::linear)
            return kernels_.ramp_f32(row, columns, weight, ramp_, fresh, sums_.data());
        const double scale = 1.0 / (parameters_.high - parameters_.low);
        bool finite = true;
        for (std::size_t i = 0; i < columns; ++i) {
            finite = finite && std::isfinite(row[i]);
            const double exponent = (static_cast<double>(row[i]) - parameters_.low) * scale;
            const auto value = weight * static_cast<float>(1.0 / (1.0 + std::exp(-exponent)));
            sums_[i] = fresh ? value : sums_[i] + value;
        }
        return finite;
    }

    const SourceImage& source_;
    const PreprocessParameters& parameters_;
    const Taps& columns_;
    const RowKernels& kernels_;
    Ramp ramp_{};
    bool packed_;
    std::vector<float> sums_;
    std::vector<std::byte> scratch_;
};

void store_row(const TargetTensor& target, int row, const std::vector<float>& values) {
    std::byte* out = target.data + row * target.row_stride;
    if (target.type == TensorType::f32) {
        std::memcpy(out, values.data(), values.size() * sizeof(float));
        return;
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
        const std::uint16_t half = to_half(values[i]);
        std::memcpy(out + i * sizeof half, &half, sizeof half);
    }
}

}  // namespace

std::vector<Isa> usable_isas() {
    std::vector<Isa> isas{Isa::baseline};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
        __builtin_cpu_supports("bmi")) {
        isas.push_back(Isa::x86_64_v3);
    }
#endif
    return isas;
}

bool preprocess(const SourceImage& source, const TargetTensor& target, const Content& content,
                const PreprocessParameters& parameters) {
    check_preprocess(source.type, source.rows, source.columns, target.rows, target.columns, content,
                     parameters);
    const Taps columns = make_taps(make_spans(source.columns, content.x1 - content.x0));
    const std::vector<Span> rows = make_spans(source.rows, content.y1 - content.y0);
    const float scale = inverse_area(source.rows, source.columns, content);
    const float inverse_std = 1.0f / parameters.std;
    const float padding = (0.0f - parameters.mean) * inverse_std;
    std::atomic<bool> finite{true};

    // Threads take target rows in small blocks, so one that starts late or not at all changes nothing but the
    // time.
    std::atomic<int> next_row{0};
    const auto run = [&] {
        RowWorker worker(source, parameters, columns);
        std::vector<float> means(columns.first.size());
        const std::vector<float> empty(static_cast<std::size_t>(target.columns), padding);
        std::vector<float> line = empty;
        for (int begin = next_row.fetch_add(kRowsPerBlock); begin < target.rows && finite;
             begin = next_row.fetch_add(kRowsPerBlock)) {
            for (int i = begin; i < std::min(begin + kRowsPerBlock, target.rows); ++i) {
                if (i < content.y0 || i >= content.y1) {
                    store_row(target, i, empty);
                    continue;
                }
                const Span& span = rows[static_cast<std::size_t>(i - content.y0)];
                bool row_finite = worker.add(span.first, span.first_weight, true);
                for (int k = 1; k <= span.whole; ++k) row_finite &= worker.add(span.first + k, 1.0f, false);
                if (span.last_weight > 0)
                    row_finite &= worker.add(span.first + span.whole + 1, span.last_weight, false);
                if (!row_finite) {
                    finite = false;
                    return;
                }
                worker.gather(means.data());
                for (std::size_t j = 0; j < means.size(); ++j)
                    line[static_cast<std::size_t>(content.x0) + j] =
                        (worker.display(means[j] * scale) - parameters.mean) * inverse_std;
                store_row(target, i, line);
            }
        }
    };

    const double worth = static_cast<double>(source.rows) * source.columns / kPixelsPerThread;
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    const int wanted = parameters.threads > 0 ? parameters.threads : std::min(cores, static_cast<int>(worth));
    const int helpers = std::clamp(wanted, 1, std::min(kMostThreads, target.rows)) - 1;
    std::vector<std::exception_ptr> failures(static_cast<std::size_t>(helpers));
    std::vector<std::jthread> threads;  // declared last: joined before anything they use goes
    threads.reserve(static_cast<std::size_t>(helpers));
    for (std::exception_ptr& failure : failures) {
        try {
            threads.emplace_back([&] {
                try {
                    run();
                } catch (...) {
                    failure = std::current_exception();
                }
            });
        } catch (const std::system_error&) {
            break;  // the system gives no more threads: those there are do the work
        }
    }
    run();
    threads.clear();  // joins
    for (const std::exception_ptr& failure : failures)
        if (failure) std::rethrow_exception(failure);
    return finite;
}

}  // namespace ptxsdk
