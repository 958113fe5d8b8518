// The two algorithms of mamba2_verify on CUDA devices, for mamba2_verify_launch.cu: what they refuse is a sentence.
#pragma once

#include "common/launch.cuh"
#include "llamba.h"

namespace llamba {

// args as of llamba_mamba2_verify_cuda, sizes checked.
int mamba2_matmul(const llamba_mamba2_verify_args& args, cudaStream_t stream);
int mamba2_recurrent(const llamba_mamba2_verify_args& args, cudaStream_t stream);

}  // namespace llamba
