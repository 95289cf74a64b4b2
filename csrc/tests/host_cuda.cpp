// The CUDA twins played on the host, block after block: the module _cuda of the tests, where "device"
// addresses are addresses of the host.  Shared memory is filled with garbage first, as on the device.
#include <algorithm>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "ops/aggregate_block.hpp"
#include "ops/cuda.hpp"
#include "ops/preprocess_block.hpp"
#include "tests/host_block.hpp"

namespace ptxsdk::cuda {
namespace {

class SharedMemory {
  public:
    explicit SharedMemory(std::size_t size) : memory_((size + 15) / 16) {}
    HostBlock block(int threads) {
        std::memset(memory_.data(), 0xA5, memory_.size() * sizeof(Vector16));
        return {reinterpret_cast<std::byte*>(memory_.data()), threads};
    }

  private:
    std::vector<Vector16> memory_;
};

// Blocks finish in any order.
std::vector<int> shuffled(int count) {
    std::vector<int> order(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) order[static_cast<std::size_t>(i)] = i;
    std::shuffle(order.begin(), order.end(), std::mt19937{7});
    return order;
}

}  // namespace

void preprocess(const Film* films, int count, int widest_tile, const PreprocessTarget& target, Stream) {
    SharedMemory shared(preprocess_shared_bytes(widest_tile));
    for (int index = 0; index < count; ++index)
        for (const int strip : shuffled((target.rows + kTileRows - 1) / kTileRows))
            for (int tile = 0; tile * kTileColumns < target.columns; ++tile)
                preprocess_block(shared.block(kPreprocessThreads), films[index], target, tile, strip, index);
}

void aggregate(const Film* films, int count, const AggregateInput& input, const AggregateRules& rules,
               std::byte* scratch, std::byte* results, std::size_t film_results, Stream) {
    const ScratchLayout layout(input.rows, input.columns);
    SharedMemory shared(aggregate_shared_bytes(input.columns));
    for (int index = 0; index < count; ++index) {
        const FilmMap film{
            input,
            rules,
            films[index].content,
            scratch + static_cast<std::size_t>(index) * layout.size,
            reinterpret_cast<AggregateResult*>(results + static_cast<std::size_t>(index) * film_results),
            index};
        for (const int strip : shuffled(layout.strips))
            aggregate_block(shared.block(kAggregateThreads), film, strip);
    }
}

void copy(std::byte* to, const std::byte* from, std::size_t size, Stream) { std::memcpy(to, from, size); }

void zero(std::byte* to, std::size_t size, Stream) { std::memset(to, 0, size); }

bool wait(Stream, double) { return true; }

}  // namespace ptxsdk::cuda
