// conv1d_verify on the CPU: checks, the plan of every sequence's tokens, one parallel loop over the whole batch.
#include "conv1d_verify/conv1d_verify_cpu.h"

#include <cstring>

#include "common/dtype.h"
#include "conv1d_verify/conv1d_verify_check.h"
#include "cursor/step_plan.h"

namespace llamba {
namespace {

constexpr const char* kOp = "conv1d_verify";

int conv1d_verify(const llamba_conv1d_verify_args& given) {
  int status = check_conv1d_sizes(kOp, given);
  if (status != LLAMBA_OK) return status;
  llamba_conv1d_verify_args args = given;
  if (args.x_heads == args.nheads) {  // every channel of out has one of x: a vector may go beyond a head
    args.headdim *= args.nheads;
    args.nheads = args.x_heads = 1;
  }
  static thread_local StepPlan plan;
  status = plan.make(kOp, step_args(args, 0, "x"), true);
  if (status != LLAMBA_OK) return status;
  // Nothing has been written so far; from here on nothing fails but the memory of a first, larger step.
  const int64_t items = int64_t{args.nheads} * ((args.headdim + kBlock - 1) / kBlock);
  if (plan.count() > 0) {
    run_items(
        plan, items, kElementsPerThread / (kBlock * (plan.tokens() / plan.count() + 1)) + 1,
        [&](const StepSequence& sequence) { return LLAMBA_CALL_ISA(conv1d_scratch_floats, sequence); },
        [&](const StepSequence& sequence, int64_t begin, int64_t end, float* scratch) {
          LLAMBA_CALL_ISA(conv1d_blocks, args, sequence, begin, end, scratch);
        });
  }

  const int64_t size = element_size(args.dtype);
  plan.each_entry(args.batch, [&](int32_t i, int32_t ntokens) {
    for (int32_t t = ntokens; t < args.max_ntokens; ++t) {
      const int64_t at = i * args.out_stride_batch + t * args.out_stride_token;
      std::memset(static_cast<char*>(args.out) + at * size, 0, int64_t{args.nheads} * args.headdim * size);
    }
  });
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_conv1d_verify_cpu(const llamba_conv1d_verify_args* args) {
  LLAMBA_CHECK_SIZE(llamba::kOp, args);
  return llamba::guarded(llamba::kOp, [&] { return llamba::conv1d_verify(*args); });
}
