// aggregate, CUDA twin: the launch.
#include "ops/aggregate_block.hpp"
#include "ops/cuda_check.hpp"
#include "ops/preprocess_block.hpp"

namespace ptxsdk::cuda {

// Not in an unnamed namespace: nvcc would name that after the folder it works in.
__global__ void __launch_bounds__(kAggregateThreads, 4)
    aggregate_kernel(const Film* films, AggregateInput input, AggregateRules rules, std::byte* scratch,
                     std::size_t film_scratch, std::byte* results, std::size_t film_results) {
    extern __shared__ __align__(16) std::byte shared[];
    const auto index = static_cast<std::int32_t>(blockIdx.y);
    const FilmMap film{input,
                       rules,
                       films[index].content,
                       scratch + index * film_scratch,
                       reinterpret_cast<AggregateResult*>(results + index * film_results),
                       index};
    aggregate_block(DeviceBlock{shared}, film, static_cast<std::int32_t>(blockIdx.x));
}

void aggregate(const Film* films, int count, const AggregateInput& input, const AggregateRules& rules,
               std::byte* scratch, std::byte* results, std::size_t film_results, Stream stream) {
    const ScratchLayout layout(input.rows, input.columns);
    const dim3 grid(static_cast<unsigned>(layout.blocks()), static_cast<unsigned>(count));
    aggregate_kernel<<<grid, kAggregateThreads, aggregate_shared_bytes(input.columns),
                       static_cast<cudaStream_t>(stream)>>>(films, input, rules, scratch, layout.size,
                                                            results, film_results);
    check(cudaGetLastError(), "aggregate");
}

}  // namespace ptxsdk::cuda
