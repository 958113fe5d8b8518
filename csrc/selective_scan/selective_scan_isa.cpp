// selective_scan, forward, the arithmetic of one instruction set.
//   dt = softplus(dt + dt_bias);   state = exp(dt A) state + (dt x) B;   y = (state . C + D x) * silu(z)
// Work      a lane is a channel: sixteen channels with the same B and C head are a block, whose state is dstate vectors.
//           Up to kScanGroup neighbouring blocks take each chunk of tokens one after another
// Registers a tile of the state: kTile vectors through all tokens of the chunk. Per token and vector: the decay, a
//           multiplication, a fused multiply-add with B and one with C, both of them one float for all lanes
// Numerics  fp32, one rounding of y. Nothing is summed over lanes: a channel's bits depend on its own inputs alone, not on
//           chunks, blocks or threads. y adds the state elements in their order. exp(dt A) is 2^(dt (A log2 e))
#include "selective_scan/selective_scan_block.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

// The tile must fit the registers beside the constants of exp2: AVX-512 has 32 of one vec16, AVX2 16 of half a one.
constexpr int kTile = kNativeLanes == 16 ? 16 : kNativeLanes == 8 ? 4 : 2;

struct Scratch {
  float* A;      // [kScanGroup, dstate, kLanes] times log2 e
  float* state;  // [kScanGroup, dstate, kLanes]
  float* dt;     // [kScanChunk, kLanes]
  float* dtx;    // [kScanChunk, kLanes]
  float* y;      // [kScanChunk, kLanes]
  float* B;      // [kScanChunk, whole_vectors(dstate)]
  float* C;      // [kScanChunk, whole_vectors(dstate)]
};

// Step sizes and what they make of x, for `count` tokens from `token` on.
template <typename T>
void prepare(const llamba_selective_scan_args& args, const ScanSequence& sequence, int64_t token, int64_t count,
             int64_t channel, int lanes, const Scratch& scratch) {
  const T* x = at<T>(args.x, args.x_stride_batch, args.x_stride_token, sequence.batch_idx, token, channel);
  const T* dt = at<T>(args.dt, args.dt_stride_batch, args.dt_stride_token, sequence.batch_idx, token, channel);
  const vec16 bias = args.dt_bias ? load_first(args.dt_bias + channel, lanes) : broadcast(0.0f);
  for (int64_t t = 0; t < count; ++t) {
    vec16 step = add(load_first(dt + t * args.dt_stride_token, lanes), bias);
    if (args.dt_softplus) step = softplus(step);
    store(scratch.dt + t * kLanes, step);
    store(scratch.dtx + t * kLanes, mul(step, load_first(x + t * args.x_stride_token, lanes)));
    store(scratch.y + t * kLanes, broadcast(0.0f));
  }
}

// kStates state elements through `count` tokens.
template <int kStates>
void scan_tile(const float* A, float* state, const Scratch& scratch, const HeadRows& B, const HeadRows& C, int64_t n,
               int64_t count) {
  vec16 tile[kStates];
#pragma GCC unroll 16
  for (int i = 0; i < kStates; ++i) tile[i] = load(state + i * kLanes);
  const float *B_row = B.row + n, *C_row = C.row + n;
  for (int64_t t = 0; t < count; ++t, B_row += B.stride, C_row += C.stride) {
    const vec16 dt = load(scratch.dt + t * kLanes), dtx = load(scratch.dtx + t * kLanes);
    vec16 y = load(scratch.y + t * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kStates; ++i) {
      const vec16 decay = exp2(mul(dt, load(A + i * kLanes)));
      tile[i] = fma(dtx, broadcast(B_row[i]), mul(decay, tile[i]));
      y = fma(tile[i], broadcast(C_row[i]), y);
    }
    store(scratch.y + t * kLanes, y);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kStates; ++i) store(state + i * kLanes, tile[i]);
}

// State elements n, n + 1, ... in tiles of kStates, what is left of them in narrower ones.
template <int kStates>
void scan_tiles(const float* A, float* state, const Scratch& scratch, const HeadRows& B, const HeadRows& C,
                int64_t dstate, int64_t n, int64_t count) {
  for (; n + kStates <= dstate; n += kStates) {
    scan_tile<kStates>(A + n * kLanes, state + n * kLanes, scratch, B, C, n, count);
  }
  if constexpr (kStates > 1) scan_tiles<kStates / 2>(A, state, scratch, B, C, dstate, n, count);
}

template <typename T>
void finish(const llamba_selective_scan_args& args, const ScanSequence& sequence, int64_t token, int64_t count,
            int64_t channel, int lanes, const Scratch& scratch) {
  const T* x = at<T>(args.x, args.x_stride_batch, args.x_stride_token, sequence.batch_idx, token, channel);
  const T* z =
      args.z ? at<T>(args.z, args.z_stride_batch, args.z_stride_token, sequence.batch_idx, token, channel) : nullptr;
  T* out = const_cast<T*>(at<T>(args.y, args.y_stride_batch, args.y_stride_token, sequence.batch_idx, token, channel));
  const vec16 D = args.D ? load_first(args.D + channel, lanes) : broadcast(0.0f);
  for (int64_t t = 0; t < count; ++t) {
    vec16 y = load(scratch.y + t * kLanes);
    if (args.D) y = fma(D, load_first(x + t * args.x_stride_token, lanes), y);
    if (z) y = mul(y, silu(load_first(z + t * args.z_stride_token, lanes)));
    store_first(out + t * args.y_stride_token, y, lanes);
  }
}

