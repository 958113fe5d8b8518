// gated_rms_norm -- out = v / sqrt(mean(v^2) + eps) * weight over each group, v = x * silu(z).
// Numerics fp32, one rounding at the end. Element i of a group adds to lane i % 16 in order of i, then the lanes' fixed
//          tree: a group's bits depend on its own elements alone.
#include "common/vec.h"
#include "llamba.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

// v is computed twice rather than kept: silu costs less than a buffer of any width would complicate.
template <typename T>
LLAMBA_INLINE vec16 gated(const T* x, const T* z, int64_t i, int n) {
  const vec16 value = load_first(x + i, n);
  return z ? mul(value, silu(load_first(z + i, n))) : value;
}

template <typename T>
void norm_group(const T* x, const T* z, const T* weight, T* out, int64_t size, float eps) {
  vec16 squares = broadcast(0.0f);
  for (int64_t i = 0; i < size; i += kLanes) {
    const vec16 v = gated(x, z, i, lanes_left(size - i));
    squares = fma(v, v, squares);
  }
  const vec16 scale = broadcast(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(size) + eps));
  for (int64_t i = 0; i < size; i += kLanes) {
    const int n = lanes_left(size - i);
    const vec16 v = gated(x, z, i, n);
    store_first(out + i, mul(mul(v, scale), load_first(weight + i, n)), n);
  }
}

template <typename T>
void norm_groups(const llamba_gated_rms_norm_args& args, int64_t begin, int64_t end) {
  const int64_t groups_per_row = args.width / args.group_size;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t row = index / groups_per_row;
    const int64_t batch = row / args.ntokens, token = row % args.ntokens;
    const int64_t column = index % groups_per_row * args.group_size;
    const T* x = static_cast<const T*>(args.x) + batch * args.x_stride_batch + token * args.x_stride_token;
    const T* z = static_cast<const T*>(args.z);
    if (z) z += batch * args.z_stride_batch + token * args.z_stride_token + column;
    T* out = static_cast<T*>(args.out) + batch * args.out_stride_batch + token * args.out_stride_token;
    const T* weight = static_cast<const T*>(args.weight) + column;
    norm_group(x + column, z, weight, out + column, args.group_size, args.eps);
  }
}

}  // namespace

void gated_rms_norm_groups(const llamba_gated_rms_norm_args& args, int64_t begin, int64_t end) {
  LLAMBA_SWITCH_DTYPE(args.dtype, T, norm_groups<T>(args, begin, end));
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
