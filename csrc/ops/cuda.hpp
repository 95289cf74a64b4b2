// The CUDA twins of the operations, as the binding calls them.  Everything is asynchronous on `stream`, an
// address of a cudaStream_t; every failure of CUDA is thrown.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace ptxsdk::cuda {

struct Film;
struct PreprocessTarget;
struct AggregateInput;
struct AggregateRules;

using Stream = void*;

class CudaError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// Films and everything in `target` are addresses on the device.  widest_tile: source columns that the widest
// tile of any film covers (tile_source_columns).
void preprocess(const Film* films, int count, int widest_tile, const PreprocessTarget& target, Stream stream);

// One result a film at `results`, each film_results bytes after the one before (AggregateResult); of the
// films only the content is read.  `scratch`: ScratchLayout::size bytes a film, zeroed before the first call,
// one call at a time.
void aggregate(const Film* films, int count, const AggregateInput& input, const AggregateRules& rules,
               std::byte* scratch, std::byte* results, std::size_t film_results, Stream stream);

// Copies between addresses of the host and of the device.
void copy(std::byte* to, const std::byte* from, std::size_t size, Stream stream);

void zero(std::byte* to, std::size_t size, Stream stream);

// Waits until the stream has nothing left to do; false when it still has after `seconds`.
bool wait(Stream stream, double seconds);

}  // namespace ptxsdk::cuda
