// selective_scan's backward, the arithmetic of one instruction set. g: the adjoint of the state after a token.
//   g += grad_y C;  grad_C += grad_y state;  grad_B += g (dt x);  grad_x = D grad_y + dt (g . B)
//   grad_dt = x (g . B) + g . (A exp(dt A) state before);  grad_A += dt g exp(dt A) state before;  g = exp(dt A) g
// Work      a group of neighbouring blocks of one batch entry, chunk by chunk from the last token to the first. In a chunk
//           a block takes sixteen state elements at a time: forward again from the chunk's state, keeping the decays and
//           the decayed states, then backward through them
// Scratch   decays and decayed states of a chunk are 128 KiB, which the second-level cache holds
// Numerics  fp32; gradients of 16-bit inputs are rounded once. Sums over channels: a block's lanes in vec.h's fixed tree,
//           the blocks of a group in order, then the groups in order; over tokens: backwards; over batch entries: in
//           order. What is a group depends on the sizes alone: bits do not depend on threads
#include "selective_scan/selective_scan_block.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

constexpr float kLn2 = 0.693147180559945309f;

struct Scratch {
  float* A;        // [group_blocks, state, kLanes] times log2 e
  float* adjoint;  // [group_blocks, state, kLanes] of the state after the chunk
  float* start;    // [state, kLanes] before the chunk
  float* decay;    // [kScanChunk, kLanes, kLanes] exp(dt A) of the sixteen elements at hand
  float* decayed;  // [kScanChunk, kLanes, kLanes] exp(dt A) times the state before
  float* dt;       // [kScanChunk, kLanes], as all that follow
  float* dtx;      // dt x
  float* grad_y;   // before the gate
  float* y;        // state . C
  float* g_B;      // g . B
  float* g_A;      // g . (A log2 e) exp(dt A) state before
  float* B;        // [kScanChunk, state], unless it is read where it lies
  float* C;
};

// One block's part of one chunk.
struct Piece {
  int64_t batch_idx, token, count;
  int64_t channel;
  int lanes;
  float* sums;    // [state + 2, kLanes] see ScanPartials::channels
  float* grad_B;  // [count, B_stride] this head's columns of the group's sums
  float* grad_C;
  int64_t B_stride, C_stride;
};

LLAMBA_INLINE vec16 sigmoid(vec16 x) {
  const vec16 one = broadcast(1.0f);
  return div(one, add(one, exp(mul(broadcast(-1.0f), x))));
}

template <typename T>
LLAMBA_INLINE vec16 raw_dt(const llamba_selective_scan_args& scan, const Piece& piece, const T* dt, int64_t t) {
  const vec16 value = load_first(dt + t * scan.dt_stride_token, piece.lanes);
  return scan.dt_bias ? add(value, load_first(scan.dt_bias + piece.channel, piece.lanes)) : value;
}

template <typename T>
void prepare(const llamba_selective_scan_backward_args& args, const Piece& piece, const Scratch& scratch) {
  const llamba_selective_scan_args& scan = args.scan;
  const int64_t batch = piece.batch_idx, token = piece.token, channel = piece.channel;
  const int lanes = piece.lanes;
  const T* x = at<T>(scan.x, scan.x_stride_batch, scan.x_stride_token, batch, token, channel);
  const T* dt = at<T>(scan.dt, scan.dt_stride_batch, scan.dt_stride_token, batch, token, channel);
  const T* z = scan.z ? at<T>(scan.z, scan.z_stride_batch, scan.z_stride_token, batch, token, channel) : nullptr;
  const T* grad_y = at<T>(args.grad_y, args.grad_y_stride_batch, args.grad_y_stride_token, batch, token, channel);
  for (int64_t t = 0; t < piece.count; ++t) {
    vec16 step = raw_dt(scan, piece, dt, t);
    if (scan.dt_softplus) step = softplus(step);
    vec16 gradient = load_first(grad_y + t * args.grad_y_stride_token, lanes);
    if (z) gradient = mul(gradient, silu(load_first(z + t * scan.z_stride_token, lanes)));
    store(scratch.dt + t * kLanes, step);
    store(scratch.dtx + t * kLanes, mul(step, load_first(x + t * scan.x_stride_token, lanes)));
    store(scratch.grad_y + t * kLanes, gradient);
    store(scratch.y + t * kLanes, broadcast(0.0f));
    store(scratch.g_B + t * kLanes, broadcast(0.0f));
    store(scratch.g_A + t * kLanes, broadcast(0.0f));
  }
}

