// The CUDA twins played on the host, block after block: the module _cuda of the tests, where "device"
// addresses are addresses of the host.
#include <cstring>

#include "ops/aggregate_block.hpp"
#include "ops/cuda.hpp"
#include "ops/preprocess_block.hpp"
#include "tests/host_block.hpp"

namespace ptxsdk::cuda {

void preprocess(const Film* films, int count, int widest_tile, const PreprocessTarget& target, Stream) {
    const int strips = (target.rows + kTileRows - 1) / kTileRows;
    const int tiles = (target.columns + kTileColumns - 1) / kTileColumns;
    const auto kernel = [&](const HostBlock& block, int i) {
        const int index = i / (strips * tiles);
        const Film film = films[index];
        preprocess_block(block, film, target, i % tiles, i / tiles % strips, index);
    };
    launch(kPreprocessThreads, preprocess_shared_bytes(widest_tile), count * strips * tiles, kernel);
}

void aggregate(const Film* films, int count, const AggregateInput& input, const AggregateRules& rules,
               std::byte* scratch, std::byte* results, std::size_t film_results, Stream) {
    const ScratchLayout layout(input.rows, input.columns);
    const auto kernel = [&](const HostBlock& block, int i) {
        const int index = i / layout.blocks();
        const auto at = static_cast<std::size_t>(index);
        const FilmMap film{input,
                           rules,
                           films[index].content,
                           scratch + at * layout.size,
                           reinterpret_cast<AggregateResult*>(results + at * film_results),
                           index};
        aggregate_block(block, film, i % layout.blocks());
    };
    launch(kAggregateThreads, aggregate_shared_bytes(input.columns), count * layout.blocks(), kernel);
}

void copy(std::byte* to, const std::byte* from, std::size_t size, Stream) { std::memcpy(to, from, size); }

void zero(std::byte* to, std::size_t size, Stream) { std::memset(to, 0, size); }

bool wait(Stream, double) { return true; }

}  // namespace ptxsdk::cuda
