// What mamba2_verify of one token is measured against: the step that stock decoding makes, one token, the state read,
// updated and written back. fp32, width 4, x per head, one group of B and C; as fast as we can write it, on the vectors
// and threads of the operator. Compiled by the benchmark that uses it (bench/eager.py).
#define LLAMBA_ISA eager
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include "common/vec.h"

namespace {

using namespace llamba;
using namespace llamba::eager;

constexpr int kWidth = 4, kBlock = 16;

struct Step {
  int64_t nheads, headdim;
  const float *xBC, *dt;          // [conv_dim], [nheads]
  const float *weight, *bias;     // [width, conv_dim], [conv_dim]
  const float *A, *D, *dt_bias;   // [nheads]
  float* window;                  // [width, conv_dim], in/out: the oldest row leaves, xBC joins
  float* state;                   // [nheads, headdim, kDstate], in/out
  float* out;                     // [nheads, headdim]
  int64_t conv_dim;
};

vec16 conv(const Step& step, int64_t channel) {
  vec16 y = load(step.bias + channel);
  for (int tap = 0; tap < kWidth; ++tap) {
    float* row = step.window + tap * step.conv_dim + channel;
    const vec16 input = load(tap + 1 < kWidth ? row + step.conv_dim : step.xBC + channel);
    store(row, input);
    y = fma(load(step.weight + tap * step.conv_dim + channel), input, y);
  }
  return silu(y);
}

template <int kDstate>
void blocks(const Step& step, int64_t begin, int64_t end, const float* B, const float* C) {
  constexpr int kVecs = kDstate / kLanes;
  const int64_t blocks_per_head = step.headdim / kBlock;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t head = item / blocks_per_head, first = item * kBlock;  // row of [nheads * headdim]
    const vec16 dt = softplus(broadcast(step.dt[head] + step.dt_bias[head]));
    const vec16 decay = exp(mul(dt, broadcast(step.A[head])));
    const vec16 x = conv(step, first);
    float dtx[kBlock];
    store(dtx, mul(dt, x));
    vec16 products[kBlock];
    for (int r = 0; r < kBlock; ++r) {
      float* row = step.state + (first + r) * kDstate;
      const vec16 dtx_lanes = broadcast(dtx[r]);
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) {
        __builtin_prefetch(row + v * kLanes + 1024, 1);
        const vec16 state = fma(dtx_lanes, load(B + v * kLanes), mul(decay, load(row + v * kLanes)));
        store(row + v * kLanes, state);
        products[r] = v == 0 ? mul(state, load(C)) : fma(state, load(C + v * kLanes), products[r]);
      }
    }
    store(step.out + first, add(sum_each(products), mul(broadcast(step.D[head]), x)));
  }
}

template <int kDstate>
void run(const Step& step) {
  alignas(64) float B[kDstate], C[kDstate];
  const int64_t x_size = step.nheads * step.headdim;
  for (int n = 0; n < kDstate; n += kLanes) {
    store(B + n, conv(step, x_size + n));
    store(C + n, conv(step, x_size + kDstate + n));
  }
  struct Context {
    const Step& step;
    const float *B, *C;
  } context{step, B, C};
  const int64_t items = step.nheads * step.headdim / kBlock;
  torch_parallel_for(
      0, items, items / 2,
      [](int64_t begin, int64_t end, void* given) {
        const auto& [step, B, C] = *static_cast<Context*>(given);
        blocks<kDstate>(step, begin, end, B, C);
      },
      &context);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void eager_mamba2_step(
    int64_t nheads, int64_t headdim, int64_t dstate, const float* xBC, const float* dt, const float* weight,
    const float* bias, const float* A, const float* D, const float* dt_bias, float* window, float* state, float* out) {
  const Step step{nheads, headdim, xBC,    dt,    weight, bias, A,
                  D,      dt_bias, window, state, out,    nheads * headdim + 2 * dstate};
  dstate == 64 ? run<64>(step) : run<128>(step);
}
