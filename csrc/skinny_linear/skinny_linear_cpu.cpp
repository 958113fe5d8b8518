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

constexpr const char* kOp = "skinny_linear";
constexpr int64_t kBlock = 6;  // features: pieces end where the kernel's tiles do

int check_skinny_linear(const llamba_skinny_linear_args* args) {
  LLAMBA_CHECK_SIZE(kOp, args);
  LLAMBA_CHECK_DTYPE(kOp, args);
  LLAMBA_CHECK_LEAST(kOp, args, batch, 0);
  LLAMBA_CHECK_LEAST(kOp, args, ntokens, 0);
  LLAMBA_CHECK_LEAST(kOp, args, in_features, 0);
  LLAMBA_CHECK_LEAST(kOp, args, out_features, 0);
  return LLAMBA_OK;
}

// The blocks of all calls are one range for the threads.
struct Calls {
  llamba_skinny_linear_args args[LLAMBA_MAX_LINEARS];
  int64_t first_block[LLAMBA_MAX_LINEARS + 1] = {0};
  int64_t count, products_per_block = 0;

  Calls(const llamba_skinny_linear_args* given, int64_t n) : count(n) {
    for (int64_t i = 0; i < n; ++i) {
      args[i] = with_flat_rows(given[i]);
      const int64_t rows = given[i].batch * given[i].ntokens, products = kBlock * given[i].in_features * rows;
      first_block[i + 1] = first_block[i] + (rows == 0 ? 0 : (given[i].out_features + kBlock - 1) / kBlock);
      if (products > products_per_block) products_per_block = products;
    }
  }

  void run(int64_t begin, int64_t end) const {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t from = (begin > first_block[i] ? begin : first_block[i]) - first_block[i];
      const int64_t to = (end < first_block[i + 1] ? end : first_block[i + 1]) - first_block[i];
      if (from >= to) continue;
      const int64_t stop = to * kBlock < args[i].out_features ? to * kBlock : args[i].out_features;
      LLAMBA_CALL_ISA_BF16(skinny_linear_features, args[i], from * kBlock, stop);
    }
  }
};

}  // namespace
}  // namespace llamba

using namespace llamba;

extern "C" int llamba_skinny_linear_many_cpu(const llamba_skinny_linear_args* given, int64_t count) {
  if (count < 0 || count > LLAMBA_MAX_LINEARS) {
    return fail(LLAMBA_VALUE_ERROR, "%s: count must be 0 to %d; got %" PRId64, kOp, LLAMBA_MAX_LINEARS, count);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int status = check_skinny_linear(given + i);
    if (status != LLAMBA_OK) return status;
  }
  constexpr int64_t kProductsPerThread = 1 << 18;  // a thread is worth waking from about 50 us of work
  const Calls calls(given, count);
  parallel_for(0, calls.first_block[count], kProductsPerThread / (calls.products_per_block + 1) + 1,
               [&](int64_t begin, int64_t end) { calls.run(begin, end); });
  return LLAMBA_OK;
}

extern "C" int llamba_skinny_linear_cpu(const llamba_skinny_linear_args* given) {
  return llamba_skinny_linear_many_cpu(given, 1);
}
