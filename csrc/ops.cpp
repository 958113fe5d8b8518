// Table of contents of the native layer: every operator's schema and its implementations. Outputs are arguments
// (a!, b!, ...); the Python wrappers allocate them.
#include "ops.h"

#include <torch/csrc/stable/library.h>

#include "llamba.h"

STABLE_TORCH_LIBRARY(llamba, m) {
  m.def(
      "cursor_reset(Tensor(a!) cursor, Tensor slots, Tensor? prompt, int width, int fold_every, int max_rollback, "
      "int max_window) -> ()");
  m.def(
      "cursor_begin(Tensor(a!) cursor, Tensor slots, Tensor ntokens, int width, int fold_every, int max_rollback, "
      "int max_window) -> ()");
  m.def("cursor_commit(Tensor(a!) cursor, Tensor slots, Tensor accepted, Tensor? path, int width) -> ()");
  m.def(
      "cursor_rollback(Tensor(a!) cursor, Tensor slots, Tensor n, int width, int fold_every, int max_rollback, "
      "int max_window) -> ()");
  m.def(
      "mamba2_verify(Tensor xBC, Tensor dt, Tensor conv_weight, Tensor? conv_bias, Tensor A, Tensor? D, "
      "Tensor? dt_bias, Tensor(a!) checkpoint, Tensor(b!) rows, Tensor(c!) dt_rows, Tensor cursor, Tensor slots, "
      "int x_heads, int B_heads, int C_heads, int fold_every, int algorithm, Tensor? parents, Tensor(d!) out) -> ()");
  m.def(
      "materialize(Tensor conv_weight, Tensor? conv_bias, Tensor A, Tensor? dt_bias, Tensor checkpoint, Tensor rows, "
      "Tensor dt_rows, Tensor cursor, Tensor slots, int x_heads, int B_heads, int C_heads, int fold_every, "
      "Tensor(a!) state, Tensor(b!) tail) -> ()");
  m.def(
      "selective_state_update(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, "
      "Tensor? z, Tensor? dt_bias, bool dt_softplus, Tensor? state_batch_indices, int pad_slot_id, "
      "bool disable_state_update, Tensor(b!)? intermediate_states_buffer, Tensor? intermediate_state_indices, "
      "Tensor? dst_state_batch_indices, Tensor? cu_seqlens, Tensor? num_accepted_tokens, "
      "Tensor? retrieve_parent_token, Tensor(c!) out) -> ()");
  m.def(
      "conv1d_verify(Tensor x, Tensor conv_weight, Tensor? conv_bias, Tensor(a!) rows, Tensor cursor, Tensor slots, "
      "int x_heads, int headdim, Tensor? parents, Tensor(b!) out) -> ()");
  m.def(
      "mamba1_verify(Tensor x, Tensor dt, Tensor B, Tensor C, Tensor? z, Tensor A, Tensor? D, Tensor? dt_bias, "
      "Tensor(a!) checkpoint, Tensor(b!) x_rows, Tensor(c!) dt_rows, Tensor(d!) B_rows, Tensor cursor, Tensor slots, "
      "int B_heads, int C_heads, int fold_every, Tensor? parents, Tensor(e!) out) -> ()");
  m.def(
      "mamba1_materialize(Tensor A, Tensor? dt_bias, Tensor checkpoint, Tensor rows, Tensor x_rows, Tensor dt_rows, "
      "Tensor B_rows, Tensor cursor, Tensor slots, int B_heads, int fold_every, Tensor(a!) state, Tensor(b!) tail) "
      "-> ()");
  m.def(
      "state_import(Tensor state, Tensor tail, Tensor(a!) checkpoint, Tensor(b!) rows, Tensor cursor, Tensor slots) "
      "-> ()");
  m.def("slot_copy(Tensor(a!) cursor, Tensor(b!)[] states, Tensor(c!)[] kv, Tensor src, Tensor dst, int width) -> ()");
  m.def(
      "selective_scan(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
      "int B_heads, int C_heads, bool dt_softplus, Tensor? initial_state, Tensor? cu_seqlens, int state_every, "
      "Tensor(a!) y, Tensor(b!)? final_state, Tensor(c!)? states, Tensor(d!)? chunk_states) -> ()");
  m.def(
      "selective_scan_backward(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
      "Tensor? dt_bias, int B_heads, int C_heads, bool dt_softplus, Tensor? initial_state, Tensor? cu_seqlens, "
      "int state_every, Tensor chunk_states, Tensor grad_y, Tensor? grad_final_state, Tensor? grad_states, "
      "Tensor(a!) grad_x, Tensor(b!) grad_dt, Tensor(c!) grad_A, Tensor(d!) grad_B, Tensor(e!) grad_C, "
      "Tensor(f!)? grad_D, Tensor(g!)? grad_z, Tensor(h!)? grad_dt_bias, Tensor(i!)? grad_initial_state) -> ()");
  m.def("gated_rms_norm(Tensor x, Tensor? z, Tensor weight, float eps, int group_size, Tensor(a!) out) -> ()");
  m.def("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!)? residual, Tensor(b!) out) -> ()");
  m.def("rope(Tensor x, Tensor cos, Tensor sin, Tensor positions, bool interleaved, Tensor(a!) out) -> ()");
  m.def("silu_mul(Tensor gate, Tensor up, Tensor(a!) out) -> ()");
  m.def("skinny_linear(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()");
  m.def(
      "attention_step(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor cursor, "
      "Tensor slots, float scale, int sliding_window, Tensor? parents, Tensor(c!) out) -> ()");
  m.def(
      "kv_compact(Tensor(a!)[] k_caches, Tensor(b!)[] v_caches, Tensor cursor, Tensor slots, Tensor accepted, "
      "Tensor path) -> ()");
  m.def("argmax(Tensor logits, Tensor(a!) out) -> ()");
  m.def(
      "speculative_accept(Tensor logits, Tensor drafts, Tensor ntokens, Tensor? draft_probs, Tensor? uniforms, "
      "float temperature, Tensor(a!) accepted, Tensor(b!) next_token) -> ()");
  m.def(
      "causal_conv1d_update(Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias, bool silu, "
      "Tensor? cache_seqlens, Tensor? conv_state_indices, Tensor? num_accepted_tokens, Tensor? query_start_loc, "
      "int pad_slot_id, Tensor? block_idx_last_scheduled_token, Tensor? initial_state_idx, "
      "Tensor? retrieve_parent_token, Tensor(b!)? intermediate_conv_window, Tensor? intermediate_state_indices, "
      "Tensor(c!) out) -> ()");
  m.def(
      "checkpointing_ssu(Tensor(a!) state, Tensor(b!) x_cache, Tensor(c!) B_cache, Tensor(d!) dt_cache, "
      "Tensor ring_start, Tensor prev_num_accepted_tokens, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, "
      "Tensor? D, Tensor? z, Tensor? dt_bias, bool dt_softplus, Tensor? state_batch_indices, int pad_slot_id, "
      "Tensor? cu_seqlens, int max_seqlen, Tensor(e!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(llamba, CPU, m) {
  m.impl("cursor_reset", TORCH_BOX(&llamba::cursor_reset));
  m.impl("cursor_begin", TORCH_BOX(&llamba::cursor_begin));
  m.impl("cursor_commit", TORCH_BOX(&llamba::cursor_commit));
  m.impl("cursor_rollback", TORCH_BOX(&llamba::cursor_rollback));
  m.impl("mamba2_verify", TORCH_BOX(&llamba::mamba2_verify));
  m.impl("materialize", TORCH_BOX(&llamba::materialize));
  m.impl("selective_state_update", TORCH_BOX(&llamba::selective_state_update));
  m.impl("conv1d_verify", TORCH_BOX(&llamba::conv1d_verify));
  m.impl("mamba1_verify", TORCH_BOX(&llamba::mamba1_verify));
  m.impl("mamba1_materialize", TORCH_BOX(&llamba::mamba1_materialize));
  m.impl("state_import", TORCH_BOX(&llamba::state_import));
  m.impl("slot_copy", TORCH_BOX(&llamba::slot_copy));
  m.impl("selective_scan", TORCH_BOX(&llamba::selective_scan));
  m.impl("selective_scan_backward", TORCH_BOX(&llamba::selective_scan_backward));
  m.impl("gated_rms_norm", TORCH_BOX(&llamba::gated_rms_norm));
  m.impl("rms_norm", TORCH_BOX(&llamba::rms_norm));
  m.impl("rope", TORCH_BOX(&llamba::rope));
  m.impl("silu_mul", TORCH_BOX(&llamba::silu_mul));
  m.impl("skinny_linear", TORCH_BOX(&llamba::skinny_linear));
  m.impl("attention_step", TORCH_BOX(&llamba::attention_step));
  m.impl("kv_compact", TORCH_BOX(&llamba::kv_compact));
  m.impl("argmax", TORCH_BOX(&llamba::argmax));
  m.impl("speculative_accept", TORCH_BOX(&llamba::speculative_accept));
  m.impl("causal_conv1d_update", TORCH_BOX(&llamba::causal_conv1d_update));
  m.impl("checkpointing_ssu", TORCH_BOX(&llamba::checkpointing_ssu));
}

STABLE_TORCH_LIBRARY_IMPL(llamba, CUDA, m) {
  m.impl("cursor_reset", TORCH_BOX(&llamba::cursor_reset));
  m.impl("cursor_begin", TORCH_BOX(&llamba::cursor_begin));
  m.impl("cursor_commit", TORCH_BOX(&llamba::cursor_commit));
  m.impl("cursor_rollback", TORCH_BOX(&llamba::cursor_rollback));
  m.impl("mamba2_verify", TORCH_BOX(&llamba::mamba2_verify));
  m.impl("materialize", TORCH_BOX(&llamba::materialize));
  m.impl("selective_state_update", TORCH_BOX(&llamba::selective_state_update));
  m.impl("conv1d_verify", TORCH_BOX(&llamba::conv1d_verify));
  m.impl("mamba1_verify", TORCH_BOX(&llamba::mamba1_verify));
  m.impl("mamba1_materialize", TORCH_BOX(&llamba::mamba1_materialize));
  m.impl("state_import", TORCH_BOX(&llamba::state_import));
  m.impl("slot_copy", TORCH_BOX(&llamba::slot_copy));
  m.impl("gated_rms_norm", TORCH_BOX(&llamba::gated_rms_norm));
  m.impl("rms_norm", TORCH_BOX(&llamba::rms_norm));
  m.impl("rope", TORCH_BOX(&llamba::rope));
  m.impl("silu_mul", TORCH_BOX(&llamba::silu_mul));
  m.impl("speculative_accept", TORCH_BOX(&llamba::speculative_accept));
  m.impl("causal_conv1d_update", TORCH_BOX(&llamba::causal_conv1d_update));
  m.impl("checkpointing_ssu", TORCH_BOX(&llamba::checkpointing_ssu));
}

// The CPU library has no threads of its own: it uses torch's pool.
static const bool uses_torch_threads = (llamba_set_parallel_for_cpu(torch_parallel_for), true);
