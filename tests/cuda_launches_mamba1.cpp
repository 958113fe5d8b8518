// The operators of a Mamba-1 layer.
#include <initializer_list>

#include "cuda_launches.h"

namespace {

struct Layer {
  llamba_dtype dtype, checkpoint_dtype;
  int dstate;
};

void call_conv1d_verify(llamba_dtype dtype, int batch) {
  call(llamba_conv1d_verify_cuda, {.dtype = dtype,
                                   .batch = batch,
                                   .max_ntokens = kWindow,
                                   .nheads = 1,
                                   .headdim = kInner,
                                   .x_heads = 1,
                                   .x = kMemory,
                                   .x_stride_batch = kWindow * kInner,
                                   .x_stride_token = kInner,
                                   .conv_weight = kMemory,
                                   .conv_weight_stride_channel = kWidth,
                                   .conv_weight_stride_tap = 1,
                                   .conv_bias = kMemory,
                                   .rows = kMemory,
                                   .rows_stride_slot = kCapacity * kInner,
                                   .rows_stride_row = kInner,
                                   .cursor = kCursor,
                                   .slots = kMemory,
                                   .out = kMemory,
                                   .out_stride_batch = kWindow * kInner,
                                   .out_stride_token = kInner});
}

void call_mamba1_verify(const Layer& layer, int batch, const int32_t* parents) {
  call(llamba_mamba1_verify_cuda, {.dtype = layer.dtype,
                                   .checkpoint_dtype = layer.checkpoint_dtype,
                                   .fold_every = kFoldEvery,
                                   .batch = batch,
                                   .max_ntokens = kWindow,
                                   .d_inner = kInner,
                                   .dstate = layer.dstate,
                                   .B_heads = 1,
                                   .C_heads = 1,
                                   .x = kMemory,
                                   .x_stride_batch = kWindow * kInner,
                                   .x_stride_token = kInner,
                                   .dt = kMemory,
                                   .dt_stride_batch = kWindow * kInner,
                                   .dt_stride_token = kInner,
                                   .B = kMemory,
                                   .B_stride_batch = kWindow * layer.dstate,
                                   .B_stride_token = layer.dstate,
                                   .C = kMemory,
                                   .C_stride_batch = kWindow * layer.dstate,
                                   .C_stride_token = layer.dstate,
                                   .z = kMemory,
                                   .z_stride_batch = kWindow * kInner,
                                   .z_stride_token = kInner,
                                   .A = kMemory,
                                   .A_stride_channel = layer.dstate,
                                   .D = kMemory,
                                   .dt_bias = kMemory,
                                   .checkpoint = kMemory,
                                   .checkpoint_stride_slot = kInner * layer.dstate,
                                   .checkpoint_stride_channel = layer.dstate,
                                   .x_rows = kMemory,
                                   .x_rows_stride_slot = kCapacity * kInner,
                                   .x_rows_stride_row = kInner,
                                   .dt_rows = kMemory,
                                   .dt_rows_stride_slot = kCapacity * kInner,
                                   .dt_rows_stride_row = kInner,
                                   .B_rows = kMemory,
                                   .B_rows_stride_slot = kCapacity * layer.dstate,
                                   .B_rows_stride_row = layer.dstate,
                                   .cursor = kCursor,
                                   .slots = kMemory,
                                   .parents = parents,
                                   .parents_stride_batch = kWindow,
                                   .out = kMemory,
                                   .out_stride_batch = kWindow * kInner,
                                   .out_stride_token = kInner});
}

}  // namespace

void call_mamba1(llamba_dtype dtype, llamba_dtype checkpoint_dtype) {
  for (int batch : {1, kBatch}) {
    call_conv1d_verify(dtype, batch);
    for (int dstate : {16, 64}) {
      call_mamba1_verify({dtype, checkpoint_dtype, dstate}, batch, nullptr);
      call_mamba1_verify({dtype, checkpoint_dtype, dstate}, batch, kMemory);  // a tree
    }
  }
}
