// Code that runs on the host and on a CUDA device.
#pragma once

#if defined(__CUDACC__)
#define PTXSDK_HD __host__ __device__
#define PTXSDK_DEVICE __device__  // on the device, and on the host where no CUDA compiler is at work
#else
#define PTXSDK_HD
#define PTXSDK_DEVICE
#endif
