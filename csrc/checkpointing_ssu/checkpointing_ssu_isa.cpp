// checkpointing_ssu, the arithmetic of one instruction set: a head at a time, sixteen of its dims through all tokens.
// Registers a tile of the state: kTileVecs vectors, rows of the block x vectors of dstate; per token one load of B for
//           all rows, a multiplication and a fused multiply-add per vector, one more for the product with C
// Numerics  every state element takes the same operations in the same order whether a token is read from the ring or is
//           new, so with an fp32 state a token's bits depend neither on the window nor on when the state was stored;
//           lane l of vector v holds dstate index 16 v + l; the product with C adds the vectors in order, then the
//           lanes in the fixed tree of vec.h
#include "checkpointing_ssu/checkpointing_ssu_cpu.h"
#include "common/vec.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

using Args = llamba_checkpointing_ssu_args;
constexpr int kTileVecs = kNativeLanes == 16 ? 16 : kNativeLanes == 8 ? 4 : 2;  // fit the registers beside B

// Sizes as in ring_scratch.
struct RingScratch {
  float *dt, *decay;  // [ntotal] and up to a whole vector
  float* B;           // [ntotal, dstate] of the head's group
  float* dtx;         // [ntotal, kRingBlock] dt x of the block's dims
  float* C;           // [ntokens, dstate]
  float* products;    // [ntokens, kRingBlock, kLanes] state times C, not yet summed over the lanes
};

LLAMBA_INLINE float number(const void* p, llamba_dtype dtype, int64_t i) {
  LLAMBA_SWITCH_DTYPE(dtype, T, return to_float(static_cast<const T*>(p)[i]));
  return 0.0f;
}

// The ring's row of token t, the previous ones first.
LLAMBA_INLINE int64_t ring_row(const Args& args, const RingSequence& sequence, int32_t t) {
  return (int64_t{sequence.start} + t) % args.ring;
}

template <typename T>
void widen(const T* from, int32_t count, float* to) {
  for (int32_t i = 0; i < count; i += kLanes) store(to + i, load(from + i));
}

// The same of each tensor: element 0 of token t, and where the ring keeps it.
template <typename T>
struct Tokens {
  const T* token;
  int64_t token_stride;
  T* row;
  int64_t row_stride;

  LLAMBA_INLINE T* cached(const Args& args, const RingSequence& sequence, int32_t t) const {
    return row + ring_row(args, sequence, t) * row_stride;
  }
  LLAMBA_INLINE const T* at(const Args& args, const RingSequence& sequence, int32_t t) const {
    return t < sequence.previous ? cached(args, sequence, t) : token + (t - sequence.previous) * token_stride;
  }
};

template <typename T>
Tokens<T> x_tokens(const Args& args, const RingSequence& s, int32_t head) {
  return {static_cast<const T*>(args.x) + s.batch_idx * args.x_stride_batch + s.first_token * args.x_stride_token +
              head * args.x_stride_head,
          args.x_stride_token,
          static_cast<T*>(args.x_cache) + s.slot * args.x_cache_stride_slot + head * args.x_cache_stride_head,
          args.x_cache_stride_row};
}
template <typename T>
Tokens<T> B_tokens(const Args& args, const RingSequence& s, int32_t group) {
  return {static_cast<const T*>(args.B) + s.batch_idx * args.B_stride_batch + s.first_token * args.B_stride_token +
              group * args.B_stride_group,
          args.B_stride_token,
          static_cast<T*>(args.B_cache) + s.slot * args.B_cache_stride_slot + group * args.B_cache_stride_group,
          args.B_cache_stride_row};
}

template <typename T>
void append(const Args& args, const RingSequence& sequence, const Tokens<T>& tokens, int32_t count) {
  for (int32_t t = sequence.previous; t < sequence.ntotal(); ++t) {
    const T* from = tokens.at(args, sequence, t);
    T* to = tokens.cached(args, sequence, t);
    for (int32_t i = 0; i < count; ++i) to[i] = from[i];
  }
}