// The first token after `token` at which a state is due: a multiple of kScanChunk or of state_every, or the end.
LLAMBA_INLINE int64_t next_stop(const llamba_selective_scan_args& args, int64_t token, int64_t end) {
  int64_t stop = (token / kScanChunk + 1) * kScanChunk;
  if (args.states && (token / args.state_every + 1) * args.state_every < stop) {
    stop = (token / args.state_every + 1) * args.state_every;
  }
  return stop < end ? stop : end;
}

template <typename T>
void scan_group(const llamba_selective_scan_args& args, const ScanSequence& sequence, const ScanBlocks& blocks,
                int64_t begin, int64_t end, const Scratch& scratch) {
  const int64_t dstate = args.dstate, block_floats = dstate * kLanes;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t channel = block_channel(blocks, block), offset = (block - begin) * block_floats;
    const float* initial = args.initial_state;
    if (initial) {
      initial += sequence.index * args.initial_state_stride_batch + channel * args.initial_state_stride_channel;
    }
    load_transposed(args.A + channel * args.A_stride_channel, args.A_stride_channel, block_lanes(blocks, block), dstate,
                    kLog2E, scratch.A + offset);
    load_transposed(initial, args.initial_state_stride_channel, block_lanes(blocks, block), dstate, 1.0f,
                    scratch.state + offset);
  }
  for (int64_t token = sequence.begin; token < sequence.end;) {
    const int64_t stop = next_stop(args, token, sequence.end), count = stop - token;
    const bool keeps = args.chunk_states && token % kScanChunk == 0 && token > sequence.begin;
    HeadRows B{}, C{};
    for (int64_t block = begin; block < end; ++block) {
      const int64_t channel = block_channel(blocks, block), offset = (block - begin) * block_floats;
      const int lanes = block_lanes(blocks, block);
      if (block == begin || block % blocks.per_unit == 0) {  // other heads
        B = B_rows<T, false>(args, sequence.batch_idx, token, count, B_head(args, channel), scratch.B);
        C = C_rows<T, false>(args, sequence.batch_idx, token, count, C_head(args, channel), scratch.C);
      }
      if (keeps) {
        const int64_t chunk = sequence.batch_idx * ((args.length - 1) / kScanChunk) + token / kScanChunk - 1;
        store_chunk_state(scratch.state + offset, lanes, dstate,
                          args.chunk_states + chunk * dstate * args.d_inner + channel, args.d_inner);
      }
      prepare<T>(args, sequence, token, count, channel, lanes, scratch);
      scan_tiles<kTile>(scratch.A + offset, scratch.state + offset, scratch, B, C, dstate, 0, count);
      finish<T>(args, sequence, token, count, channel, lanes, scratch);
      if (args.states && stop % args.state_every == 0) {
        float* states = args.states + sequence.batch_idx * args.states_stride_batch +
                        (stop / args.state_every - 1) * args.states_stride_state + channel * args.states_stride_channel;
        store_transposed(scratch.state + offset, lanes, dstate, states, args.states_stride_channel);
      }
    }
    token = stop;
  }
  if (!args.final_state) return;
  for (int64_t block = begin; block < end; ++block) {
    float* final_state = args.final_state + sequence.index * args.final_state_stride_batch +
                         block_channel(blocks, block) * args.final_state_stride_channel;
    store_transposed(scratch.state + (block - begin) * block_floats, block_lanes(blocks, block), dstate, final_state,
                     args.final_state_stride_channel);
  }
}

}  // namespace

void selective_scan_run(const llamba_selective_scan_args& args, const ScanSequence& sequence, int64_t begin,
                        int64_t end, float* floats) {
  Scratch scratch;
  scratch.A = floats;
  scratch.state = scratch.A + kScanGroup * args.dstate * kLanes;
  scratch.dt = scratch.state + kScanGroup * args.dstate * kLanes;
  scratch.dtx = scratch.dt + kScanChunk * kLanes;
  scratch.y = scratch.dtx + kScanChunk * kLanes;
  scratch.B = scratch.y + kScanChunk * kLanes;
  scratch.C = scratch.B + kScanChunk * whole_vectors(args.dstate);
  const ScanBlocks blocks = scan_blocks(args);
  for (int64_t block = begin; block < end; block += kScanGroup) {
    const int64_t last = block + kScanGroup < end ? block + kScanGroup : end;
    LLAMBA_SWITCH_DTYPE(args.dtype, T, scan_group<T>(args, sequence, blocks, block, last, scratch));
  }
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
