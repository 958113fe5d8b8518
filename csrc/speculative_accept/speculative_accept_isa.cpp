// speculative_accept's passes over the vocabulary, in blocks that stay in the nearest cache.
// Numerics the exponential in fp32, sums in double: per block 16 lanes in order, then the lanes in order, then the
//          blocks in order. A row is read by one thread, so its sums are the same in every batch.
#include "common/row_max.h"
#include "common/vec.h"
#include "speculative_accept/inverse_temperature.h"
#include "speculative_accept/speculative_accept_cpu.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

constexpr int64_t kBlock = 1024;

LLAMBA_INLINE int block_size(const llamba_speculative_accept_args& args, int64_t start) {
  return static_cast<int>(args.vocab - start < kBlock ? args.vocab - start : kBlock);
}

template <typename T>
const T* logits_row(const llamba_speculative_accept_args& args, int64_t b, int64_t i) {
  return static_cast<const T*>(args.logits) + b * args.logits_stride_batch + i * args.logits_stride_token;
}

// Sum of n floats (a multiple of 16) in double.
double block_sum(const float* values, int n) {
  double lanes[kLanes] = {};
  for (int i = 0; i < n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane];
  }
  double total = 0.0;
  for (int lane = 0; lane < kLanes; ++lane) total += lanes[lane];
  return total;
}

// exp((logit - max) / temperature). vec.h's exp never falls below the least normal float; a masked token must get 0.
LLAMBA_INLINE vec16 exponential(vec16 logits, float row_max, float inverse_temperature) {
  const vec16 scaled = mul(add(logits, broadcast(-row_max)), broadcast(inverse_temperature));
  return add(exp(scaled), mul(broadcast(-1.0f), exp(broadcast(-__builtin_inff()))));
}

// A row's unnormalised p, or its (p - q)+, in blocks.
template <typename T>
struct Weights {
  const T* logits;  // [vocab]
  const float* q;   // [vocab] or nullptr
  int64_t without;  // token of weight zero, or -1
  float row_max, inverse_temperature;
  float scale;  // p = scale * exponential

  // Writes the weights of tokens start to start + n, then zeros up to whole vectors; returns their sum.
  double fill(float* weights, int64_t start, int n) const {
    for (int i = 0; i < n; i += kLanes) {
      const int count = lanes_left(n - i);
      const vec16 p =
          mul(exponential(load_first(logits + start + i, count), row_max, inverse_temperature), broadcast(scale));
      const vec16 minus_q = q ? mul(broadcast(-1.0f), load_first(q + start + i, count)) : broadcast(0.0f);
      store(weights + i, broadcast(0.0f));  // for the lanes after a partial vector
      store_first(weights + i, max(add(p, minus_q), broadcast(0.0f)), count);
    }
    if (without >= start && without < start + n) weights[without - start] = 0.0f;
    return block_sum(weights, (n + kLanes - 1) / kLanes * kLanes);
  }
};

template <typename T>
double sum_of(const Weights<T>& weights, const llamba_speculative_accept_args& args) {
  float block[kBlock];
  double total = 0.0;
  for (int64_t start = 0; start < args.vocab; start += kBlock) {
    total += weights.fill(block, start, block_size(args, start));
  }
  return total;
}

template <typename T>
Weights<T> p_of(const llamba_speculative_accept_args& args, const AcceptRow& row, int64_t b, int64_t i) {
  return Weights<T>{logits_row<T>(args, b, i), nullptr, -1, row.max, inverse_of(args.temperature), 1.0f};
}

template <typename T>
AcceptRow read_row(const llamba_speculative_accept_args& args, int64_t b, int64_t i) {
  const RowMax largest = row_max(logits_row<T>(args, b, i), args.vocab);
  AcceptRow row{largest.max, static_cast<int32_t>(largest.argmax), 0.0};
  if (args.uniforms && __builtin_isfinite(row.max)) row.sum = sum_of(p_of<T>(args, row, b, i), args);
  return row;
}

template <typename T>
int64_t sample(const llamba_speculative_accept_args& args, const AcceptRow& row, int64_t b, int64_t i, bool rejected,
               double u) {
  const Weights<T> p = p_of<T>(args, row, b, i);
  Weights<T> weights = p;
  double total = row.sum;
  if (rejected && args.draft_probs) {
    weights.q = args.draft_probs + b * args.draft_probs_stride_batch + i * args.draft_probs_stride_token;
    weights.scale = static_cast<float>(1.0 / row.sum);
    total = sum_of(weights, args);
  } else if (rejected) {
    weights.without = args.drafts[b * args.drafts_stride_batch + i];  // q is 1 there and 0 elsewhere
    total = sum_of(weights, args);
  }
  if (!(total > 0.0)) {  // p = q but for rounding, which has rejected the draft: p itself is the right law then
    weights = p;
    total = row.sum;
  }
  // The block in which the running sum passes u * total, else (u * total rounded up) the last that weighs anything.
  float block[kBlock];
  double before = 0.0;  // weight of all blocks before the chosen one
  int64_t chosen = 0;
  double passed = 0.0;
  for (int64_t start = 0; start < args.vocab; start += kBlock) {
    const double block_total = weights.fill(block, start, block_size(args, start));
    if (block_total > 0.0) {
      before = passed;
      chosen = start;
    }
    passed += block_total;
    if (passed > u * total) break;
  }
  // Within it likewise, token by token.
  weights.fill(block, chosen, block_size(args, chosen));
  int64_t token = chosen;
  for (int j = 0; j < block_size(args, chosen); ++j) {
    if (block[j] == 0.0f) continue;
    token = chosen + j;
    before += block[j];
    if (before > u * total) break;
  }
  return token;
}

}  // namespace

void accept_read_rows(const llamba_speculative_accept_args& args, int64_t begin, int64_t end, AcceptRow* rows) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / args.max_window, i = row % args.max_window;
    if (i >= args.ntokens[b]) continue;
    LLAMBA_SWITCH_DTYPE(args.dtype, T, rows[row] = read_row<T>(args, b, i));
  }
}

double accept_probability(const llamba_speculative_accept_args& args, const AcceptRow& row, int64_t b, int64_t i,
                          int64_t token) {
  float logit = 0.0f;
  LLAMBA_SWITCH_DTYPE(args.dtype, T, logit = to_float(logits_row<T>(args, b, i)[token]));
  float lanes[kLanes];
  store(lanes, exponential(broadcast(logit), row.max, inverse_of(args.temperature)));
  return lanes[0] / row.sum;
}

int64_t accept_sample(const llamba_speculative_accept_args& args, const AcceptRow& row, int64_t b, int64_t i,
                      bool rejected, double u) {
  LLAMBA_SWITCH_DTYPE(args.dtype, T, return sample<T>(args, row, b, i, rejected, u));
  return -1;  // no other dtype passes the check
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
