// What mamba1_verify of one token is measured against: the step that stock decoding makes after conv and projections,
// one token, the state read, updated and written back. fp32, dstate 16, one head of B and C; as fast as we can write it,
// on the vectors, the exponential and the threads of the operator. Compiled by the benchmark that uses it
// (bench/eager.py).
#define LLAMBA_ISA eager
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include "common/vec.h"

namespace {

using namespace llamba;
using namespace llamba::eager;

constexpr int kBlock = 16, kDstate = 16;

struct Step {
  const float *x, *dt, *B, *C, *z;  // [d_inner], B and C [kDstate]
  const float *A, *D, *dt_bias;     // [d_inner, kDstate], [d_inner]
  float* state;                     // [d_inner, kDstate], in/out
  float* out;                       // [d_inner]
};

void blocks(const Step& step, int64_t begin, int64_t end) {
  const vec16 B = load(step.B), C = load(step.C), log2e = broadcast(1.44269504088896341f);
  for (int64_t first = begin * kBlock; first < end * kBlock; first += kBlock) {
    const vec16 dt = softplus(add(load(step.dt + first), load(step.dt_bias + first))), x = load(step.x + first);
    alignas(64) float dts[kBlock], dtx[kBlock];
    store(dts, dt);
    store(dtx, mul(dt, x));
    vec16 products[kBlock];
#pragma GCC unroll 4
    for (int r = 0; r < kBlock; ++r) {
      float* row = step.state + (first + r) * kDstate;
      const float* A = step.A + (first + r) * kDstate;
      __builtin_prefetch(row + 1024, 1);
      __builtin_prefetch(A + 1024);
      const vec16 decay = exp2(mul(broadcast(dts[r]), mul(load(A), log2e)));
      const vec16 state = fma(broadcast(dtx[r]), B, mul(decay, load(row)));
      store(row, state);
      products[r] = mul(state, C);
    }
    const vec16 y = add(sum_each(products), mul(load(step.D + first), x));
    store(step.out + first, mul(y, silu(load(step.z + first))));
  }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void eager_mamba1_step(int64_t d_inner, const float* x,
                                                                         const float* dt, const float* B,
                                                                         const float* C, const float* z, const float* A,
                                                                         const float* D, const float* dt_bias,
                                                                         float* state, float* out) {
  Step step{x, dt, B, C, z, A, D, dt_bias, state, out};
  const int64_t items = d_inner / kBlock;
  torch_parallel_for(
      0, items, (items + 1) / 2,
      [](int64_t begin, int64_t end, void* given) { blocks(*static_cast<const Step*>(given), begin, end); }, &step);
}
