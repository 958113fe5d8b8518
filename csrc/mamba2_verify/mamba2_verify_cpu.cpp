// mamba2_verify on the CPU: checks, the plan of every sequence's tokens, one parallel loop over the whole batch.
#include "mamba2_verify/mamba2_verify_cpu.h"

#include <cstring>

#include "common/dtype.h"
#include "cursor/step_plan.h"
#include "mamba2_verify/mamba2_check.h"

namespace llamba {
namespace {

constexpr const char* kOp = "mamba2_verify";

// State elements a thread should at least update before a second thread is worth waking (about 10 us of work on one core).
constexpr int64_t kElementsPerPiece = 1 << 18;

}  // namespace

void mamba2_run(const llamba_mamba2_verify_args& args, const StepPlan& plan) {
  if (plan.count() == 0) return;  // padding only
  const int64_t blocks = int64_t{args.nheads} * ((args.headdim + kBlock - 1) / kBlock);
  const int64_t elements_per_block = (plan.tokens() + plan.count()) * kBlock * args.dstate / plan.count();
  run_items(
      plan, blocks, kElementsPerPiece / elements_per_block + 1,
      [&](const StepSequence& sequence) { return LLAMBA_CALL_ISA(mamba2_scratch_floats, args, sequence); },
      [&](const StepSequence& sequence, int64_t begin, int64_t end, float* scratch) {
        LLAMBA_CALL_ISA(mamba2_blocks, args, sequence, begin, end, scratch);
      });
}

namespace {

int mamba2_verify(const llamba_mamba2_verify_args& args) {
  int status = check_mamba2_sizes(kOp, args);
  if (status == LLAMBA_OK && args.max_ntokens < 1) {
    status = fail(LLAMBA_VALUE_ERROR, "%s: max_ntokens must be at least 1; got %d", kOp, args.max_ntokens);
  }
  if (status == LLAMBA_OK && args.algorithm != LLAMBA_RECURRENT) {
    status = args.algorithm == LLAMBA_MATMUL
                 ? fail(LLAMBA_VALUE_ERROR, "%s: algorithm must be recurrent on a CPU; got matmul", kOp)
                 : fail(LLAMBA_VALUE_ERROR, "%s: algorithm must be recurrent on a CPU; got code %d", kOp,
                        static_cast<int>(args.algorithm));
  }
  if (status != LLAMBA_OK) return status;
  static thread_local StepPlan plan;
  status = plan.make(kOp, step_args(args, args.fold_every, "xBC"), true);
  if (status != LLAMBA_OK) return status;
  // Nothing has been written so far; from here on nothing fails but the memory of a first, larger step.
  mamba2_run(args, plan);

  const int64_t size = element_size(args.dtype);
  plan.each_entry(args.batch, [&](int32_t i, int32_t ntokens) {
    for (int32_t t = ntokens; t < args.max_ntokens; ++t) {
      for (int32_t head = 0; head < args.nheads; ++head) {
        const int64_t at = i * args.out_stride_batch + t * args.out_stride_token + head * args.out_stride_head;
        std::memset(static_cast<char*>(args.out) + at * size, 0, args.headdim * size);
      }
    }
  });
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_mamba2_verify_cpu(const llamba_mamba2_verify_args* args) {
  LLAMBA_CHECK_SIZE(llamba::kOp, args);
  return llamba::guarded(llamba::kOp, [&] { return llamba::mamba2_verify(*args); });
}
