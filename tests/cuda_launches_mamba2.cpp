// The operators that read a layer's checkpoint and rows.
#include "cuda_launches.h"

namespace {

void call_mamba2_verify(llamba_algorithm algorithm, llamba_dtype dtype, llamba_dtype checkpoint_dtype) {
  call(llamba_mamba2_verify_cuda, {.dtype = dtype,
                                   .checkpoint_dtype = checkpoint_dtype,
                                   .algorithm = algorithm,
                                   .fold_every = kFoldEvery,
                                   .batch = kBatch,
                                   .max_ntokens = kWindow,
                                   .nheads = kHeads,
                                   .headdim = kHeaddim,
                                   .dstate = kDstate,
                                   .x_heads = kHeads,
                                   .B_heads = 1,
                                   .C_heads = 1,
                                   .xBC = kMemory,
                                   .xBC_stride_batch = kWindow * kConvDim,
                                   .xBC_stride_token = kConvDim,
                                   .dt = kMemory,
                                   .dt_stride_batch = kWindow * kHeads,
                                   .dt_stride_token = kHeads,
                                   .conv_weight = kMemory,
                                   .conv_weight_stride_channel = kWidth,
                                   .conv_weight_stride_tap = 1,
                                   .conv_bias = kMemory,
                                   .A = kMemory,
                                   .D = kMemory,
                                   .dt_bias = kMemory,
                                   .checkpoint = kMemory,
                                   .checkpoint_stride_slot = kInner * kDstate,
                                   .checkpoint_stride_head = kHeaddim * kDstate,
                                   .checkpoint_stride_dim = kDstate,
                                   .rows = kMemory,
                                   .rows_stride_slot = kCapacity * kConvDim,
                                   .rows_stride_row = kConvDim,
                                   .dt_rows = kMemory,
                                   .dt_rows_stride_slot = kCapacity * kHeads,
                                   .dt_rows_stride_row = kHeads,
                                   .cursor = kCursor,
                                   .slots = kMemory,
                                   .out = kMemory,
                                   .out_stride_batch = kWindow * kInner,
                                   .out_stride_token = kInner,
                                   .out_stride_head = kHeaddim});
}

void call_materialize(llamba_dtype dtype, llamba_dtype checkpoint_dtype) {
  call(llamba_materialize_cuda, {.dtype = dtype,
                                 .checkpoint_dtype = checkpoint_dtype,
                                 .fold_every = kFoldEvery,
                                 .batch = kBatch,
                                 .nheads = kHeads,
                                 .headdim = kHeaddim,
                                 .dstate = kDstate,
                                 .x_heads = kHeads,
                                 .B_heads = 1,
                                 .C_heads = 1,
                                 .conv_weight = kMemory,
                                 .conv_weight_stride_channel = kWidth,
                                 .conv_weight_stride_tap = 1,
                                 .conv_bias = kMemory,
                                 .A = kMemory,
                                 .dt_bias = kMemory,
                                 .checkpoint = kMemory,
                                 .checkpoint_stride_slot = kInner * kDstate,
                                 .checkpoint_stride_head = kHeaddim * kDstate,
                                 .checkpoint_stride_dim = kDstate,
                                 .rows = kMemory,
                                 .rows_stride_slot = kCapacity * kConvDim,
                                 .rows_stride_row = kConvDim,
                                 .dt_rows = kMemory,
                                 .dt_rows_stride_slot = kCapacity * kHeads,
                                 .dt_rows_stride_row = kHeads,
                                 .cursor = kCursor,
                                 .slots = kMemory,
                                 .state = kMemory,
                                 .state_stride_batch = kInner * kDstate,
                                 .state_stride_head = kHeaddim * kDstate,
                                 .state_stride_dim = kDstate,
                                 .tail = kMemory,
                                 .tail_stride_batch = (kWidth - 1) * kConvDim,
                                 .tail_stride_row = kConvDim});
}

void call_state_import(llamba_dtype dtype, llamba_dtype checkpoint_dtype) {
  call(llamba_state_import_cuda, {.dtype = dtype,
                                  .checkpoint_dtype = checkpoint_dtype,
                                  .batch = kBatch,
                                  .nheads = kHeads,
                                  .headdim = kHeaddim,
                                  .dstate = kDstate,
                                  .conv_dim = kConvDim,
                                  .state = kMemory,
                                  .state_stride_batch = kInner * kDstate,
                                  .state_stride_head = kHeaddim * kDstate,
                                  .state_stride_dim = kDstate,
                                  .tail = kMemory,
                                  .tail_stride_batch = (kWidth - 1) * kConvDim,
                                  .tail_stride_row = kConvDim,
                                  .checkpoint = kMemory,
                                  .checkpoint_stride_slot = kInner * kDstate,
                                  .checkpoint_stride_head = kHeaddim * kDstate,
                                  .checkpoint_stride_dim = kDstate,
                                  .rows = kMemory,
                                  .rows_stride_slot = kCapacity * kConvDim,
                                  .rows_stride_row = kConvDim,
                                  .cursor = kCursor,
                                  .slots = kMemory});
}

}  // namespace

void call_mamba2(llamba_dtype dtype, llamba_dtype checkpoint_dtype) {
  call_mamba2_verify(LLAMBA_RECURRENT, dtype, checkpoint_dtype);
  call_mamba2_verify(LLAMBA_MATMUL, dtype, checkpoint_dtype);
  call_materialize(dtype, checkpoint_dtype);
  call_state_import(dtype, checkpoint_dtype);
}
