// rope -- rotates the pairs (a, b) of each head: a cos - b sin, a sin + b cos.
// Pairs    elements i and i + rotary_dim / 2 (half split), or 2 i and 2 i + 1 (interleaved); sixteen pairs at a time
// Numerics fp32, one rounding at the end; each result is one multiplication and one fused multiply-add
#include "common/vec.h"
#include "llamba.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

struct Pairs {
  vec16 a, b;
};

LLAMBA_INLINE Pairs rotated(Pairs x, vec16 cos, vec16 sin) {
  return Pairs{fma(x.a, cos, mul(broadcast(-1.0f), mul(x.b, sin))), fma(x.b, cos, mul(x.a, sin))};
}

template <typename T>
void rotate_halves(const T* x, const float* cos, const float* sin, T* out, int64_t half) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int n = lanes_left(half - i);
    const Pairs y = rotated(Pairs{load_first(x + i, n), load_first(x + half + i, n)}, load_first(cos + i, n),
                            load_first(sin + i, n));
    store_first(out + i, y.a, n);
    store_first(out + half + i, y.b, n);
  }
}

template <typename T>
void rotate_interleaved(const T* x, const float* cos, const float* sin, T* out, int64_t half) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int n = lanes_left(half - i);
    float a[kLanes] = {}, b[kLanes] = {};
    for (int j = 0; j < n; ++j) {
      a[j] = to_float(x[2 * (i + j)]);
      b[j] = to_float(x[2 * (i + j) + 1]);
    }
    const Pairs y = rotated(Pairs{load(a), load(b)}, load_first(cos + i, n), load_first(sin + i, n));
    store(a, y.a);
    store(b, y.b);
    for (int j = 0; j < n; ++j) {
      from_float(a[j], out + 2 * (i + j));
      from_float(b[j], out + 2 * (i + j) + 1);
    }
  }
}

template <typename T>
void rotate_tokens(const llamba_rope_args& args, int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) {
    const int64_t batch = index / args.ntokens, token = index % args.ntokens;
    const int64_t position = args.positions[batch * args.positions_stride_batch + token];
    for (int64_t head = 0; head < args.nheads; ++head) {
      const T* x = static_cast<const T*>(args.x) + batch * args.x_stride_batch + token * args.x_stride_token +
                   head * args.x_stride_head;
      T* out = static_cast<T*>(args.out) + batch * args.out_stride_batch + token * args.out_stride_token +
               head * args.out_stride_head;
      if (position < 0) {
        for (int64_t i = 0; i < args.head_dim; ++i) out[i] = T{};
        continue;
      }
      const float* cos = args.cos + position * args.cos_stride_position;
      const float* sin = args.sin + position * args.sin_stride_position;
      (args.interleaved ? rotate_interleaved<T> : rotate_halves<T>)(x, cos, sin, out, args.rotary_dim / 2);
      for (int64_t i = args.rotary_dim; i < args.head_dim && out != x; ++i) out[i] = x[i];
    }
  }
}

}  // namespace

void rope_tokens(const llamba_rope_args& args, int64_t begin, int64_t end) {
  LLAMBA_SWITCH_DTYPE(args.dtype, T, rotate_tokens<T>(args, begin, end));
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
