// Calls llamba_selective_state_update_cuda so that it launches each of its kernels; see cuda_launches.cpp.
#include <initializer_list>

#include "cuda_launches.h"

void call_selective_state_update(llamba_dtype state_dtype) {
  for (int dstate : {kDstate, 2 * kDstate}) {
    const llamba_operand x = {.data = kMemory, .strides = {kInner, kInner, kHeaddim, 1}, .dtype = LLAMBA_BFLOAT16};
    const llamba_operand dt = {.data = kMemory, .strides = {kHeads, kHeads, 1, 0}, .dtype = LLAMBA_BFLOAT16};
    const llamba_operand group = {.data = kMemory, .strides = {dstate, dstate, 0, 1}, .dtype = LLAMBA_BFLOAT16};
    const llamba_operand A = {.data = kMemory, .strides = {0, 1, 0, 0}, .dtype = LLAMBA_FLOAT32};
    call(llamba_selective_state_update_cuda, {.dtype = LLAMBA_BFLOAT16,
                                              .state_dtype = state_dtype,
                                              .batch = kBatch,
                                              .ntokens = 1,
                                              .nheads = kHeads,
                                              .headdim = kHeaddim,
                                              .dstate = dstate,
                                              .ngroups = 1,
                                              .x = x,
                                              .dt = dt,
                                              .B = group,
                                              .C = group,
                                              .A = A,
                                              .out = kMemory,
                                              .out_strides = {kInner, kInner, kHeaddim, 1},
                                              .state = kMemory,
                                              .nslots = kBatch,
                                              .state_stride_slot = kInner * dstate,
                                              .state_stride_head = kHeaddim * dstate,
                                              .state_stride_dim = dstate,
                                              .pad_slot_id = -1});
  }
}
