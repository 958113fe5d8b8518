// The functions of common/ptx.cuh as the executor runs them. __builtin_LINE() is the caller's line: the site that
// traffic.h counts by.
#pragma once

#include "common/dtype.h"
#include "simt/simt.h"

namespace llamba {

template <typename T>
T load_global(const T* p, unsigned site = __builtin_LINE()) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T) != 0) simt::fail_block("a load must be aligned; got %p", p);
  simt::count_access(p, sizeof(T), false, site);
  return *p;
}
template <typename T>
T load_global_once(const T* p, unsigned site = __builtin_LINE()) {
  return load_global(p, site);
}
template <typename T>
void store_global(T* p, T value, unsigned site = __builtin_LINE()) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T) != 0) simt::fail_block("a store must be aligned; got %p", p);
  simt::count_access(p, sizeof(T), true, site);
  *p = value;
}
inline void prefetch_global(const void*) {}

inline void cp_async_16(void* shared, const void* global, bool zero_instead = false, unsigned site = __builtin_LINE()) {
  if (!zero_instead) simt::count_access(global, 16, false, site);
  simt::async_copy(shared, global, 16, zero_instead);
}
inline void cp_async_commit() { simt::async_commit(); }
template <int kGroupsLeft>
void cp_async_wait() {
  simt::async_wait(kGroupsLeft);
}

constexpr bool kHasBulkCopies = true;
inline void mbarrier_init(uint64_t* shared, unsigned count) { simt::mbarrier_init(shared, count); }
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive_expect(uint64_t* shared, unsigned bytes) { simt::mbarrier_arrive(shared, bytes); }
inline void mbarrier_wait(uint64_t* shared, unsigned parity) { simt::mbarrier_wait(shared, parity); }
inline void bulk_copy(void* shared, const void* global, unsigned bytes, uint64_t* barrier) {
  simt::bulk_copy(shared, global, bytes, barrier);
}
inline void named_barrier(unsigned id, unsigned threads) { simt::block_barrier(id, threads); }

void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);  // ptx_simt.cpp

inline float ex2_approx(float x) { return std::exp2(x); }
inline float ex2_approx_flushed(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }
inline float rcp_approx(float x) { return 1.0f / x; }
inline uint16_t bits_of_bfloat16(float x) {
  bfloat16 y;
  from_float(x, &y);
  return y.bits;
}
inline uint16_t bits_of_float16(float x) {
  float16 y;
  from_float(x, &y);
  return y.bits;
}
inline float float_of_float16(uint16_t bits) { return to_float(float16{bits}); }
inline unsigned upper_halves(float low, float high) { return bits_of(low) >> 16 | (bits_of(high) & 0xffff0000u); }

inline int32_t opaque(int32_t x) { return x; }
}  // namespace llamba
