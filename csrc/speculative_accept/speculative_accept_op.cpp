// Host function of speculative_accept: checks every tensor, fills the struct, runs it.
#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {

void speculative_accept(const Tensor& logits, const Tensor& drafts, const Tensor& ntokens,
                        const std::optional<Tensor>& draft_probs, const std::optional<Tensor>& uniforms,
                        double temperature, const Tensor& accepted, const Tensor& next_token) {
  constexpr const char* kOp = "speculative_accept";
  llamba_speculative_accept_args args{sizeof(args)};
  args.dtype = CHECK_FLOATING(logits);
  CHECK_DIM(logits, 3, 3);
  CHECK_STRIDE(logits, -1, 1);
  const int64_t batch = logits.size(0), max_window = logits.size(1), vocab = logits.size(2);
  CHECK_RANGE(max_window, 1, INT32_MAX);  // here too: shapes below are one less
  CHECK_SHAPE(drafts, batch, max_window - 1);
  CHECK_DTYPE(drafts, Long);
  CHECK_STRIDE(drafts, -1, 1);
  CHECK_SAME_DEVICE(drafts, logits);
  CHECK_INDICES(ntokens, logits, batch);
  if (draft_probs.has_value()) {
    CHECK_SHAPE(*draft_probs, batch, max_window - 1, vocab);
    CHECK_DTYPE(*draft_probs, Float);
    CHECK_STRIDE(*draft_probs, -1, 1);
    CHECK_SAME_DEVICE(*draft_probs, logits);
    args.draft_probs = static_cast<const float*>(draft_probs->const_data_ptr());
    args.draft_probs_stride_batch = draft_probs->stride(0);
    args.draft_probs_stride_token = draft_probs->stride(1);
  }
  if (uniforms.has_value()) {
    CHECK_SHAPE(*uniforms, batch, max_window);
    CHECK_DTYPE(*uniforms, Double);
    CHECK_STRIDE(*uniforms, -1, 1);
    CHECK_SAME_DEVICE(*uniforms, logits);
    args.uniforms = static_cast<const double*>(uniforms->const_data_ptr());
    args.uniforms_stride_batch = uniforms->stride(0);
  }
  CHECK_INDICES(accepted, logits, batch);
  CHECK_SHAPE(next_token, batch);
  CHECK_DTYPE(next_token, Long);
  CHECK_STRIDE(next_token, -1, 1);
  CHECK_SAME_DEVICE(next_token, logits);
  CHECK_WRITTEN(accepted, logits, drafts, ntokens, draft_probs, uniforms);
  CHECK_WRITTEN(next_token, logits, drafts, ntokens, draft_probs, uniforms, accepted);

  args.batch = batch;
  args.max_window = max_window;
  args.vocab = vocab;
  args.temperature = temperature;
  args.logits = logits.const_data_ptr();
  args.logits_stride_batch = logits.stride(0);
  args.logits_stride_token = logits.stride(1);
  args.drafts = static_cast<const int64_t*>(drafts.const_data_ptr());
  args.drafts_stride_batch = drafts.stride(0);
  args.ntokens = static_cast<const int32_t*>(ntokens.const_data_ptr());
  args.accepted = static_cast<int32_t*>(accepted.mutable_data_ptr());
  args.next_token = static_cast<int64_t*>(next_token.mutable_data_ptr());
  run(kOp, logits, args, llamba_speculative_accept_cpu);
}

}  // namespace llamba
