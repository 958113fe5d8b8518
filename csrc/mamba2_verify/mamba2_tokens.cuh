// What the CUDA kernels of mamba2_verify and materialize share: the raw inputs of each token, and step sizes.
#pragma once

#include "conv1d_verify/conv1d_item.cuh"

namespace llamba {
namespace {

// inputs [ntotal, kMostWidth], oldest first: filled by all threads of the block; a barrier must follow.
__device__ inline void find_inputs(const llamba_mamba2_verify_args& args, const Step& step, int32_t* inputs) {
  const int32_t width = args.cursor.width, count = (step.live + step.ntokens) * width;
  for (int32_t i = threadIdx.x; i < count; i += blockDim.x) {
    const int32_t t = i / width, tap = i % width;
    inputs[t * kMostWidth + tap] = find_input(args, step, t, width - 1 - tap);
  }
}

// dt of token t after bias and softplus. keep: store the raw dt of a new token as its row.
template <typename T>
__device__ inline float step_size(const llamba_mamba2_verify_args& args, const Step& step, const int32_t* inputs,
                                  int32_t t, int32_t head, bool keep) {
  T* slot_rows = static_cast<T*>(args.dt_rows) + step.slot * args.dt_rows_stride_slot;
  const int32_t id = inputs[t * kMostWidth + args.cursor.width - 1];
  T raw{};
  if (id >= 0) raw = load_global(slot_rows + id * args.dt_rows_stride_row + head);
  if (id < kNoInput) {
    const int32_t i = -2 - id, row = keep ? new_row(args, step, i) : -1;
    raw = load_global(static_cast<const T*>(args.dt) + step.batch_idx * args.dt_stride_batch +
                      i * args.dt_stride_token + head);
    if (row >= 0) store_global(slot_rows + row * args.dt_rows_stride_row + head, raw);
  }
  return softplus(to_float(raw) + (args.dt_bias != nullptr ? load_global(args.dt_bias + head) : 0.0f));
}

}  // namespace
}  // namespace llamba
