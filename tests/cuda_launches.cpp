// Calls every llamba_<op>_cuda so that it launches each of its kernels, under the runtime of cuda_runtime.cpp, for the
// GPU that the arguments describe: its architecture and the most shared memory of a block. A kernel that no call launches
// fails the gates of tests/cuda_gates.py.
#include "cuda_launches.h"

#include <initializer_list>

namespace {

void call_cursor() {
  constexpr llamba_session kSession = {.fold_every = kFoldEvery, .max_rollback = 0, .max_window = kWindow};
  call(llamba_cursor_reset_cuda,
       {.cursor = kCursor, .slots = kMemory, .prompt = kMemory, .batch = kBatch, .session = kSession});
  call(llamba_cursor_begin_cuda,
       {.cursor = kCursor, .slots = kMemory, .ntokens = kMemory, .batch = kBatch, .session = kSession});
  call(llamba_cursor_commit_cuda, {.cursor = kCursor, .slots = kMemory, .accepted = kMemory, .batch = kBatch});
  call(llamba_cursor_rollback_cuda,
       {.cursor = kCursor, .slots = kMemory, .n = kMemory, .batch = kBatch, .session = kSession});
}

void call_slot_copy() {
  const llamba_slot_buffer checkpoint = {.data = kMemory,
                                         .element_size = 4,
                                         .ndim = 2,
                                         .sizes = {kBatch, kInner * kDstate},
                                         .strides = {kInner * kDstate, 1},
                                         .token_dim = -1};
  call(llamba_slot_copy_cuda, {.cursor = kCursor,
                               .buffer_size = sizeof(checkpoint),
                               .buffers = &checkpoint,
                               .nbuffers = 1,
                               .src = kMemory,
                               .dst = kMemory,
                               .batch = kBatch / 2});
}

void call_rowwise(llamba_dtype dtype) {
  constexpr int kRow = kInner, kStep = kWindow * kInner;
  call(llamba_gated_rms_norm_cuda, {.dtype = dtype,
                                    .batch = kBatch,
                                    .ntokens = kWindow,
                                    .width = kInner,
                                    .group_size = kInner,
                                    .eps = 1e-5f,
                                    .x = kMemory,
                                    .x_stride_batch = kStep,
                                    .x_stride_token = kRow,
                                    .z = kMemory,
                                    .z_stride_batch = kStep,
                                    .z_stride_token = kRow,
                                    .weight = kMemory,
                                    .out = kMemory,
                                    .out_stride_batch = kStep,
                                    .out_stride_token = kRow});
  call(llamba_rms_norm_cuda, {.dtype = dtype,
                              .batch = kBatch,
                              .ntokens = kWindow,
                              .nheads = 1,
                              .width = kInner,
                              .eps = 1e-5f,
                              .x = kMemory,
                              .x_stride_batch = kStep,
                              .x_stride_token = kRow,
                              .x_stride_head = kRow,
                              .weight = kMemory,
                              .residual = kMemory,
                              .residual_stride_batch = kStep,
                              .residual_stride_token = kRow,
                              .residual_stride_head = kRow,
                              .out = kMemory,
                              .out_stride_batch = kStep,
                              .out_stride_token = kRow,
                              .out_stride_head = kRow});
  call(llamba_rope_cuda, {.dtype = dtype,
                          .batch = kBatch,
                          .ntokens = kWindow,
                          .nheads = kHeads,
                          .head_dim = kHeaddim,
                          .rotary_dim = kHeaddim,
                          .npositions = 4096,
                          .interleaved = 0,
                          .x = kMemory,
                          .x_stride_batch = kStep,
                          .x_stride_token = kRow,
                          .x_stride_head = kHeaddim,
                          .cos = kMemory,
                          .cos_stride_position = kHeaddim / 2,
                          .sin = kMemory,
                          .sin_stride_position = kHeaddim / 2,
                          .positions = kMemory,
                          .positions_stride_batch = kWindow,
                          .out = kMemory,
                          .out_stride_batch = kStep,
                          .out_stride_token = kRow,
                          .out_stride_head = kHeaddim});
  call(llamba_silu_mul_cuda, {.dtype = dtype,
                              .batch = kBatch,
                              .ntokens = kWindow,
                              .width = kInner,
                              .gate = kMemory,
                              .gate_stride_batch = kStep,
                              .gate_stride_token = kRow,
                              .up = kMemory,
                              .up_stride_batch = kStep,
                              .up_stride_token = kRow,
                              .out = kMemory,
                              .out_stride_batch = kStep,
                              .out_stride_token = kRow});
  call(llamba_speculative_accept_cuda, {.dtype = dtype,
                                        .batch = kBatch,
                                        .max_window = kWindow,
                                        .vocab = kVocab,
                                        .temperature = 1,
                                        .logits = kMemory,
                                        .logits_stride_batch = kWindow * kVocab,
                                        .logits_stride_token = kVocab,
                                        .drafts = kMemory,
                                        .drafts_stride_batch = kWindow - 1,
                                        .ntokens = kMemory,
                                        .draft_probs = kMemory,
                                        .draft_probs_stride_batch = (kWindow - 1) * kVocab,
                                        .draft_probs_stride_token = kVocab,
                                        .uniforms = kMemory,
                                        .uniforms_stride_batch = kWindow,
                                        .accepted = kMemory,
                                        .next_token = kMemory});
}

void call_causal_conv1d_update(llamba_dtype dtype) {
  call(llamba_causal_conv1d_update_cuda, {.dtype = dtype,
                                          .state_dtype = dtype,
                                          .weight_dtype = dtype,
                                          .batch = kBatch,
                                          .dim = kInner,
                                          .ntokens = kWindow,
                                          .nslots = kBatch,
                                          .state_len = kWidth - 1,
                                          .nblocks = 1,
                                          .width = kWidth,
                                          .silu = 1,
                                          .pad_slot = -1,
                                          .x = kMemory,
                                          .x_stride_batch = kWindow * kInner,
                                          .x_stride_channel = 1,
                                          .x_stride_token = kInner,
                                          .conv_state = kMemory,
                                          .conv_state_stride_slot = (kWidth - 1) * kInner,
                                          .conv_state_stride_channel = 1,
                                          .conv_state_stride_token = kInner,
                                          .weight = kMemory,
                                          .weight_stride_channel = kWidth,
                                          .weight_stride_tap = 1,
                                          .out = kMemory,
                                          .out_stride_batch = kWindow * kInner,
                                          .out_stride_channel = 1,
                                          .out_stride_token = kInner});
}

void call_checkpointing_ssu(int dstate) {
  constexpr int kRing = 2 * kWindow;
  call(llamba_checkpointing_ssu_cuda, {.dtype = LLAMBA_BFLOAT16,
                                       .state_dtype = LLAMBA_FLOAT32,
                                       .dt_dtype = LLAMBA_BFLOAT16,
                                       .A_dtype = LLAMBA_FLOAT32,
                                       .D_dtype = LLAMBA_FLOAT32,
                                       .bias_dtype = LLAMBA_FLOAT32,
                                       .batch = kBatch,
                                       .ntokens = kWindow,
                                       .nslots = kBatch,
                                       .pad_slot = -1,
                                       .nheads = kHeads,
                                       .headdim = kHeaddim,
                                       .dstate = dstate,
                                       .ngroups = 1,
                                       .ring = kRing,
                                       .window = kRing - kWindow,
                                       .dt_softplus = 1,
                                       .state = kMemory,
                                       .x_cache = kMemory,
                                       .B_cache = kMemory,
                                       .dt_cache = kMemory,
                                       .start = kMemory,
                                       .previous = kMemory,
                                       .x = kMemory,
                                       .dt = kMemory,
                                       .A = kMemory,
                                       .B = kMemory,
                                       .C = kMemory,
                                       .D = kMemory,
                                       .dt_bias = kMemory,
                                       .slots = kMemory,
                                       .out = kMemory});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return EXIT_FAILURE;
  gpu = {.arch = std::atoi(argv[1]), .shared_bytes = std::atoi(argv[2])};
  std::printf("batch %d, Mamba also 1; window %d, %d heads of %d, 1 group, width %d, fold_every %d, vocab %d\n", kBatch,
              kWindow, kHeads, kHeaddim, kWidth, kFoldEvery, kVocab);
  call_cursor();
  for (int dstate : {64, 128, 256}) call_checkpointing_ssu(dstate);
  call_slot_copy();
  for (llamba_dtype dtype : {LLAMBA_FLOAT32, LLAMBA_BFLOAT16, LLAMBA_FLOAT16}) {
    call_rowwise(dtype);
    call_causal_conv1d_update(dtype);
    call_selective_state_update(dtype);
    call_mamba2(dtype, LLAMBA_FLOAT32);
    call_mamba1(dtype, LLAMBA_FLOAT32);
    if (dtype == LLAMBA_FLOAT32) continue;
    call_mamba2(dtype, dtype);
    call_mamba1(dtype, dtype);
  }
}
