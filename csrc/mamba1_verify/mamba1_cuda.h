// What the launchers of mamba1_verify and mamba1_materialize share.
#pragma once

#include "common/cuda_check.h"
#include "common/launch.cuh"
#include "llamba.h"

namespace llamba {

// What mamba1_materialize asks of the kernel beside a step without tokens: the state after the live rows, and the raw
// inputs of the conv before the position.
struct Mamba1StateOutput {
  float* state;  // [batch, d_inner, dstate], written; nullptr: mamba1_verify, nothing here is
  int64_t state_stride_batch, state_stride_channel;
  const void* rows;  // [nslots, capacity, x_dim]
  int64_t rows_stride_slot, rows_stride_row;
  int32_t x_dim;
  void* tail;  // [batch, width-1, x_dim], written
  int64_t tail_stride_batch, tail_stride_row;
};

// Sizes are checked, the batch is not empty. op: who is to be named in a sentence.
int mamba1_launch(const char* op, const llamba_mamba1_verify_args& args, const Mamba1StateOutput& output,
                  cudaStream_t stream);

}  // namespace llamba