// Step sizes and decays of a head; the new ones go to the ring.
void prepare_dt(const Args& args, const RingSequence& s, int32_t head, const RingScratch& scratch) {
  float* rows = args.dt_cache + s.slot * args.dt_cache_stride_slot + head * args.dt_cache_stride_head;
  const int64_t first = s.batch_idx * args.dt_stride_batch + s.first_token * args.dt_stride_token;
  const float bias = args.dt_bias ? number(args.dt_bias, args.bias_dtype, head * args.dt_bias_stride_head) : 0.0f;
  const float A = number(args.A, args.A_dtype, head * args.A_stride_head);
  float* const fresh = scratch.decay;  // not used yet
  for (int32_t t = 0; t < s.ntokens; ++t) {
    fresh[t] = number(args.dt, args.dt_dtype, first + t * args.dt_stride_token + head * args.dt_stride_head);
  }
  for (int32_t t = 0; t < s.ntokens; t += kLanes) {
    vec16 dt = load(fresh + t);
    if (args.dt_bias) dt = add(dt, broadcast(bias));
    store(fresh + t, args.dt_softplus ? softplus(dt) : dt);
  }
  for (int32_t t = 0; t < s.ntotal(); ++t) {
    float* const row = rows + ring_row(args, s, t) * args.dt_cache_stride_row;
    if (t >= s.previous) *row = fresh[t - s.previous];
    scratch.dt[t] = *row;
  }
  for (int32_t t = 0; t < s.ntotal(); t += kLanes) {
    store(scratch.decay + t, exp(mul(load(scratch.dt + t), broadcast(A))));
  }
}

template <int kRows, int kVecs>
struct RingTile {
  vec16 state[kRows][kVecs];

  // state = decay state + dtx B
  LLAMBA_INLINE void step(const float* dtx, const float* B, float decay) {
    const vec16 decay_lanes = broadcast(decay);
    vec16 dtx_lanes[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) dtx_lanes[r] = broadcast(dtx[r]);
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      const vec16 B_lanes = load(B + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) state[r][v] = fma(dtx_lanes[r], B_lanes, mul(decay_lanes, state[r][v]));
    }
  }
  // products = (first tile of the row ? 0 : products) + state C
  LLAMBA_INLINE void multiply(const float* C, bool first, float* products) const {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      vec16 sum = first ? mul(state[r][0], load(C)) : fma(state[r][0], load(C), load(products + r * kLanes));
#pragma GCC unroll 16
      for (int v = 1; v < kVecs; ++v) sum = fma(state[r][v], load(C + v * kLanes), sum);
      store(products + r * kLanes, sum);
    }
  }
};

// State rows `row` to `rows` of a block, kRows at a time, columns `column` to column + 16 kVecs, through all tokens.
// Returns the first row that is left.
template <typename S, int kRows, int kVecs>
int scan_rows(const Args& args, const RingSequence& sequence, const RingScratch& scratch, S* state, int row, int rows,
              int32_t column) {
  for (; row + kRows <= rows; row += kRows) {
    S* const tile_rows = state + row * args.state_stride_dim + column;
    RingTile<kRows, kVecs> tile;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) tile.state[r][v] = load(tile_rows + r * args.state_stride_dim + v * kLanes);
    }
    const float *dtx = scratch.dtx + row, *B = scratch.B + column, *C = scratch.C + column;
    float* products = scratch.products + row * kLanes;
    for (int32_t t = 0; t < sequence.previous; ++t, dtx += kRingBlock, B += args.dstate) {
      tile.step(dtx, B, scratch.decay[t]);
    }
    if (sequence.write && sequence.previous > 0) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < kVecs; ++v) {
          store(tile_rows + r * args.state_stride_dim + v * kLanes, tile.state[r][v]);
          tile.state[r][v] = rounded_to<S>(tile.state[r][v]);
        }
      }
    }
    for (int32_t t = sequence.previous; t < sequence.ntotal(); ++t, dtx += kRingBlock, B += args.dstate) {
      tile.step(dtx, B, scratch.decay[t]);
      tile.multiply(C, column == 0, products);
      C += args.dstate;
      products += kRingBlock * kLanes;
    }
  }
  return row;
}

// All rows of a block, kVecs vectors of dstate wide from `column` on; what is left of dstate goes to narrower tiles.
template <typename S, int kVecs>
void scan_columns(const Args& args, const RingSequence& sequence, const RingScratch& scratch, S* state, int rows,
                  int32_t column) {
  constexpr int kRows = kTileVecs / kVecs;
  for (; column + kVecs * kLanes <= args.dstate; column += kVecs * kLanes) {
    const int row = scan_rows<S, kRows, kVecs>(args, sequence, scratch, state, 0, rows, column);
    if (kRows > 1) scan_rows<S, 1, kVecs>(args, sequence, scratch, state, row, rows, column);
  }
  if constexpr (kVecs > 1) scan_columns<S, kVecs / 2>(args, sequence, scratch, state, rows, column);
}