LLAMBA_INLINE void add_to(float* p, vec16 value) { store(p, add(load(p), value)); }

// Sixteen state elements, n and on, forward through the chunk; grad_C.
void run_forward(const float* A, const Piece& piece, const Scratch& scratch, const HeadRows& B, const HeadRows& C,
                 int64_t n) {
  vec16 tile[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) tile[i] = load(scratch.start + (n + i) * kLanes);
  for (int64_t t = 0; t < piece.count; ++t) {
    const float *B_row = B.row + t * B.stride + n, *C_row = C.row + t * C.stride + n;
    float *decays = scratch.decay + t * kLanes * kLanes, *decayed = scratch.decayed + t * kLanes * kLanes;
    const vec16 dt = load(scratch.dt + t * kLanes), dtx = load(scratch.dtx + t * kLanes);
    const vec16 grad_y = load(scratch.grad_y + t * kLanes);
    vec16 y = load(scratch.y + t * kLanes), products[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      const vec16 decay = exp2(mul(dt, load(A + i * kLanes))), before = mul(decay, tile[i]);
      store(decays + i * kLanes, decay);
      store(decayed + i * kLanes, before);
      tile[i] = fma(dtx, broadcast(B_row[i]), before);
      y = fma(tile[i], broadcast(C_row[i]), y);
      products[i] = mul(grad_y, tile[i]);
    }
    store(scratch.y + t * kLanes, y);
    add_to(piece.grad_C + t * piece.C_stride + n, sum_each(products));
  }
}

