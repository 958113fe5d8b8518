// mamba1_verify on the CPU: checks, the plan of every sequence's tokens, one parallel loop over the whole batch.
#include "mamba1_verify/mamba1_verify_cpu.h"

#include <cstring>

#include "common/dtype.h"
#include "cursor/step_plan.h"
#include "mamba1_verify/mamba1_check.h"

namespace llamba {
namespace {

constexpr const char* kOp = "mamba1_verify";

// State elements, each an exponential, that a thread should at least update before a second one is worth waking.
constexpr int64_t kElementsPerPiece = 1 << 16;

}  // namespace

void mamba1_run(const llamba_mamba1_verify_args& args, const StepPlan& plan) {
  if (plan.count() == 0) return;  // padding only
  const Mamba1Items items(args);
  const int64_t elements_per_item = (plan.tokens() + plan.count()) * kBlock * args.dstate / plan.count();
  run_items(
      plan, items.count, kElementsPerPiece / elements_per_item + 1,
      [&](const StepSequence& sequence) { return LLAMBA_CALL_ISA(mamba1_scratch_floats, args, sequence); },
      [&](const StepSequence& sequence, int64_t begin, int64_t end, float* scratch) {
        LLAMBA_CALL_ISA(mamba1_blocks, args, items, sequence, begin, end, scratch);
      });
}

namespace {

int mamba1_verify(const llamba_mamba1_verify_args& args) {
  int status = check_mamba1_sizes(kOp, args);
  if (status == LLAMBA_OK && args.max_ntokens < 1) {
    status = fail(LLAMBA_VALUE_ERROR, "%s: max_ntokens must be at least 1; got %d", kOp, args.max_ntokens);
  }
  if (status != LLAMBA_OK) return status;
  static thread_local StepPlan plan;
  status = plan.make(kOp, step_args(args, args.fold_every, "x"), true);
  if (status != LLAMBA_OK) return status;
  // Nothing has been written so far; from here on nothing fails but the memory of a first, larger step.
  mamba1_run(args, plan);

  const int64_t size = element_size(args.dtype);
  plan.each_entry(args.batch, [&](int32_t i, int32_t ntokens) {
    for (int32_t t = ntokens; t < args.max_ntokens; ++t) {
      const int64_t at = i * args.out_stride_batch + t * args.out_stride_token;
      std::memset(static_cast<char*>(args.out) + at * size, 0, args.d_inner * size);
    }
  });
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_mamba1_verify_cpu(const llamba_mamba1_verify_args* args) {
  LLAMBA_CHECK_SIZE(llamba::kOp, args);
  return llamba::guarded(llamba::kOp, [&] { return llamba::mamba1_verify(*args); });
}
