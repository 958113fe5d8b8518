// The operators that read a layer's checkpoint and rows.
#include <initializer_list>

#include "cuda_launches.h"

namespace {

struct Layer {
  llamba_dtype dtype, checkpoint_dtype;
  int dstate, conv_dim;
};

void call_mamba2_verify(llamba_algorithm algorithm, const Layer& layer, int batch, const int32_t* parents) {
  call(llamba_mamba2_verify_cuda, {.dtype = layer.dtype,
                                   .checkpoint_dtype = layer.checkpoint_dtype,
                                   .algorithm = algorithm,
                                   .fold_every = kFoldEvery,
                                   .batch = batch,
                                   .max_ntokens = kWindow,
                                   .nheads = kHeads,
                                   .headdim = kHeaddim,
                                   .dstate = layer.dstate,
                                   .x_heads = kHeads,
                                   .B_heads = 1,
                                   .C_heads = 1,
                                   .xBC = kMemory,
                                   .xBC_stride_batch = kWindow * layer.conv_dim,
                                   .xBC_stride_token = layer.conv_dim,
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
                                   .checkpoint_stride_slot = kInner * layer.dstate,
                                   .checkpoint_stride_head = kHeaddim * layer.dstate,
                                   .checkpoint_stride_dim = layer.dstate,
                                   .rows = kMemory,
                                   .rows_stride_slot = kCapacity * layer.conv_dim,
                                   .rows_stride_row = layer.conv_dim,
                                   .dt_rows = kMemory,
                                   .dt_rows_stride_slot = kCapacity * kHeads,
                                   .dt_rows_stride_row = kHeads,
                                   .cursor = kCursor,
                                   .slots = kMemory,
                                   .parents = parents,
                                   .parents_stride_batch = kWindow,
                                   .out = kMemory,
                                   .out_stride_batch = kWindow * kInner,
                                   .out_stride_token = kInner,
                                   .out_stride_head = kHeaddim});
}

void call_materialize(const Layer& layer, int batch) {
  call(llamba_materialize_cuda, {.dtype = layer.dtype,
                                 .checkpoint_dtype = layer.checkpoint_dtype,
                                 .fold_every = kFoldEvery,
                                 .batch = batch,
                                 .nheads = kHeads,
                                 .headdim = kHeaddim,
                                 .dstate = layer.dstate,
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
                                 .checkpoint_stride_slot = kInner * layer.dstate,
                                 .checkpoint_stride_head = kHeaddim * layer.dstate,
                                 .checkpoint_stride_dim = layer.dstate,
                                 .rows = kMemory,
                                 .rows_stride_slot = kCapacity * layer.conv_dim,
                                 .rows_stride_row = layer.conv_dim,
                                 .dt_rows = kMemory,
                                 .dt_rows_stride_slot = kCapacity * kHeads,
                                 .dt_rows_stride_row = kHeads,
                                 .cursor = kCursor,
                                 .slots = kMemory,
                                 .state = kMemory,
                                 .state_stride_batch = kInner * layer.dstate,
                                 .state_stride_head = kHeaddim * layer.dstate,
                                 .state_stride_dim = layer.dstate,
                                 .tail = kMemory,
                                 .tail_stride_batch = (kWidth - 1) * layer.conv_dim,
                                 .tail_stride_row = layer.conv_dim});
}

void call_state_import(const Layer& layer, int batch) {
  call(llamba_state_import_cuda, {.dtype = layer.dtype,
                                  .checkpoint_dtype = layer.checkpoint_dtype,
                                  .batch = batch,
                                  .nheads = kHeads,
                                  .headdim = kHeaddim,
                                  .dstate = layer.dstate,
                                  .conv_dim = layer.conv_dim,
                                  .state = kMemory,
                                  .state_stride_batch = kInner * layer.dstate,
                                  .state_stride_head = kHeaddim * layer.dstate,
                                  .state_stride_dim = layer.dstate,
                                  .tail = kMemory,
                                  .tail_stride_batch = (kWidth - 1) * layer.conv_dim,
                                  .tail_stride_row = layer.conv_dim,
                                  .checkpoint = kMemory,
                                  .checkpoint_stride_slot = kInner * layer.dstate,
                                  .checkpoint_stride_head = kHeaddim * layer.dstate,
                                  .checkpoint_stride_dim = layer.dstate,
                                  .rows = kMemory,
                                  .rows_stride_slot = kCapacity * layer.conv_dim,
                                  .rows_stride_row = layer.conv_dim,
                                  .cursor = kCursor,
                                  .slots = kMemory});
}

}  // namespace

void call_mamba2(llamba_dtype dtype, llamba_dtype checkpoint_dtype) {
  for (int dstate : {64, 128, 256}) {
    const Layer layer = {dtype, checkpoint_dtype, dstate, kInner + 2 * dstate};
    for (int batch : {1, kBatch}) {
      for (llamba_algorithm algorithm : {LLAMBA_RECURRENT, LLAMBA_MATMUL}) {
        call_mamba2_verify(algorithm, layer, batch, nullptr);
        call_mamba2_verify(algorithm, layer, batch, kMemory);  // a tree
      }
      call_materialize(layer, batch);
      call_state_import(layer, batch);
    }
  }
}
