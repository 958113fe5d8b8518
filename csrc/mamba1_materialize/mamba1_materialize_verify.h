// mamba1_materialize as a mamba1_verify without tokens, for its CPU and its CUDA function.
#pragma once

#include "llamba.h"

namespace llamba {
namespace {

[[maybe_unused]] llamba_mamba1_verify_args as_verify(const llamba_mamba1_materialize_args& args) {
  llamba_mamba1_verify_args verify{sizeof(verify)};
  verify.dtype = args.dtype;
  verify.checkpoint_dtype = args.checkpoint_dtype;
  verify.fold_every = args.fold_every;
  verify.batch = args.batch;
  verify.d_inner = args.d_inner;
  verify.dstate = args.dstate;
  verify.B_heads = args.B_heads;
  verify.C_heads = 1;
  verify.A = args.A;
  verify.A_stride_channel = args.A_stride_channel;
  verify.dt_bias = args.dt_bias;
  // Without new tokens and without a fold the kernel writes neither the checkpoint nor a row.
  verify.checkpoint = const_cast<void*>(args.checkpoint);
  verify.checkpoint_stride_slot = args.checkpoint_stride_slot;
  verify.checkpoint_stride_channel = args.checkpoint_stride_channel;
  verify.x_rows = const_cast<void*>(args.x_rows);
  verify.x_rows_stride_slot = args.x_rows_stride_slot;
  verify.x_rows_stride_row = args.x_rows_stride_row;
  verify.dt_rows = const_cast<void*>(args.dt_rows);
  verify.dt_rows_stride_slot = args.dt_rows_stride_slot;
  verify.dt_rows_stride_row = args.dt_rows_stride_row;
  verify.B_rows = const_cast<void*>(args.B_rows);
  verify.B_rows_stride_slot = args.B_rows_stride_slot;
  verify.B_rows_stride_row = args.B_rows_stride_row;
  verify.cursor = args.cursor;
  verify.slots = args.slots;
  return verify;
}

}  // namespace
}  // namespace llamba