// The same backward through tokens end - 1 to begin of the chunk, from the adjoint and to it; grad_B, grad_A, g_B, g_A.
void run_backward(const float* A, float* adjoint, const Piece& piece, const Scratch& scratch, const HeadRows& B,
                  const HeadRows& C, int64_t n, int64_t begin, int64_t end) {
  vec16 tile[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) tile[i] = load(adjoint + i * kLanes);
  float* grad_A = piece.sums + n * kLanes;
  for (int64_t t = end - 1; t >= begin; --t) {
    const float *B_row = B.row + t * B.stride + n, *C_row = C.row + t * C.stride + n;
    const float *decays = scratch.decay + t * kLanes * kLanes, *decayed = scratch.decayed + t * kLanes * kLanes;
    const vec16 dt = load(scratch.dt + t * kLanes), dtx = load(scratch.dtx + t * kLanes);
    const vec16 grad_y = load(scratch.grad_y + t * kLanes);
    vec16 g_B = load(scratch.g_B + t * kLanes), g_A = load(scratch.g_A + t * kLanes), products[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      const vec16 g = fma(grad_y, broadcast(C_row[i]), tile[i]);
      products[i] = mul(g, dtx);
      g_B = fma(g, broadcast(B_row[i]), g_B);
      const vec16 through = mul(g, load(decayed + i * kLanes));
      g_A = fma(through, load(A + i * kLanes), g_A);
      store(grad_A + i * kLanes, fma(through, dt, load(grad_A + i * kLanes)));
      tile[i] = mul(g, load(decays + i * kLanes));
    }
    store(scratch.g_B + t * kLanes, g_B);
    store(scratch.g_A + t * kLanes, g_A);
    add_to(piece.grad_B + t * piece.B_stride + n, sum_each(products));
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store(adjoint + i * kLanes, tile[i]);
}

// Gradients of the states that the forward returned, where the chunk is cut for them.
void run_backward_cut(const llamba_selective_scan_backward_args& args, const float* A, float* adjoint,
                      const Piece& piece, const Scratch& scratch, const HeadRows& B, const HeadRows& C, int64_t n) {
  const int64_t every = args.scan.state_every, left = args.scan.dstate - n;
  for (int64_t end = piece.token + piece.count; end > piece.token;) {
    int64_t begin = piece.token;
    if (args.grad_states) {
      if (end % every == 0) {
        const float* gradient = args.grad_states + piece.batch_idx * args.grad_states_stride_batch +
                                (end / every - 1) * args.grad_states_stride_state +
                                piece.channel * args.grad_states_stride_channel + n;
        for (int64_t i = 0; i < left && i < kLanes; ++i) {
          for (int lane = 0; lane < piece.lanes; ++lane) {
            adjoint[i * kLanes + lane] += gradient[lane * args.grad_states_stride_channel + i];
          }
        }
      }
      if ((end - 1) / every * every > begin) begin = (end - 1) / every * every;
    }
    run_backward(A, adjoint, piece, scratch, B, C, n, begin - piece.token, end - piece.token);
    end = begin;
  }
}

template <typename T>
void finish(const llamba_selective_scan_backward_args& args, const Piece& piece, const Scratch& scratch) {
  const llamba_selective_scan_args& scan = args.scan;
  const int64_t batch = piece.batch_idx, token = piece.token, channel = piece.channel;
  const int lanes = piece.lanes;
  const T* x_row = at<T>(scan.x, scan.x_stride_batch, scan.x_stride_token, batch, token, channel);
  const T* dt = at<T>(scan.dt, scan.dt_stride_batch, scan.dt_stride_token, batch, token, channel);
  const T* z_row = scan.z ? at<T>(scan.z, scan.z_stride_batch, scan.z_stride_token, batch, token, channel) : nullptr;
  const T* grad_y = at<T>(args.grad_y, args.grad_y_stride_batch, args.grad_y_stride_token, batch, token, channel);
  const auto output = [&](void* p, int64_t stride_batch, int64_t stride_token) __attribute__((always_inline)) {
    return const_cast<T*>(at<T>(p, stride_batch, stride_token, batch, token, channel));
  };
  T* grad_x = output(args.grad_x, args.grad_x_stride_batch, args.grad_x_stride_token);
  T* grad_dt = output(args.grad_dt, args.grad_dt_stride_batch, args.grad_dt_stride_token);
  T* grad_z = z_row ? output(args.grad_z, args.grad_z_stride_batch, args.grad_z_stride_token) : nullptr;
  const vec16 D = scan.D ? load_first(scan.D + channel, lanes) : broadcast(0.0f), one = broadcast(1.0f);
  float* grad_D = piece.sums + whole_vectors(scan.dstate) * kLanes;
  vec16 sum_D = load(grad_D), sum_bias = load(grad_D + kLanes);
  for (int64_t t = piece.count - 1; t >= 0; --t) {
    const vec16 x = load_first(x_row + t * scan.x_stride_token, lanes), gradient = load(scratch.grad_y + t * kLanes);
    const vec16 g_B = load(scratch.g_B + t * kLanes);
    vec16 step = fma(x, g_B, mul(load(scratch.g_A + t * kLanes), broadcast(kLn2)));
    if (scan.dt_softplus) step = mul(step, sigmoid(raw_dt(scan, piece, dt, t)));
    store_first(grad_x + t * args.grad_x_stride_token, fma(load(scratch.dt + t * kLanes), g_B, mul(D, gradient)),
                lanes);
    store_first(grad_dt + t * args.grad_dt_stride_token, step, lanes);
    sum_D = fma(gradient, x, sum_D);
    sum_bias = add(sum_bias, step);
    if (!z_row) continue;
    const vec16 z = load_first(z_row + t * scan.z_stride_token, lanes), open = sigmoid(z);
    const vec16 shut = fma(broadcast(-1.0f), open, one);
    const vec16 slope = mul(open, fma(z, shut, one));
    const vec16 ungated = fma(D, x, load(scratch.y + t * kLanes));
    const vec16 outer = load_first(grad_y + t * args.grad_y_stride_token, lanes);
    store_first(grad_z + t * args.grad_z_stride_token, mul(mul(outer, ungated), slope), lanes);
  }
  store(grad_D, sum_D);
  store(grad_D + kLanes, sum_bias);
}

// The state before the piece's first token.
void load_start(const llamba_selective_scan_args& scan, const ScanSequence& sequence, const Piece& piece,
                const Scratch& scratch) {
  if (piece.token > sequence.begin) {
    const int64_t chunk = piece.batch_idx * ((scan.length - 1) / kScanChunk) + piece.token / kScanChunk - 1;
    const float* p = scan.chunk_states + chunk * scan.dstate * scan.d_inner + piece.channel;
    return load_chunk_state(p, scan.d_inner, piece.lanes, scan.dstate, scratch.start);
  }
  const float* p = scan.initial_state;
  if (p) p += sequence.index * scan.initial_state_stride_batch + piece.channel * scan.initial_state_stride_channel;
  load_transposed(p, scan.initial_state_stride_channel, piece.lanes, scan.dstate, 1.0f, scratch.start);
}

template <typename T>
void backward_group(const llamba_selective_scan_backward_args& args, const ScanPartials& partials, int64_t batch_idx,
                    int64_t group, const ScanSequence* sequences, int64_t nsequences, const Scratch& scratch) {
  const llamba_selective_scan_args& scan = args.scan;
  const ScanBlocks blocks = scan_blocks(scan);
  const int64_t begin = group_begin(blocks, partials, group), end = group_begin(blocks, partials, group + 1);
  const int64_t first = block_channel(blocks, begin);
  const int64_t entry = batch_idx * partials.groups + group, block_floats = partials.state * kLanes;
  Piece piece{};
  piece.batch_idx = batch_idx;
  piece.B_stride = partials.B_heads * partials.state;
  piece.C_stride = partials.C_heads * partials.state;
  float* const grad_B = partials.B + entry * scan.length * piece.B_stride;
  float* const grad_C = partials.C + entry * scan.length * piece.C_stride;
  float* const sums = partials.channels + batch_idx * blocks.count * (block_floats + 2 * kLanes);
  std::memset(grad_B, 0, scan.length * piece.B_stride * sizeof(float));
  std::memset(grad_C, 0, scan.length * piece.C_stride * sizeof(float));
  std::memset(sums + begin * (block_floats + 2 * kLanes), 0,
              (end - begin) * (block_floats + 2 * kLanes) * sizeof(float));
  std::memset(scratch.A, 0, (end - begin) * block_floats * sizeof(float));
  std::memset(scratch.start, 0, block_floats * sizeof(float));
  for (int64_t block = begin; block < end; ++block) {
    load_transposed(scan.A + block_channel(blocks, block) * scan.A_stride_channel, scan.A_stride_channel,
                    block_lanes(blocks, block), scan.dstate, kLog2E, scratch.A + (block - begin) * block_floats);
  }
  for (int64_t s = nsequences - 1; s >= 0; --s) {
    const ScanSequence& sequence = sequences[s];
    std::memset(scratch.adjoint, 0, (end - begin) * block_floats * sizeof(float));
    for (int64_t block = begin; block < end && args.grad_final_state; ++block) {
      const float* p = args.grad_final_state + sequence.index * args.grad_final_state_stride_batch +
                       block_channel(blocks, block) * args.grad_final_state_stride_channel;
      load_transposed(p, args.grad_final_state_stride_channel, block_lanes(blocks, block), scan.dstate, 1.0f,
                      scratch.adjoint + (block - begin) * block_floats);
    }
    for (int64_t stop = sequence.end; stop > sequence.begin; stop = piece.token) {
      piece.token = (stop - 1) / kScanChunk * kScanChunk;
      if (piece.token < sequence.begin) piece.token = sequence.begin;
      piece.count = stop - piece.token;
      HeadRows B{}, C{};
      for (int64_t block = begin; block < end; ++block) {
        piece.channel = block_channel(blocks, block);
        piece.lanes = block_lanes(blocks, block);
        const int64_t B_idx = B_head(scan, piece.channel), C_idx = C_head(scan, piece.channel);
        if (block == begin || block % blocks.per_unit == 0) {
          B = B_rows<T, true>(scan, batch_idx, piece.token, piece.count, B_idx, scratch.B);
          C = C_rows<T, true>(scan, batch_idx, piece.token, piece.count, C_idx, scratch.C);
        }
        piece.sums = sums + block * (block_floats + 2 * kLanes);
        piece.grad_B = grad_B + piece.token * piece.B_stride + (B_idx - B_head(scan, first)) * partials.state;
        piece.grad_C = grad_C + piece.token * piece.C_stride + (C_idx - C_head(scan, first)) * partials.state;
        load_start(scan, sequence, piece, scratch);
        prepare<T>(args, piece, scratch);
        for (int64_t n = 0; n < partials.state; n += kLanes) {
          const int64_t offset = (block - begin) * block_floats + n * kLanes;
          run_forward(scratch.A + offset, piece, scratch, B, C, n);
          run_backward_cut(args, scratch.A + offset, scratch.adjoint + offset, piece, scratch, B, C, n);
        }
        finish<T>(args, piece, scratch);
      }
    }
    for (int64_t block = begin; block < end && args.grad_initial_state; ++block) {
      float* p = args.grad_initial_state + sequence.index * args.grad_initial_state_stride_batch +
                 block_channel(blocks, block) * args.grad_initial_state_stride_channel;
      store_transposed(scratch.adjoint + (block - begin) * block_floats, block_lanes(blocks, block), scan.dstate, p,
                       args.grad_initial_state_stride_channel);
    }
  }
}

// One token's gradients of B or C: for every head the sum of its groups, in order. sums: [groups, length, most * state]
// at the token; `most` heads of a group.
template <typename T>
void sum_heads(const llamba_selective_scan_args& scan, const ScanPartials& partials, const ScanBlocks& blocks,
               const float* sums, int64_t heads, int64_t most, T* out) {
  const int64_t channels = scan.d_inner / heads, head_blocks = channels / blocks.unit * blocks.per_unit;
  const int64_t group_stride = scan.length * most * partials.state;
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t first = group_of(blocks, partials, head * head_blocks);
    const int64_t last = group_of(blocks, partials, (head + 1) * head_blocks - 1);
    for (int64_t n = 0; n < scan.dstate; n += kLanes) {
      vec16 total = broadcast(0.0f);
      for (int64_t group = first; group <= last; ++group) {
        const int64_t group_head = block_channel(blocks, group_begin(blocks, partials, group)) / channels;
        total = add(total, load(sums + group * group_stride + (head - group_head) * partials.state + n));
      }
      store_first(out + head * scan.dstate + n, total, lanes_left(scan.dstate - n));
    }
  }
}

