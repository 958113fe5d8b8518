// Marks a function that CPU and CUDA kernels share, so that both have one formula.
#pragma once

#ifdef __CUDACC__
#define LLAMBA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LLAMBA_HOST_DEVICE inline
#endif
