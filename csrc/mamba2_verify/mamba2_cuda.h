// What the launchers of mamba2_verify and materialize share.
#pragma once

#include "common/cuda_check.h"
#include "common/launch.cuh"
#include "llamba.h"

namespace llamba {

// What materialize asks of the recurrent kernel beside a step without tokens: the state after the live rows, and the
// raw inputs before the position.
struct Mamba2StateOutput {
  float* state;  // [batch, nheads, headdim, dstate], written; nullptr: mamba2_verify, nothing here is
  int64_t state_stride_batch, state_stride_head, state_stride_dim;
  void* tail;  // [batch, width-1, conv_dim], written
  int64_t tail_stride_batch, tail_stride_row;
};

// The algorithms: sizes are checked, the batch is not empty. op: who is to be named in a sentence.
int mamba2_recurrent(const char* op, const llamba_mamba2_verify_args& args, const Mamba2StateOutput& output,
                     cudaStream_t stream);
int mamba2_matmul(const llamba_mamba2_verify_args& args, cudaStream_t stream);

}  // namespace llamba