template <typename T>
void sum_tokens(const llamba_selective_scan_backward_args& args, const ScanPartials& partials, int64_t begin,
                int64_t end) {
  const llamba_selective_scan_args& scan = args.scan;
  const ScanBlocks blocks = scan_blocks(scan);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t batch = index / scan.length, token = index % scan.length;
    const int64_t row = batch * partials.groups * scan.length + token;
    T* grad_B = static_cast<T*>(args.grad_B) + batch * args.grad_B_stride_batch + token * args.grad_B_stride_token;
    T* grad_C = static_cast<T*>(args.grad_C) + batch * args.grad_C_stride_batch + token * args.grad_C_stride_token;
    const float* sums_B = partials.B + row * partials.B_heads * partials.state;
    const float* sums_C = partials.C + row * partials.C_heads * partials.state;
    sum_heads(scan, partials, blocks, sums_B, scan.B_heads, partials.B_heads, grad_B);
    sum_heads(scan, partials, blocks, sums_C, scan.C_heads, partials.C_heads, grad_C);
  }
}

}  // namespace

void selective_scan_backward_run(const llamba_selective_scan_backward_args& args, const ScanPartials& partials,
                                 int64_t batch_idx, int64_t group, const ScanSequence* sequences, int64_t nsequences,
                                 float* floats) {
  const auto take = [&](int64_t count) __attribute__((always_inline)) {
    float* const taken = floats;
    floats += count;
    return taken;
  };
  const int64_t states = partials.state * kLanes, chunk = kScanChunk * kLanes;
  Scratch scratch;
  scratch.A = take(partials.group_blocks * states);
  scratch.adjoint = take(partials.group_blocks * states);
  scratch.start = take(states);
  scratch.decay = take(chunk * kLanes);
  scratch.decayed = take(chunk * kLanes);
  scratch.dt = take(chunk);
  scratch.dtx = take(chunk);
  scratch.grad_y = take(chunk);
  scratch.y = take(chunk);
  scratch.g_B = take(chunk);
  scratch.g_A = take(chunk);
  scratch.B = take(kScanChunk * partials.state);
  scratch.C = take(kScanChunk * partials.state);
  LLAMBA_SWITCH_DTYPE(args.scan.dtype, T,
                      backward_group<T>(args, partials, batch_idx, group, sequences, nsequences, scratch));
}

