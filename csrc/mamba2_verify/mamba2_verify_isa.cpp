// mamba2_verify, the arithmetic of one instruction set.
//
// Bits: a token's results depend on its own sequence's tokens alone. Every state element takes the same operations in
// the same order whatever the window, the live rows or the fold; lane l of vector v holds dstate index 16 v + l; the
// dot product with C adds the vectors in order and then the lanes in one fixed tree.
#include "common/vec.h"
#include "mamba2_verify/mamba2_verify_cpu.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

constexpr int kMaxWidth = 4;
constexpr int kMaxVecs = 16;  // dstate 256

template <typename T>
LLAMBA_INLINE vec16 load_lanes(const T* p, int lanes) {
  return lanes == kLanes ? load(p) : load_first(p, lanes);
}

// The value an activation has once it is stored: on every path the conv output is rounded before it is used.
LLAMBA_INLINE vec16 round_like(const float*, vec16 a) { return a; }
LLAMBA_INLINE vec16 round_like(const bfloat16*, vec16 a) {
  bfloat16 stored[kLanes];
  store(stored, a);
  return load(stored);
}

// ---- stage 1: conv ----

// Conv outputs of sixteen channels for all tokens: a window of width values slides over tail, live rows, new tokens.
template <typename T, int kWidth>
void conv_block(const llamba_mamba2_verify_args& args, const Mamba2Sizes& sizes, const Mamba2Sequence& sequence,
                int32_t channel, int lanes) {
  const T* weight = static_cast<const T*>(args.conv_weight) + channel * args.conv_weight_stride_channel;
  vec16 taps[kWidth], window[kWidth];
  for (int tap = 0; tap < kWidth; ++tap) {
    float column[kLanes] = {};
    for (int lane = 0; lane < lanes; ++lane) {
      column[lane] = to_float(weight[lane * args.conv_weight_stride_channel + tap * args.conv_weight_stride_tap]);
    }
    taps[tap] = load(column);
  }
  const vec16 bias =
      args.conv_bias ? load_lanes(static_cast<const T*>(args.conv_bias) + channel, lanes) : broadcast(0.0f);

  T* slot_rows = static_cast<T*>(args.rows) + sequence.slot * args.rows_stride_slot + channel;
  const T* new_tokens = static_cast<const T*>(args.xBC) + sequence.batch_idx * args.xBC_stride_batch + channel;
  for (int tap = 1; tap < kWidth; ++tap) {
    const int32_t row = sequence.table[tap - 1];
    window[tap] = row < 0 ? broadcast(0.0f) : load_lanes(slot_rows + row * args.rows_stride_row, lanes);
  }
  for (int32_t t = 0; t < sequence.ntotal; ++t) {
    T* row = slot_rows + sequence.table[kWidth - 1 + t] * args.rows_stride_row;
    for (int tap = 1; tap < kWidth; ++tap) window[tap - 1] = window[tap];
    if (t < sequence.live) {
      window[kWidth - 1] = load_lanes(row, lanes);
    } else {
      const T* token = new_tokens + (t - sequence.live) * args.xBC_stride_token;
      window[kWidth - 1] = load_lanes(token, lanes);
      for (int lane = 0; lane < lanes; ++lane) row[lane] = token[lane];
    }
    vec16 y = bias;
    for (int tap = 0; tap < kWidth; ++tap) y = fma(taps[tap], window[tap], y);
    store(sequence.conv + int64_t{t} * sizes.conv_stride + channel, round_like(weight, silu(y)));
  }
}

template <typename T>
void conv_blocks(const llamba_mamba2_verify_args& args, const Mamba2Sizes& sizes, const Mamba2Sequence& sequence,
                 int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    const int32_t channel = static_cast<int32_t>(block) * kLanes;
    const int lanes = sizes.conv_dim - channel < kLanes ? sizes.conv_dim - channel : kLanes;
    switch (args.cursor.width) {
      case 2: conv_block<T, 2>(args, sizes, sequence, channel, lanes); break;
      case 3: conv_block<T, 3>(args, sizes, sequence, channel, lanes); break;
      default: conv_block<T, kMaxWidth>(args, sizes, sequence, channel, lanes); break;
    }
  }
}

// ---- stage 2: scan ----

// Where one head finds its operands.
struct Head {
  const float* x;  // token 0; add t * conv_stride
  const float* B;
  const float* C;
  const float* dt;  // token 0; add t * nheads
  const float* decay;
  float D;
};

LLAMBA_INLINE Head find_head(const llamba_mamba2_verify_args& args, const Mamba2Sequence& sequence, int32_t head) {
  const int32_t x_size = args.x_heads * args.headdim, B_size = args.B_heads * args.dstate;
  return Head{sequence.conv + head / (args.nheads / args.x_heads) * args.headdim,
              sequence.conv + x_size + head / (args.nheads / args.B_heads) * args.dstate,
              sequence.conv + x_size + B_size + head / (args.nheads / args.C_heads) * args.dstate,
              sequence.dt + head,
              sequence.decay + head,
              args.D ? args.D[head] : 0.0f};
}

