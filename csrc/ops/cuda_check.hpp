// A failure of the CUDA runtime becomes an exception.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "ops/cuda.hpp"

namespace ptxsdk::cuda {

inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    static_cast<void>(cudaGetLastError());  // or the next launch would be blamed for it
    throw CudaError(std::string(what) + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) +
                    ")");
}

}  // namespace ptxsdk::cuda
