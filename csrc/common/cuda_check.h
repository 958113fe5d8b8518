// Every CUDA call goes through CUDA_CHECK: on failure the enclosing function returns the status of a recorded sentence.
#pragma once

#ifdef LLAMBA_SIMT
#include "simt/simt.h"
#else
#include <cuda_runtime_api.h>
#endif

#include <cstring>

#include "common/error.h"

#define CUDA_CHECK(op, call)                                                                           \
  do {                                                                                                 \
    const cudaError_t error_ = (call);                                                                 \
    if (error_ != cudaSuccess) {                                                                       \
      return llamba::fail(LLAMBA_CUDA_ERROR, "%s: %.*s must succeed; got %s (%s)", op,                 \
                          static_cast<int>(std::strcspn(#call, "(")), #call, cudaGetErrorName(error_), \
                          cudaGetErrorString(error_)); /* the call's name, not its arguments */        \
    }                                                                                                  \
  } while (0)
