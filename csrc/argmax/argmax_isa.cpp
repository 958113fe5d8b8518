// argmax -- the lowest index of each row's largest logit. A row is read by one thread, its maximum is exact.
#include "argmax/argmax_cpu.h"
#include "common/row_max.h"

namespace llamba {
namespace LLAMBA_ISA {

void argmax_rows(const llamba_argmax_args& args, int64_t begin, int64_t end, ArgmaxRow* rows) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset =
        row / args.ntokens * args.logits_stride_batch + row % args.ntokens * args.logits_stride_token;
    RowMax largest{};
    LLAMBA_SWITCH_DTYPE(args.dtype, T, largest = row_max(static_cast<const T*>(args.logits) + offset, args.vocab));
    rows[row] = ArgmaxRow{largest.max, largest.argmax};
  }
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
