// Tiny kernels for tests/test_simt_executor.py: `simt_executor NAME SEED` runs one under the executor of csrc/simt and
// prints its outputs, or "error: " and the executor's sentence.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "common/ptx.cuh"

extern "C" void llamba_simt_seed(uint64_t seed);

using namespace llamba;

namespace {

alignas(16) float input[1024];  // 0, 1, 2, ...
float output[4096];
unsigned count;  // of outputs
void put(float value) { output[count++] = value; }

struct Params {
  int unused = 0;
};
unsigned thread() { return threadIdx.x; }
float* shared() { return static_cast<float*>(simt::shared_bytes()); }
uint64_t* barriers() { return reinterpret_cast<uint64_t*>(shared() + 64); }  // behind 64 floats

// ---- barriers ----

void order(Params) { put(float(100 * blockIdx.x + thread())); }
void neighbour(bool barrier) {  // each thread reads what the next one has written
  shared()[thread()] = float(thread());
  if (barrier) __syncthreads();
  put(shared()[(thread() + 1) % blockDim.x]);
}
void barrier(Params) { neighbour(true); }
void dropped_barrier(Params) { neighbour(false); }
void barrier_of_some(Params) {
  if (thread() < 32) __syncthreads();
}
void named_barriers(Params) {  // two pairs of warps, each with its own
  shared()[thread()] = float(thread());
  named_barrier(1 + thread() / 64, 64);
  put(shared()[thread() ^ 32]);
}
void named_barrier_counts(Params) { named_barrier(1, thread() < 32 ? 64 : 32); }
void named_barrier_id(Params) { named_barrier(16, 64); }
void named_barrier_part_of_warp(Params) { named_barrier(1, 40); }

// ---- warps ----

void shuffles(Params) {
  const float own = float(thread());
  const float values[] = {__shfl_sync(~0u, own, 5), __shfl_xor_sync(~0u, own, 9), __shfl_up_sync(~0u, own, 3),
                          __shfl_down_sync(~0u, own, 3)};
  const unsigned ballot = __ballot_sync(~0u, thread() % 3 == 0);
  const int any = __any_sync(~0u, thread() == 7), none = __any_sync(~0u, false);
  const int all = __all_sync(~0u, true), some = __all_sync(~0u, thread() != 7);
  if (thread() != 12) return;
  for (float value : values) put(value);
  put(float(ballot & 0xffff)), put(float(ballot >> 16));
  put(float(any)), put(float(none)), put(float(all)), put(float(some));
}
void shuffle_round_after_round(Params) {  // a lane is an exchange ahead of another
  float sum = float(thread() % 32);
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  put(sum);
}
void lanes_apart(Params) {
  if (thread() < 16) {
    __syncwarp();
  } else {
    __shfl_sync(~0u, 1.0f, 0);
  }
}
void lane_missing(Params) {
  if (thread() != 3) __syncwarp();
}
void part_of_mask(Params) { __shfl_sync(0xffffu, 1.0f, 0); }

// ---- shared memory and alignment ----

void unwritten_shared(Params) {
  if (thread() == 0) put(shared()[1]);
}
void shared_overrun(Params) {
  if (thread() == 0) shared()[96] = 1.0f;
}
void shared_overrun_read(Params) {
  if (thread() == 0) put(shared()[96]);
}
void misaligned_load(Params) { load_global(reinterpret_cast<const uint4*>(input + 1)); }
void misaligned_store(Params) { store_global(reinterpret_cast<uint2*>(output + 1), uint2{}); }

// ---- cp.async ----

void copy_four(int wait, bool zero = false, int shared_offset = 0, int global_offset = 4) {
  if (thread() != 0) return;
  cp_async_16(shared() + shared_offset, input + global_offset, zero);
  cp_async_commit();
  cp_async_16(shared() + 4, input + 8);
  cp_async_commit();
  if (wait == 0) cp_async_wait<0>();
  if (wait == 1) cp_async_wait<1>();
  put(shared()[0]), put(shared()[4]);
  if (wait != 2) cp_async_wait<0>();
}
void async_waited(Params) { copy_four(0); }
void async_zeros(Params) { copy_four(0, true); }
void async_one_group_left(Params) { copy_four(1); }
void async_read_before_wait(Params) { copy_four(3); }
void async_never_waited(Params) { copy_four(2); }
void async_uncommitted(Params) { cp_async_16(shared(), input); }
void async_misaligned(Params) { copy_four(0, false, 0, 5); }
void async_outside_shared(Params) { copy_four(0, false, 96); }

// ---- mbarriers and bulk copies ----

void bulk(unsigned announced, unsigned parity, bool wait = true, int arrivals = 1) {
  if (thread() == 0) mbarrier_init(barriers(), 1);
  __syncthreads();
  if (thread() == 0) {
    for (int i = 0; i < arrivals; ++i) mbarrier_arrive_expect(barriers(), announced);
    bulk_copy(shared(), input + 4, 32, barriers());
  }
  __syncthreads();
  if (wait) mbarrier_wait(barriers(), parity);
  if (thread() == 33) put(shared()[0]), put(shared()[7]);
}
void bulk_waited(Params) { bulk(32, 0); }
void bulk_read_before_wait(Params) { bulk(32, 0, false); }
void bulk_wrong_parity(Params) { bulk(32, 1); }
void bulk_too_few_bytes(Params) { bulk(16, 0); }
void bulk_too_many_bytes(Params) { bulk(48, 0); }
void bulk_never_announced(Params) { bulk(32, 0, true, 0); }
void bulk_too_many_arrivals(Params) { bulk(32, 0, true, 2); }
void bulk_second_phase(Params) {  // each phase brings other values; the parity goes 0, 1, 0
  if (thread() == 0) mbarrier_init(barriers(), 1);
  for (int phase = 0; phase < 3; ++phase) {
    __syncthreads();
    if (thread() == 0) {
      mbarrier_arrive_expect(barriers(), 16);
      bulk_copy(shared(), input + 4 * phase, 16, barriers());
    }
    mbarrier_wait(barriers(), phase % 2);
    if (thread() == 40) put(shared()[1]);
  }
}
void bulk_over_a_stage_that_is_read(Params) {  // the next copy starts while other warps may still read the last one
  if (thread() == 0) {
    mbarrier_init(barriers(), 1);
    mbarrier_arrive_expect(barriers(), 16);
    bulk_copy(shared(), input + 4, 16, barriers());
  }
  __syncthreads();
  mbarrier_wait(barriers(), 0);
  if (thread() == 0) {
    mbarrier_arrive_expect(barriers(), 16);
    bulk_copy(shared(), input + 8, 16, barriers());
  }
  if (thread() == 63) put(shared()[0]);
}
void bulk_misaligned(Params) { bulk_copy(shared(), input + 1, 16, barriers()); }
void bulk_outside_shared(Params) { bulk_copy(shared() + 92, input, 32, barriers()); }
void arrive_without_init(Params) { mbarrier_arrive_expect(barriers(), 16); }
void wait_without_init(Params) { mbarrier_wait(barriers(), 0); }
void bulk_without_init(Params) { bulk_copy(shared(), input, 16, barriers()); }

// ---- tensor cores: a [16, 16] and b [16, 8] by the fragments of the PTX manual, read from plain rows ----

unsigned pair(float low, float high) {
  return unsigned(bits_of_bfloat16(low)) | unsigned(bits_of_bfloat16(high)) << 16;
}
void mma(float (*a)(int, int), float (*b)(int, int), float c) {
  const int g = int(thread()) / 4, t = int(thread()) % 4;
  const unsigned of_a[4] = {pair(a(g, 2 * t), a(g, 2 * t + 1)), pair(a(g + 8, 2 * t), a(g + 8, 2 * t + 1)),
                            pair(a(g, 2 * t + 8), a(g, 2 * t + 9)), pair(a(g + 8, 2 * t + 8), a(g + 8, 2 * t + 9))};
  const unsigned of_b[2] = {pair(b(2 * t, g), b(2 * t + 1, g)), pair(b(2 * t + 8, g), b(2 * t + 9, g))};
  float d[4] = {c, c, c, c};
  mma_bf16(d, of_a, of_b);
  for (int i = 0; i < 4; ++i) output[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = d[i];
  count = 128;
}
void mma_values(Params) {
  mma([](int row, int k) { return float((7 * row + 3 * k) % 19 - 9); },
      [](int k, int column) { return float((5 * k + 11 * column) % 23 - 11); }, 2.0f);
}
// One product of three quarters of the accumulator's last bit: cut off, not rounded up.
void mma_cuts_off(Params) {
  mma([](int, int k) { return k == 0 ? 0x1.8p-12f : 0.0f; }, [](int, int) { return 0x1p-12f; }, 1.0f);
}
// Eight products below the bits that are kept: each is cut off before they are added.
void mma_cuts_off_each(Params) {
  mma([](int, int k) { return k < 8 ? 0x1p-13f : 0.0f; }, [](int, int) { return 0x1p-13f; }, 1.0f);
}

void nothing(Params) {}

struct Case {
  void (*kernel)(Params);
  unsigned threads = 64, blocks = 1, shared = 96 * sizeof(float);
};
#define CASE(name)  \
  {                 \
    #name, { name } \
  }
const std::map<std::string, Case> cases = {
    {"order", {order, 96, 40}},
    CASE(barrier),
    CASE(dropped_barrier),
    CASE(barrier_of_some),
    {"named_barriers", {named_barriers, 128, 1, 128 * sizeof(float)}},
    CASE(named_barrier_counts),
    CASE(named_barrier_id),
    CASE(named_barrier_part_of_warp),
    {"shuffles", {shuffles, 32}},
    CASE(shuffle_round_after_round),
    {"lanes_apart", {lanes_apart, 32}},
    {"lane_missing", {lane_missing, 32}},
    CASE(part_of_mask),
    CASE(unwritten_shared),
    CASE(shared_overrun),
    CASE(shared_overrun_read),
    CASE(misaligned_load),
    CASE(misaligned_store),
    CASE(async_waited),
    CASE(async_zeros),
    CASE(async_one_group_left),
    CASE(async_read_before_wait),
    CASE(async_never_waited),
    CASE(async_uncommitted),
    CASE(async_misaligned),
    CASE(async_outside_shared),
    CASE(bulk_waited),
    CASE(bulk_read_before_wait),
    CASE(bulk_wrong_parity),
    CASE(bulk_too_few_bytes),
    CASE(bulk_too_many_bytes),
    CASE(bulk_never_announced),
    CASE(bulk_too_many_arrivals),
    CASE(bulk_second_phase),
    CASE(bulk_over_a_stage_that_is_read),
    CASE(bulk_misaligned),
    CASE(bulk_outside_shared),
    CASE(arrive_without_init),
    CASE(wait_without_init),
    CASE(bulk_without_init),
    {"mma_values", {mma_values, 32}},
    {"mma_cuts_off", {mma_cuts_off, 32}},
    {"mma_cuts_off_each", {mma_cuts_off_each, 32}},
    {"threads_of_no_whole_warp", {nothing, 48}},
    {"too_many_threads", {nothing, 1056}},
    {"no_block", {nothing, 32, 0}},
    {"too_much_shared", {nothing, 32, 1, 227 * 1024 + 1}},
};

}  // namespace

int main(int argc, char** argv) {
  const auto found = argc == 3 ? cases.find(argv[1]) : cases.end();
  if (found == cases.end()) return std::fprintf(stderr, "usage: simt_executor NAME SEED\n"), 2;
  const Case& one = found->second;
  for (int i = 0; i < 1024; ++i) input[i] = float(i);
  llamba_simt_seed(std::strtoull(argv[2], nullptr, 10));
  const cudaError_t error = launch(one.kernel, dim3(one.blocks), dim3(one.threads), one.shared, nullptr, Params{});
  if (error != cudaSuccess) return std::printf("error: %s\n", cudaGetErrorString(error)), 0;
  for (unsigned i = 0; i < count; ++i) std::printf("%.9g ", output[i]);
  std::printf("\n");
}
