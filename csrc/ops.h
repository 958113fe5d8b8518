// The host functions that ops.cpp registers: each checks its tensors, fills the operator's struct of llamba.h and runs
// it on the tensors' device. Outputs are arguments. Shapes are in the Python wrappers' docstrings and in llamba.h.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace llamba {

using torch::stable::Tensor;

void cursor_reset(const Tensor& cursor, const Tensor& slots, const std::optional<Tensor>& prompt, int64_t width,
                  int64_t fold_every, int64_t max_rollback, int64_t max_window);
void cursor_begin(const Tensor& cursor, const Tensor& slots, const Tensor& ntokens, int64_t width, int64_t fold_every,
                  int64_t max_rollback, int64_t max_window);
void cursor_commit(const Tensor& cursor, const Tensor& slots, const Tensor& accepted, const std::optional<Tensor>& path,
                   int64_t width);
void cursor_rollback(const Tensor& cursor, const Tensor& slots, const Tensor& n, int64_t width, int64_t fold_every,
                     int64_t max_rollback, int64_t max_window);
void mamba2_verify(const Tensor& xBC, const Tensor& dt, const Tensor& conv_weight,
                   const std::optional<Tensor>& conv_bias, const Tensor& A, const std::optional<Tensor>& D,
                   const std::optional<Tensor>& dt_bias, const Tensor& checkpoint, const Tensor& rows,
                   const Tensor& dt_rows, const Tensor& cursor, const Tensor& slots, int64_t x_heads, int64_t B_heads,
                   int64_t C_heads, int64_t fold_every, int64_t algorithm, const std::optional<Tensor>& parents,
                   const Tensor& out);
void materialize(const Tensor& conv_weight, const std::optional<Tensor>& conv_bias, const Tensor& A,
                 const std::optional<Tensor>& dt_bias, const Tensor& checkpoint, const Tensor& rows,
                 const Tensor& dt_rows, const Tensor& cursor, const Tensor& slots, int64_t x_heads, int64_t B_heads,
                 int64_t C_heads, int64_t fold_every, const Tensor& state, const Tensor& tail);
void selective_state_update(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                            const Tensor& C, const std::optional<Tensor>& D, const std::optional<Tensor>& z,
                            const std::optional<Tensor>& dt_bias, bool dt_softplus,
                            const std::optional<Tensor>& state_batch_indices, int64_t pad_slot_id,
                            bool disable_state_update, const std::optional<Tensor>& intermediate_states_buffer,
                            const std::optional<Tensor>& intermediate_state_indices,
                            const std::optional<Tensor>& dst_state_batch_indices,
                            const std::optional<Tensor>& cu_seqlens, const std::optional<Tensor>& num_accepted_tokens,
                            const std::optional<Tensor>& retrieve_parent_token, const Tensor& out);
void conv1d_verify(const Tensor& x, const Tensor& conv_weight, const std::optional<Tensor>& conv_bias,
                   const Tensor& rows, const Tensor& cursor, const Tensor& slots, int64_t x_heads, int64_t headdim,
                   const std::optional<Tensor>& parents, const Tensor& out);
void mamba1_verify(const Tensor& x, const Tensor& dt, const Tensor& B, const Tensor& C, const std::optional<Tensor>& z,
                   const Tensor& A, const std::optional<Tensor>& D, const std::optional<Tensor>& dt_bias,
                   const Tensor& checkpoint, const Tensor& x_rows, const Tensor& dt_rows, const Tensor& B_rows,
                   const Tensor& cursor, const Tensor& slots, int64_t B_heads, int64_t C_heads, int64_t fold_every,
                   const std::optional<Tensor>& parents, const Tensor& out);
void mamba1_materialize(const Tensor& A, const std::optional<Tensor>& dt_bias, const Tensor& checkpoint,
                        const Tensor& rows, const Tensor& x_rows, const Tensor& dt_rows, const Tensor& B_rows,
                        const Tensor& cursor, const Tensor& slots, int64_t B_heads, int64_t fold_every,
                        const Tensor& state, const Tensor& tail);
