// silu_mul -- out = silu(gate) * up, element by element: fp32, one rounding, the same formula in whole and partial vectors.
#include "common/vec.h"
#include "llamba.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

template <typename T>
void multiply_rows(const llamba_silu_mul_args& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t batch = row / args.ntokens, token = row % args.ntokens;
    const T* gate = static_cast<const T*>(args.gate) + batch * args.gate_stride_batch + token * args.gate_stride_token;
    const T* up = static_cast<const T*>(args.up) + batch * args.up_stride_batch + token * args.up_stride_token;
    T* out = static_cast<T*>(args.out) + batch * args.out_stride_batch + token * args.out_stride_token;
    for (int64_t i = 0; i < args.width; i += kLanes) {
      const int n = lanes_left(args.width - i);
      store_first(out + i, mul(silu(load_first(gate + i, n)), load_first(up + i, n)), n);
    }
  }
}

}  // namespace

void silu_mul_rows(const llamba_silu_mul_args& args, int64_t begin, int64_t end) {
  LLAMBA_SWITCH_DTYPE(args.dtype, T, multiply_rows<T>(args, begin, end));
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