// state = decay * state + (dt x) B for kRows rows of the state, held in registers.
template <int kVecs, int kRows>
LLAMBA_INLINE void step(vec16 (&state)[kRows][kVecs > 0 ? kVecs : kMaxVecs], int vecs, const Head& head, int64_t x_off,
                        int64_t token_off, float dt, float decay) {
  const int count = kVecs > 0 ? kVecs : vecs;
  const vec16 decay_lanes = broadcast(decay);
  for (int r = 0; r < kRows; ++r) {
    const vec16 dtx = broadcast(dt * head.x[token_off + x_off + r]);
    for (int v = 0; v < count; ++v) {
      state[r][v] = fma(dtx, load(head.B + token_off + v * kLanes), mul(decay_lanes, state[r][v]));
    }
  }
}

// Takes kRows state rows from `dim` on through all tokens. kVecs = dstate / 16, or 0: read from the arguments.
template <typename T, int kVecs, int kRows>
void scan_rows(const llamba_mamba2_verify_args& args, const Mamba2Sizes& sizes, const Mamba2Sequence& sequence,
               int32_t head_idx, int32_t dim) {
  const int vecs = kVecs > 0 ? kVecs : args.dstate / kLanes;
  const Head head = find_head(args, sequence, head_idx);
  float* checkpoint = args.checkpoint + sequence.slot * args.checkpoint_stride_slot +
                      head_idx * args.checkpoint_stride_head + dim * args.checkpoint_stride_dim;
  T* out =
      static_cast<T*>(args.out) + sequence.batch_idx * args.out_stride_batch + head_idx * args.out_stride_head + dim;

  vec16 state[kRows][kVecs > 0 ? kVecs : kMaxVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < vecs; ++v) {  // a fresh slot's checkpoint is not read at all: it may hold NaN
      state[r][v] = sequence.fresh ? broadcast(0.0f) : load(checkpoint + r * args.checkpoint_stride_dim + v * kLanes);
    }
  }
  for (int32_t t = 0; t < sequence.ntotal; ++t) {
    const int64_t token_off = int64_t{t} * sizes.conv_stride;
    const int64_t head_off = int64_t{t} * args.nheads;
    step<kVecs, kRows>(state, vecs, head, dim, token_off, head.dt[head_off], head.decay[head_off]);
    if (t + 1 == sequence.fold) {
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < vecs; ++v) store(checkpoint + r * args.checkpoint_stride_dim + v * kLanes, state[r][v]);
      }
    }
    if (t < sequence.live) continue;
    T* token_out = out + (t - sequence.live) * args.out_stride_token;
    for (int r = 0; r < kRows; ++r) {
      vec16 products = mul(state[r][0], load(head.C + token_off));
      for (int v = 1; v < vecs; ++v) products = fma(state[r][v], load(head.C + token_off + v * kLanes), products);
      const float skip = head.D * head.x[token_off + dim + r];
      from_float(sum(products) + skip, token_out + r);
    }
  }
}

// State rows per pass: as many as the registers hold beside the operands.
#if defined(__AVX512F__)
constexpr int kStateRegisters = 16;
#else
constexpr int kStateRegisters = 4;
#endif

template <typename T, int kVecs>
void scan_range(const llamba_mamba2_verify_args& args, const Mamba2Sizes& sizes, const Mamba2Sequence& sequence,
                int64_t begin, int64_t end) {
  constexpr int kRows = kVecs == 0 || kVecs > kStateRegisters ? 1 : kStateRegisters / kVecs;
  while (begin < end) {  // begin and end count rows of (head, dim)
    const int32_t head = static_cast<int32_t>(begin / args.headdim), dim = static_cast<int32_t>(begin % args.headdim);
    if (dim + kRows <= args.headdim && begin + kRows <= end) {
      scan_rows<T, kVecs, kRows>(args, sizes, sequence, head, dim);
      begin += kRows;
    } else {
      scan_rows<T, kVecs, 1>(args, sizes, sequence, head, dim);
      begin += 1;
    }
  }
}

template <typename T>
void scan_any(const llamba_mamba2_verify_args& args, const Mamba2Sizes& sizes, const Mamba2Sequence& sequence,
              int64_t begin, int64_t end) {
  switch (args.dstate) {
    case 16: return scan_range<T, 1>(args, sizes, sequence, begin, end);
    case 64: return scan_range<T, 4>(args, sizes, sequence, begin, end);
    case 128: return scan_range<T, 8>(args, sizes, sequence, begin, end);
    default: return scan_range<T, 0>(args, sizes, sequence, begin, end);
  }
}

}  // namespace

void mamba2_conv(const llamba_mamba2_verify_args& args, const Mamba2Sizes& sizes, const Mamba2Sequence& sequence,
                 int64_t begin, int64_t end) {
  if (args.dtype == LLAMBA_FLOAT32) {
    conv_blocks<float>(args, sizes, sequence, begin, end);
  } else {
    conv_blocks<bfloat16>(args, sizes, sequence, begin, end);
  }
}

void mamba2_scan(const llamba_mamba2_verify_args& args, const Mamba2Sizes& sizes, const Mamba2Sequence& sequence,
                 int64_t begin, int64_t end) {
  if (args.dtype == LLAMBA_FLOAT32) {
    scan_any<float>(args, sizes, sequence, begin, end);
  } else {
    scan_any<bfloat16>(args, sizes, sequence, begin, end);
  }
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