void selective_scan_sum_tokens(const llamba_selective_scan_backward_args& args, const ScanPartials& partials,
                               int64_t begin, int64_t end) {
  LLAMBA_SWITCH_DTYPE(args.scan.dtype, T, sum_tokens<T>(args, partials, begin, end));
}

void selective_scan_sum_channels(const llamba_selective_scan_backward_args& args, const ScanPartials& partials,
                                 int64_t begin, int64_t end) {
  const llamba_selective_scan_args& scan = args.scan;
  const ScanBlocks blocks = scan_blocks(scan);
  const int64_t rows = partials.state + 2;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t channel = block_channel(blocks, block);
    for (int64_t i = 0; i < rows; ++i) {
      vec16 total = broadcast(0.0f);
      for (int64_t batch = 0; batch < scan.batch; ++batch) {
        total = add(total, load(partials.channels + ((batch * blocks.count + block) * rows + i) * kLanes));
      }
      float lanes[kLanes];
      store(lanes, total);
      for (int lane = 0; lane < block_lanes(blocks, block); ++lane) {
        if (i < scan.dstate) args.grad_A[(channel + lane) * scan.dstate + i] = lanes[lane];
        if (i == partials.state && args.grad_D) args.grad_D[channel + lane] = lanes[lane];
        if (i == partials.state + 1 && args.grad_dt_bias) args.grad_dt_bias[channel + lane] = lanes[lane];
      }
    }
  }
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
