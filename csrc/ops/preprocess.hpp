// preprocess: stored film pixels to the network's input in one pass over the source.
//
//   display(v) = clamp((v - low) / (high - low), 0, 1)      linear
//              = 1 / (1 + exp(-(v - low) / (high - low)))   sigmoid (float32 sources; integers use a table)
//              = table[v - lowest]                          table, one entry a value of an 8 or 16 bit type
//   d(v)       = invert ? 1 - display(v) : display(v)       (a table has it folded in)
//   area(i, j) = mean of d over the source rectangle that target pixel (i, j) covers, partial pixels weighted
//   out        = (area - mean) / std inside `content`, (0 - mean) / std outside
//
// Source: uint8, uint16, int16, float32; any byte strides, also negative or unaligned.  Target: float32 or
// float16, contiguous rows.  The result does not depend on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ptxsdk {

enum class StoredType { u8, u16, i16, f32 };
enum class TensorType { f32, f16 };
enum class Transfer { linear, sigmoid, table };
enum class Isa { best, baseline, x86_64_v3 };

// Half-open rectangle of the target that the film fills.
struct Content {
    int x0, y0, x1, y1;
};

struct SourceImage {
    const std::byte* data;
    StoredType type;
    int rows, columns;
    std::ptrdiff_t row_stride, column_stride;  // bytes
};

struct TargetTensor {
    std::byte* data;
    TensorType type;
    int rows, columns;
    std::ptrdiff_t row_stride;  // bytes
};

struct PreprocessParameters {
    Transfer transfer = Transfer::linear;
    double low = 0, high = 1;      // stored values; linear and sigmoid
    const float* table = nullptr;  // 256 or 65536 display values; entry 0 is the type's lowest value
    bool invert = false;
    float mean = 0, std = 1;
    int threads = 0;  // 0: as many as the film is worth
    Isa isa = Isa::best;
};

// Fills the whole target.  Returns false when a float source holds NaN or infinity; the target is then
// unspecified. Throws std::invalid_argument for parameters that contradict each other or an instruction set
// this CPU lacks.
bool preprocess(const SourceImage& source, const TargetTensor& target, const Content& content,
                const PreprocessParameters& parameters);

// The instruction sets compiled in that this CPU runs, best last.
std::vector<Isa> usable_isas();

}  // namespace ptxsdk
