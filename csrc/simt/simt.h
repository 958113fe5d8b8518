// What <cuda_runtime.h> gives the kernels, when a C++ compiler builds them for the executor of this folder: the same
// source, run on the CPU by tests. A block's threads are fibers; every rendezvous of CUDA is one here.
//
// Each block runs under its own schedule (ascending, descending or random order, drawn from the seed), and a fiber runs
// until it must wait: a missing barrier shows as poison (shared memory starts as 0xff bytes: NaN, -1) or as the value
// of a thread that has run ahead. Copies that are asynchronous on the device land only at the wait that promises them.
// Whatever the device would leave undefined and the executor notices ends the launch with a sentence: see fail_block.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };
const char* cudaGetErrorString(cudaError_t error);  // the executor's sentence
inline const char* cudaGetErrorName(cudaError_t) { return "simt"; }
// What launchers are told of the device; set by tests.
extern "C" int llamba_simt_multiprocessors, llamba_simt_shared_bytes, llamba_simt_arch;

namespace llamba::simt {

struct ThreadPlace {
  dim3 thread_idx, block_idx, block_dim, grid_dim;
};
extern ThreadPlace place;  // of the running fiber

cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);
void* shared_bytes();  // of the running block

// Ends the launch; the sentence names the block and the thread.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail_block(const char* format, ...);

void block_barrier(unsigned id, unsigned threads);  // threads: that take part, a multiple of 32

// All 32 lanes deposit `bytes` at the same call; each then sees what lane l deposited.
const void* warp_exchange(const char* what, const void* value, size_t bytes);  // [32] entries of kMostExchange bytes
constexpr size_t kMostExchange = 64;
unsigned lane();

// ---- asynchronous copies, in shared memory of the running block ----
void async_copy(void* shared, const void* global, size_t bytes, bool zero_instead);
void async_commit();
void async_wait(unsigned groups_left);
void mbarrier_init(uint64_t* barrier, unsigned count);
void mbarrier_arrive(uint64_t* barrier, unsigned expected_bytes);
void mbarrier_wait(uint64_t* barrier, unsigned parity);
void bulk_copy(void* shared, const void* global, unsigned bytes, uint64_t* barrier);

// ---- traffic: what the kernel asks of global memory, if counting ----
void count_access(const void* global, size_t bytes, bool is_store, unsigned site);

}  // namespace llamba::simt

#define threadIdx (::llamba::simt::place.thread_idx)
#define blockIdx (::llamba::simt::place.block_idx)
#define blockDim (::llamba::simt::place.block_dim)
#define gridDim (::llamba::simt::place.grid_dim)

inline unsigned thread_count() { return blockDim.x * blockDim.y * blockDim.z; }
inline void __syncthreads() { llamba::simt::block_barrier(0, thread_count()); }
inline void __syncwarp() { llamba::simt::warp_exchange("__syncwarp", nullptr, 0); }

namespace llamba::simt {

template <typename T>
T shuffle(const char* what, T value, unsigned source) {
  const char* all = static_cast<const char*>(warp_exchange(what, &value, sizeof(T)));
  T result;
  std::memcpy(&result, all + (source & 31) * kMostExchange, sizeof(T));
  return result;
}
inline unsigned ballot(const char* what, bool vote) {
  const unsigned char value = vote;
  const char* all = static_cast<const char*>(warp_exchange(what, &value, 1));
  unsigned bits = 0;
  for (unsigned l = 0; l < 32; ++l) bits |= unsigned(all[l * kMostExchange] != 0) << l;
  return bits;
}
inline void check_mask(unsigned mask) {
  if (mask != 0xffffffffu) fail_block("a warp instruction's mask must name all lanes; got 0x%08x", mask);
}

}  // namespace llamba::simt

template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
  llamba::simt::check_mask(mask);
  return llamba::simt::shuffle("__shfl_sync", value, unsigned(source));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  llamba::simt::check_mask(mask);
  return llamba::simt::shuffle("__shfl_xor_sync", value, llamba::simt::lane() ^ unsigned(lanes));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  llamba::simt::check_mask(mask);
  const unsigned lane = llamba::simt::lane();
  return llamba::simt::shuffle("__shfl_up_sync", value, lane < delta ? lane : lane - delta);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  llamba::simt::check_mask(mask);
  const unsigned lane = llamba::simt::lane();
  return llamba::simt::shuffle("__shfl_down_sync", value, lane + delta > 31 ? lane : lane + delta);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  llamba::simt::check_mask(mask);
  return llamba::simt::ballot("__ballot_sync", vote);
}
inline int __any_sync(unsigned mask, bool vote) {
  llamba::simt::check_mask(mask);
  return llamba::simt::ballot("__any_sync", vote) != 0;
}
inline int __all_sync(unsigned mask, bool vote) {
  llamba::simt::check_mask(mask);
  return llamba::simt::ballot("__all_sync", vote) == 0xffffffffu;
}