void state_import(const Tensor& state, const Tensor& tail, const Tensor& checkpoint, const Tensor& rows,
                  const Tensor& cursor, const Tensor& slots);
void slot_copy(const Tensor& cursor, const std::vector<Tensor>& states, const std::vector<Tensor>& kv,
               const Tensor& src, const Tensor& dst, int64_t width);
void selective_scan(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                    const std::optional<Tensor>& D, const std::optional<Tensor>& z,
                    const std::optional<Tensor>& dt_bias, int64_t B_heads, int64_t C_heads, bool dt_softplus,
                    const std::optional<Tensor>& initial_state, const std::optional<Tensor>& cu_seqlens,
                    int64_t state_every, const Tensor& y, const std::optional<Tensor>& final_state,
                    const std::optional<Tensor>& states, const std::optional<Tensor>& chunk_states);
void selective_scan_backward(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                             const std::optional<Tensor>& D, const std::optional<Tensor>& z,
                             const std::optional<Tensor>& dt_bias, int64_t B_heads, int64_t C_heads, bool dt_softplus,
                             const std::optional<Tensor>& initial_state, const std::optional<Tensor>& cu_seqlens,
                             int64_t state_every, const Tensor& chunk_states, const Tensor& grad_y,
                             const std::optional<Tensor>& grad_final_state, const std::optional<Tensor>& grad_states,
                             const Tensor& grad_x, const Tensor& grad_dt, const Tensor& grad_A, const Tensor& grad_B,
                             const Tensor& grad_C, const std::optional<Tensor>& grad_D,
                             const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_dt_bias,
                             const std::optional<Tensor>& grad_initial_state);
void gated_rms_norm(const Tensor& x, const std::optional<Tensor>& z, const Tensor& weight, double eps,
                    int64_t group_size, const Tensor& out);
void rms_norm(const Tensor& x, const Tensor& weight, double eps, const std::optional<Tensor>& residual,
              const Tensor& out);
void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool interleaved,
          const Tensor& out);
void silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out);
void skinny_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out);
void attention_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache,
                    const Tensor& cursor, const Tensor& slots, double scale, int64_t sliding_window,
                    const std::optional<Tensor>& parents, const Tensor& out);
void kv_compact(const std::vector<Tensor>& k_caches, const std::vector<Tensor>& v_caches, const Tensor& cursor,
                const Tensor& slots, const Tensor& accepted, const Tensor& path);
void argmax(const Tensor& logits, const Tensor& out);
void speculative_accept(const Tensor& logits, const Tensor& drafts, const Tensor& ntokens,
                        const std::optional<Tensor>& draft_probs, const std::optional<Tensor>& uniforms,
                        double temperature, const Tensor& accepted, const Tensor& next_token);
void causal_conv1d_update(
    const Tensor& x, const Tensor& conv_state, const Tensor& weight, const std::optional<Tensor>& bias, bool silu,
    const std::optional<Tensor>& cache_seqlens, const std::optional<Tensor>& conv_state_indices,
    const std::optional<Tensor>& num_accepted_tokens, const std::optional<Tensor>& query_start_loc, int64_t pad_slot_id,
    const std::optional<Tensor>& block_idx_last_scheduled_token, const std::optional<Tensor>& initial_state_idx,
    const std::optional<Tensor>& retrieve_parent_token, const std::optional<Tensor>& intermediate_conv_window,
    const std::optional<Tensor>& intermediate_state_indices, const Tensor& out);
void checkpointing_ssu(const Tensor& state, const Tensor& x_cache, const Tensor& B_cache, const Tensor& dt_cache,
                       const Tensor& ring_start, const Tensor& prev_num_accepted_tokens, const Tensor& x,
                       const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                       const std::optional<Tensor>& D, const std::optional<Tensor>& z,
                       const std::optional<Tensor>& dt_bias, bool dt_softplus,
                       const std::optional<Tensor>& state_batch_indices, int64_t pad_slot_id,
                       const std::optional<Tensor>& cu_seqlens, int64_t max_seqlen, const Tensor& out);

}  // namespace llamba
