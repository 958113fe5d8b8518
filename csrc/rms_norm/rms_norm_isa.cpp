// rms_norm -- out = v / sqrt(mean(v^2) + eps) * weight for each row; v = x, or residual + x, which is stored first.
// Numerics fp32, one rounding at the end (and one of the sum). Element i of a row adds to lane i % 16 in order of i, then
//          the lanes' fixed tree: a row's bits depend on its own elements alone.
#include "common/vec.h"
#include "llamba.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

template <typename T>
void norm_row(const T* x, const T* weight, T* residual, T* out, int64_t width, float eps) {
  vec16 squares = broadcast(0.0f);
  for (int64_t i = 0; i < width; i += kLanes) {
    const int n = lanes_left(width - i);
    vec16 v = load_first(x + i, n);
    if (residual) {
      store_first(residual + i, add(load_first(residual + i, n), v), n);
      v = load_first(residual + i, n);  // as rounded: the norm of what is stored
    }
    squares = fma(v, v, squares);
  }
  const T* normed = residual ? residual : x;
  const vec16 scale = broadcast(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(width) + eps));
  for (int64_t i = 0; i < width; i += kLanes) {
    const int n = lanes_left(width - i);
    store_first(out + i, mul(mul(load_first(normed + i, n), scale), load_first(weight + i, n)), n);
  }
}

template <typename T>
void norm_rows(const llamba_rms_norm_args& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t head = row % args.nheads, token = row / args.nheads % args.ntokens,
                  batch = row / args.nheads / args.ntokens;
    const T* x = static_cast<const T*>(args.x) + batch * args.x_stride_batch + token * args.x_stride_token +
                 head * args.x_stride_head;
    T* residual = static_cast<T*>(args.residual);
    if (residual) {
      residual +=
          batch * args.residual_stride_batch + token * args.residual_stride_token + head * args.residual_stride_head;
    }
    T* out = static_cast<T*>(args.out) + batch * args.out_stride_batch + token * args.out_stride_token +
             head * args.out_stride_head;
    norm_row(x, static_cast<const T*>(args.weight), residual, out, args.width, args.eps);
  }
}

}  // namespace

void rms_norm_rows(const llamba_rms_norm_args& args, int64_t begin, int64_t end) {
  LLAMBA_SWITCH_DTYPE(args.dtype, T, norm_rows<T>(args, begin, end));
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
