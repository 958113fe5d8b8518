// speculative_accept on the CPU: reads all rows, checks everything, then decides; so a refused call writes nothing.
#include "speculative_accept/speculative_accept_cpu.h"

#include <cinttypes>
#include <cmath>
#include <vector>

#include "common/parallel.h"
#include "speculative_accept/speculative_accept_check.h"

namespace llamba {
namespace {

constexpr const char* kOp = "speculative_accept";

int64_t draft_of(const llamba_speculative_accept_args& args, int64_t b, int64_t i) {
  return args.drafts[b * args.drafts_stride_batch + i];
}

double uniform_of(const llamba_speculative_accept_args& args, int64_t b, int64_t i) {
  return args.uniforms[b * args.uniforms_stride_batch + i];
}

// q(draft i): what its draft model gave it; a draft without probabilities was certain.
double draft_probability(const llamba_speculative_accept_args& args, int64_t b, int64_t i) {
  if (args.draft_probs == nullptr) return 1.0;
  return args.draft_probs[b * args.draft_probs_stride_batch + i * args.draft_probs_stride_token + draft_of(args, b, i)];
}

int check_before_reading(const llamba_speculative_accept_args& args) {
  const int status = check_speculative_accept(&args);
  if (status != LLAMBA_OK) return status;
  for (int64_t b = 0; b < args.batch; ++b) {
    if (args.ntokens[b] < 1 || args.ntokens[b] > args.max_window) {
      return fail(LLAMBA_VALUE_ERROR, "%s: ntokens must be 1 to max_window = %" PRId64 "; got %d for sequence %" PRId64,
                  kOp, args.max_window, args.ntokens[b], b);
    }
  }
  return LLAMBA_OK;
}

int check_sequence(const llamba_speculative_accept_args& args, const AcceptRow* rows, int64_t b) {
  const int64_t ntokens = args.ntokens[b];
  for (int64_t i = 0; i < ntokens; ++i) {
    if (!std::isfinite(rows[i].max)) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: logits must have a finite maximum and no NaN in every row; got %g in row %" PRId64
                  " of sequence %" PRId64,
                  kOp, rows[i].max, i, b);
    }
    const bool is_draft = i < ntokens - 1;
    if (is_draft && (draft_of(args, b, i) < 0 || draft_of(args, b, i) >= args.vocab)) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: drafts must be below vocab = %" PRId64 " and not negative; got %" PRId64 " as draft %" PRId64
                  " of sequence %" PRId64,
                  kOp, args.vocab, draft_of(args, b, i), i, b);
    }
    if (args.uniforms == nullptr) continue;
    const int64_t column = is_draft ? i : args.max_window - 1;
    const double u = uniform_of(args, b, column);
    if (!(u >= 0.0 && u < 1.0)) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: uniforms must be at least 0 and below 1; got %g in column %" PRId64 " of sequence %" PRId64, kOp,
                  u, column, b);
    }
    if (is_draft && !(draft_probability(args, b, i) >= 0.0 && draft_probability(args, b, i) <= 1.0)) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: draft_probs must be 0 to 1; got %g for draft %" PRId64 " of sequence %" PRId64, kOp,
                  draft_probability(args, b, i), i, b);
    }
  }
  return LLAMBA_OK;
}

void decide_greedily(const llamba_speculative_accept_args& args, const AcceptRow* rows, int64_t b) {
  int32_t accepted = 1;  // the pending token
  while (accepted < args.ntokens[b] && draft_of(args, b, accepted - 1) == rows[accepted - 1].argmax) ++accepted;
  args.accepted[b] = accepted;
  args.next_token[b] = rows[accepted - 1].argmax;
}

// Leviathan et al., arXiv 2211.17192: draft d stays with probability min(1, p(d) / q(d)); the first that does not is
// replaced by a token of (p - q)+, and after the last draft comes a token of p. Then all tokens have the target's law.
void decide_by_sampling(const llamba_speculative_accept_args& args, const AcceptRow* rows, int64_t b) {
  const auto stays = [&](int64_t i) {
    const double p = LLAMBA_CALL_ISA(accept_probability, args, rows[i], b, i, draft_of(args, b, i));
    return uniform_of(args, b, i) * draft_probability(args, b, i) < p;
  };
  int32_t accepted = 1;
  while (accepted < args.ntokens[b] && stays(accepted - 1)) ++accepted;
  const int64_t last = accepted - 1;
  const bool rejected = accepted < args.ntokens[b];
  const double u = uniform_of(args, b, args.max_window - 1);
  args.accepted[b] = accepted;
  args.next_token[b] = LLAMBA_CALL_ISA(accept_sample, args, rows[last], b, last, rejected, u);
}

int speculative_accept(const llamba_speculative_accept_args& args) {
  int status = check_before_reading(args);
  if (status != LLAMBA_OK) return status;
  constexpr int64_t kLogitsPerThread = 1 << 18;  // a thread is worth waking from about 50 us of work
  const int64_t grain = kLogitsPerThread / args.vocab + 1;
  static thread_local std::vector<AcceptRow> storage;  // kept between calls: a step allocates nothing
  if (static_cast<int64_t>(storage.size()) < args.batch * args.max_window) storage.resize(args.batch * args.max_window);
  AcceptRow* rows = storage.data();  // [batch, max_window]
  parallel_for(0, args.batch * args.max_window, grain,
               [&](int64_t begin, int64_t end) { LLAMBA_CALL_ISA(accept_read_rows, args, begin, end, rows); });
  for (int64_t b = 0; b < args.batch; ++b) {
    status = check_sequence(args, rows + b * args.max_window, b);
    if (status != LLAMBA_OK) return status;
  }
  parallel_for(0, args.batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      (args.uniforms ? decide_by_sampling : decide_greedily)(args, rows + b * args.max_window, b);
    }
  });
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_speculative_accept_cpu(const llamba_speculative_accept_args* args) {
  return llamba::guarded("speculative_accept", [&] { return llamba::speculative_accept(*args); });
}
