#include "common/cpu_isa.h"
#include "common/error.h"
#include "common/parallel.h"

namespace llamba {

// Output features [begin, end) of all rows.
LLAMBA_DECLARE_ISA_BF16(void skinny_linear_features(const llamba_skinny_linear_args& args, int64_t begin, int64_t end))

namespace {

// The same rows as one sequence where the strides allow it, so that one tile can span several sequences.
llamba_skinny_linear_args with_flat_rows(llamba_skinny_linear_args args) {
  if (args.ntokens == 1) {
    args.x_stride_token = args.x_stride_batch;
    args.out_stride_token = args.out_stride_batch;
  } else if (args.x_stride_batch != args.ntokens * args.x_stride_token ||
             args.out_stride_batch != args.ntokens * args.out_stride_token) {
    return args;
  }
  args.ntokens *= args.batch;
  args.batch = 1;
  return args;
}

}  // namespace
}  // namespace llamba

using namespace llamba;

extern "C" int llamba_skinny_linear_cpu(const llamba_skinny_linear_args* given) {
  constexpr const char* kOp = "skinny_linear";
  LLAMBA_CHECK_SIZE(kOp, given);
  LLAMBA_CHECK_DTYPE(kOp, given);
  LLAMBA_CHECK_LEAST(kOp, given, batch, 0);
  LLAMBA_CHECK_LEAST(kOp, given, ntokens, 0);
  LLAMBA_CHECK_LEAST(kOp, given, in_features, 0);
  LLAMBA_CHECK_LEAST(kOp, given, out_features, 0);
  if (given->batch * given->ntokens == 0) return LLAMBA_OK;
  const llamba_skinny_linear_args args = with_flat_rows(*given);
  constexpr int64_t kBlock = 6;                    // features: pieces end where the kernel's tiles do
  constexpr int64_t kProductsPerThread = 1 << 18;  // a thread is worth waking from about 50 us of work
  const int64_t products_per_block = kBlock * args.in_features * args.batch * args.ntokens;
  parallel_for(0, (args.out_features + kBlock - 1) / kBlock, kProductsPerThread / (products_per_block + 1) + 1,
               [&](int64_t begin, int64_t end) {
                 const int64_t stop = end * kBlock < args.out_features ? end * kBlock : args.out_features;
                 LLAMBA_CALL_ISA_BF16(skinny_linear_features, args, begin * kBlock, stop);
               });
  return LLAMBA_OK;
}
