// speculative_accept_kernel -- how many tokens of a window stay, and the token that follows them.
// Grid     (batch)                                 Block  32 to 512 threads, by vocab alone
// Owns     one block owns accepted[b] and next_token[b]
// Threads  a row of logits goes round the threads by vectors (16 bytes); every thread knows every decision
// Shared   AcceptStorage: a double and a key for each warp
// Flow     row by row until a draft does not stay: 1 maximum  2 sampled: sum  3 the draft stays or not.
//          Then 4 sampled: the sum of (p - q)+ if a draft was rejected, and a token of it
// Barriers 2 for each maximum, sum and tile; all threads take every branch together
// Numerics the exponential in fp32, sums in double: a thread in order of its elements, lanes in one tree, warps in
//          order. A row's bits depend on that row alone
// Requires nothing beyond speculative_accept_check.h
// What the CPU refuses cannot be reported from here: a sequence whose ntokens, or whose logits, drafts, uniforms or
// draft_probs, as far as the decision reads them, break a rule gets accepted 0 and next_token -1.
#pragma once

#include "speculative_accept/inverse_temperature.h"
#include "speculative_accept/speculative_accept_row.cuh"

namespace llamba {

struct Decision {
  int32_t accepted;
  int64_t next_token;
};

__device__ __forceinline__ bool is_uniform(double u) { return u >= 0.0 && u < 1.0; }

// Leviathan et al., arXiv 2211.17192: see speculative_accept_cpu.cpp.
template <typename T>
__device__ __forceinline__ Decision decide(const llamba_speculative_accept_args& args, int64_t b,
                                           AcceptStorage& shared) {
  constexpr Decision kRefused{0, -1};
  const int32_t ntokens = load_global(args.ntokens + b);
  if (ntokens < 1 || ntokens > args.max_window) return kRefused;
  const double* uniforms = args.uniforms != nullptr ? args.uniforms + b * args.uniforms_stride_batch : nullptr;
  for (int32_t i = 0;; ++i) {
    const T* logits = static_cast<const T*>(args.logits) + b * args.logits_stride_batch + i * args.logits_stride_token;
    const RowMax row = row_max(logits, args.vocab, shared);
    if (!(fabsf(row.max) < INFINITY)) return kRefused;
    const bool is_draft = i + 1 < ntokens;
    const int64_t draft = is_draft ? load_global(args.drafts + b * args.drafts_stride_batch + i) : 0;
    if (draft < 0 || draft >= args.vocab) return kRefused;
    if (uniforms == nullptr) {
      if (is_draft && draft == row.argmax) continue;
      return {i + 1, row.argmax};
    }
    const Weights<T> p{logits, nullptr, args.vocab, -1, row.max, inverse_of(args.temperature), 1.0f};
    const double sum = sum_of(p, shared);
    const float* q = nullptr;  // what the draft model gave every token; nullptr: the draft was certain
    if (is_draft) {
      if (args.draft_probs != nullptr) {
        q = args.draft_probs + b * args.draft_probs_stride_batch + i * args.draft_probs_stride_token;
      }
      const double q_draft = q != nullptr ? load_global(q + draft) : 1.0, u = load_global(uniforms + i);
      if (!is_uniform(u) || !(q_draft >= 0.0 && q_draft <= 1.0)) return kRefused;
      if (u * q_draft < p.exponential(to_float(load_global(logits + draft))) / sum) continue;
    }
    const double u = load_global(uniforms + args.max_window - 1);
    if (!is_uniform(u)) return kRefused;
    Weights<T> weights = p;
    double total = sum;
    if (is_draft) {
      weights.q = q;
      if (q == nullptr) weights.without = draft;
      if (q != nullptr) weights.scale = static_cast<float>(1.0 / sum);
      total = sum_of(weights, shared);
      if (!(total > 0.0)) {  // p = q but for rounding, which has rejected the draft: p itself is the right law then
        weights = p;
        total = sum;
      }
    }
    return {i + 1, sample(weights, u * total, shared)};
  }
}

template <typename T>
__global__ void __launch_bounds__(kAcceptThreads, 2) speculative_accept_kernel(llamba_speculative_accept_args args) {
  const int64_t b = block_index();
  if (b >= args.batch) return;
  const Decision decision = decide<T>(args, b, shared_storage<AcceptStorage>());
  if (threadIdx.x == 0) {
    store_global(args.accepted + b, decision.accepted);
    store_global(args.next_token + b, decision.next_token);
  }
}

}  // namespace llamba