template <typename T>
void write_outputs(const Args& args, const RingSequence& s, const RingScratch& scratch, const Tokens<T>& x,
                   int32_t head, int32_t dim, int rows) {
  const int64_t first_out = s.batch_idx * args.out_stride_batch + head * args.out_stride_head + dim;
  const int64_t first_z = s.batch_idx * args.z_stride_batch + head * args.z_stride_head + dim;
  float D[kLanes] = {};
  for (int r = 0; args.D && r < rows; ++r) {
    D[r] = number(args.D, args.D_dtype, head * args.D_stride_head + (dim + r) * args.D_stride_dim);
  }
  for (int32_t t = 0; t < s.ntokens; ++t) {
    vec16 products[kLanes];
    for (int r = 0; r < kLanes; ++r) products[r] = load(scratch.products + (t * kRingBlock + r) * kLanes);
    vec16 y = sum_each(products);
    if (args.D) y = fma(load(D), load_first(x.at(args, s, s.previous + t) + dim, rows), y);
    if (args.z) {
      const T* z = static_cast<const T*>(args.z) + first_z + (s.first_token + t) * args.z_stride_token;
      y = mul(y, silu(load_first(z, rows)));
    }
    store_first(static_cast<T*>(args.out) + first_out + (s.first_token + t) * args.out_stride_token, y, rows);
  }
}

// Inputs of the head's group as floats.
template <typename T>
void prepare_group(const Args& args, const RingSequence& s, int32_t group, const RingScratch& scratch) {
  const Tokens<T> B = B_tokens<T>(args, s, group);
  for (int32_t t = 0; t < s.ntotal(); ++t) {
    widen(B.at(args, s, t), args.dstate, scratch.B + int64_t{t} * args.dstate);
  }
  const T* C = static_cast<const T*>(args.C) + s.batch_idx * args.C_stride_batch + group * args.C_stride_group;
  for (int32_t t = 0; t < s.ntokens; ++t) {
    widen(C + (s.first_token + t) * args.C_stride_token, args.dstate, scratch.C + int64_t{t} * args.dstate);
  }
}

template <typename T>
void run_heads(const Args& args, const RingSequence& sequence, int32_t begin, int32_t end, float* floats) {
  const int64_t ntotal = sequence.ntotal(), ntokens = sequence.ntokens;
  RingScratch scratch;
  scratch.dt = floats;
  scratch.decay = scratch.dt + ntotal + kRingBlock;
  scratch.B = scratch.decay + ntotal + kRingBlock;
  scratch.dtx = scratch.B + ntotal * args.dstate;
  scratch.C = scratch.dtx + ntotal * kRingBlock;
  scratch.products = scratch.C + ntokens * args.dstate;
  const int32_t heads_per_group = args.nheads / args.ngroups;
  for (int32_t head = begin; head < end; ++head) {
    const int32_t group = head / heads_per_group;
    if (head == begin || head % heads_per_group == 0) prepare_group<T>(args, sequence, group, scratch);
    if (head % heads_per_group == 0) append(args, sequence, B_tokens<T>(args, sequence, group), args.dstate);
    const Tokens<T> x = x_tokens<T>(args, sequence, head);
    append(args, sequence, x, args.headdim);
    prepare_dt(args, sequence, head, scratch);
    for (int32_t dim = 0; dim < args.headdim; dim += kRingBlock) {
      const int rows = lanes_left(args.headdim - dim);
      for (int32_t t = 0; t < ntotal; ++t) {
        const vec16 dtx = mul(broadcast(scratch.dt[t]), load_first(x.at(args, sequence, t) + dim, rows));
        store(scratch.dtx + t * kRingBlock, dtx);
      }
      const int64_t offset =
          sequence.slot * args.state_stride_slot + head * args.state_stride_head + dim * args.state_stride_dim;
      LLAMBA_SWITCH_DTYPE(args.state_dtype, S,
                          (scan_columns<S, (kTileVecs < 8 ? kTileVecs : 8)>(
                              args, sequence, scratch, static_cast<S*>(args.state) + offset, rows, 0)));
      write_outputs(args, sequence, scratch, x, head, dim, rows);
    }
  }
}

}  // namespace

void checkpointing_ssu_heads(const Args& args, const RingSequence& sequence, int32_t begin, int32_t end,
                             float* scratch) {
  LLAMBA_SWITCH_DTYPE(args.dtype, T, run_heads<T>(args, sequence, begin, end, scratch));
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
