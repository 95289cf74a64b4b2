// Fuzz target: preprocess with any shape, stride, alignment, type and parameter.  It throws
// std::invalid_argument or fills the target with values that its parameters allow, touching nothing else, on
// one thread as on three.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "ops/preprocess.hpp"
#include "ops/preprocess_film.hpp"
#include "tests/fuzz.hpp"

namespace {

using namespace ptxsdk;

constexpr std::array kStored{StoredType::u8, StoredType::u16, StoredType::i16, StoredType::f32};

// Lowest and highest byte, relative to the first pixel, of an image with these strides.
struct Extent {
    std::ptrdiff_t low = 0, high = 0;

    void add(std::ptrdiff_t stride, int count) {
        const std::ptrdiff_t last = stride * (count - 1);
        (last < 0 ? low : high) += last;
    }
};

float some_float(fuzz::Bytes& bytes) {
    switch (bytes.within(0, 5)) {
        case 0:
            return bytes.take<float>();
        case 1:
            return std::numeric_limits<float>::quiet_NaN();
        case 2:
            return 0.0F;
        default:
            return static_cast<float>(bytes.take<std::int16_t>()) / 64;
    }
}

PreprocessParameters some_parameters(fuzz::Bytes& bytes, StoredType type, std::vector<float>& table) {
    PreprocessParameters parameters;
    parameters.transfer = std::array{Transfer::linear, Transfer::sigmoid,
                                     Transfer::table}[static_cast<std::size_t>(bytes.within(0, 2))];
    parameters.low = some_float(bytes);
    parameters.high = bytes.flag() ? parameters.low + std::abs(some_float(bytes)) : some_float(bytes);
    parameters.invert = bytes.flag();
    parameters.mean = bytes.flag() ? 0.5F : some_float(bytes);
    parameters.std = bytes.flag() ? 0.25F : some_float(bytes);
    const auto usable = usable_isas();
    parameters.isa = usable[static_cast<std::size_t>(bytes.within(0, static_cast<int>(usable.size()) - 1))];
    if (bytes.flag()) {
        table.resize(type == StoredType::u8 ? 256 : 65536);
        for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<float>(i % 17) / 16;
        parameters.table = table.data();
    }
    return parameters;
}

bool is_plain(const PreprocessParameters& parameters) {
    return std::abs(parameters.mean) < 1e6F && parameters.std > 1e-6F && parameters.std < 1e6F;
}

void check_values(const std::byte* data, const TargetTensor& target, const PreprocessParameters& parameters) {
    if (target.type != TensorType::f32 || !is_plain(parameters)) return;
    const float low = (0 - parameters.mean) / parameters.std, high = (1 - parameters.mean) / parameters.std;
    const float slack = 1e-4F * (1 + std::abs(low) + std::abs(high));
    for (int row = 0; row < target.rows; ++row)
        for (int column = 0; column < target.columns; ++column) {
            float value = 0;
            std::memcpy(&value, data + row * target.row_stride + column * 4, 4);
            fuzz::expect(value >= low - slack && value <= high + slack, "values lie between black and white");
        }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Bytes bytes(data, size);
    const StoredType type = kStored[static_cast<std::size_t>(bytes.within(0, 3))];
    const auto item = static_cast<std::ptrdiff_t>(size_of(type));
    const int rows = bytes.within(0, 40), columns = bytes.within(0, 150);
    const std::ptrdiff_t steps[] = {item, -item, 2 * item, item + 1, 0, -3};
    const std::ptrdiff_t column_stride = steps[bytes.within(0, 5)];
    const std::ptrdiff_t row_stride =
        bytes.flag() ? item * columns : std::ptrdiff_t{bytes.within(0, 700)} - 350;
    Extent extent;
    extent.add(row_stride, std::max(rows, 1));
    extent.add(column_stride, std::max(columns, 1));
    const auto source_size = static_cast<std::size_t>(extent.high - extent.low + item);
    fuzz::Exact source(source_size, static_cast<std::size_t>(bytes.within(0, 3)));

    const bool half = bytes.flag();
    const int target_rows = bytes.within(1, 24), target_columns = bytes.within(1, 24);
    const std::ptrdiff_t cell = half ? 2 : 4;
    const std::ptrdiff_t target_stride = cell * (target_columns + bytes.within(0, 3));
    Content content{0, 0, target_columns, target_rows};
    if (bytes.flag())
        content = {bytes.within(-1, 25), bytes.within(-1, 25), bytes.within(-1, 25), bytes.within(-1, 25)};
    std::vector<float> table;
    PreprocessParameters parameters = some_parameters(bytes, type, table);
    parameters.threads = bytes.within(-1, 20) == -1 ? -1 : 1;
    const bool also_threaded = bytes.within(0, 15) == 0;
    bytes.fill(source.data(), source_size);

    const SourceImage image{source.data() - extent.low, type, rows, columns, row_stride, column_stride};
    const auto run = [&](fuzz::Exact& memory) {
        return preprocess(image,
                          {memory.data(), half ? TensorType::f16 : TensorType::f32, target_rows,
                           target_columns, target_stride},
                          content, parameters);
    };
    const auto target_size =
        static_cast<std::size_t>(target_stride * (target_rows - 1) + cell * target_columns);
    fuzz::Exact target(target_size, 0);
    std::memset(target.data(), 0x7F, target_size);
    bool finite = false;
    try {
        finite = run(target);
    } catch (const std::invalid_argument&) {
        return 0;
    }
    fuzz::expect(finite || type == StoredType::f32, "integers are finite");
    if (!finite) return 0;
    check_values(
        target.data(),
        {nullptr, half ? TensorType::f16 : TensorType::f32, target_rows, target_columns, target_stride},
        parameters);
    if (also_threaded) {
        fuzz::Exact other(target_size, 0);
        std::memset(other.data(), 0x7F, target_size);
        parameters.threads = 3;
        fuzz::expect(run(other), "threads change nothing");
        fuzz::expect(std::memcmp(target.data(), other.data(), target_size) == 0, "threads change nothing");
    }
    return 0;
}
