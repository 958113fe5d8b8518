// materialize as a mamba2_verify without tokens, for its CPU and its CUDA function.
#pragma once

#include "llamba.h"

namespace llamba {
namespace {

[[maybe_unused]] llamba_mamba2_verify_args as_verify(const llamba_materialize_args& args) {
  llamba_mamba2_verify_args verify{sizeof(verify)};
  verify.dtype = args.dtype;
  verify.checkpoint_dtype = args.checkpoint_dtype;
  verify.fold_every = args.fold_every;
  verify.batch = args.batch;
  verify.nheads = args.nheads;
  verify.headdim = args.headdim;
  verify.dstate = args.dstate;
  verify.x_heads = args.x_heads;
  verify.B_heads = args.B_heads;
  verify.C_heads = args.C_heads;
  verify.conv_weight = args.conv_weight;
  verify.conv_weight_stride_channel = args.conv_weight_stride_channel;
  verify.conv_weight_stride_tap = args.conv_weight_stride_tap;
  verify.conv_bias = args.conv_bias;
  verify.A = args.A;
  verify.dt_bias = args.dt_bias;
  // Without new tokens and without a fold the kernel writes neither the checkpoint nor a row.
  verify.checkpoint = const_cast<void*>(args.checkpoint);
  verify.checkpoint_stride_slot = args.checkpoint_stride_slot;
  verify.checkpoint_stride_head = args.checkpoint_stride_head;
  verify.checkpoint_stride_dim = args.checkpoint_stride_dim;
  verify.rows = const_cast<void*>(args.rows);
  verify.rows_stride_slot = args.rows_stride_slot;
  verify.rows_stride_row = args.rows_stride_row;
  verify.dt_rows = const_cast<void*>(args.dt_rows);
  verify.dt_rows_stride_slot = args.dt_rows_stride_slot;
  verify.dt_rows_stride_row = args.dt_rows_stride_row;
  verify.cursor = args.cursor;
  verify.slots = args.slots;
  return verify;
}

}  // namespace
}  // namespace llamba
