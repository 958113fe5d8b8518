// argmax on the CPU: reads all rows, checks them, then writes; so a refused call writes nothing.
#include "argmax/argmax_cpu.h"

#include <cmath>
#include <vector>

#include "common/error.h"
#include "common/parallel.h"

using namespace llamba;

namespace {

constexpr const char* kOp = "argmax";

int argmax(const llamba_argmax_args* args) {
  LLAMBA_CHECK_SIZE(kOp, args);
  LLAMBA_CHECK_DTYPE(kOp, args);
  LLAMBA_CHECK_LEAST(kOp, args, batch, 0);
  LLAMBA_CHECK_LEAST(kOp, args, ntokens, 0);
  LLAMBA_CHECK_LEAST(kOp, args, vocab, 1);
  const int64_t count = args->batch * args->ntokens;
  static thread_local std::vector<ArgmaxRow> storage;  // kept between calls: a step allocates nothing
  if (static_cast<int64_t>(storage.size()) < count) storage.resize(count);
  ArgmaxRow* rows = storage.data();
  constexpr int64_t kLogitsPerThread = 1 << 18;  // a thread is worth waking from about 50 us of work
  parallel_for(0, count, kLogitsPerThread / args->vocab + 1,
               [&](int64_t begin, int64_t end) { LLAMBA_CALL_ISA(argmax_rows, *args, begin, end, rows); });
  for (int64_t row = 0; row < count; ++row) {
    if (!std::isfinite(rows[row].max)) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: logits must have a finite maximum and no NaN in every row; got %g in row %" PRId64
                  " of sequence %" PRId64,
                  kOp, rows[row].max, row % args->ntokens, row / args->ntokens);
    }
  }
  for (int64_t row = 0; row < count; ++row) {
    args->out[row / args->ntokens * args->out_stride_batch + row % args->ntokens * args->out_stride_token] =
        rows[row].argmax;
  }
  return LLAMBA_OK;
}

}  // namespace

extern "C" int llamba_argmax_cpu(const llamba_argmax_args* args) {
  return guarded(kOp, [&] { return argmax(args); });
}
