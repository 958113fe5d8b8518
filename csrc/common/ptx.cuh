// One instruction per function: the only file with inline assembly. Under the executor of csrc/simt each has a
// counterpart of the same name in simt/ptx_simt.h. Addresses are generic pointers; `shared` ones point into the block's
// SharedStorage.
#pragma once

#include "common/launch.cuh"

#ifdef LLAMBA_SIMT
#include "simt/ptx_simt.h"
#else

namespace llamba {

__device__ __forceinline__ unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// ---- global memory: T has 2, 4, 8 or 16 bytes and is aligned to them ----

template <typename T>
__device__ __forceinline__ T load_global(const T* p) {
  __builtin_assume(__isGlobal(p));  // the compiler cannot tell of a pointer that lay in shared memory
  return *p;
}
// What no other block reads: it need not stay in L1.
template <typename T>
__device__ __forceinline__ T load_global_once(const T* p) {
  static_assert(sizeof(T) == 8 || sizeof(T) == 16, "a streaming load has 8 or 16 bytes");
  T value;
  if constexpr (sizeof(T) == 16) {
    uint4 bits;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                 : "l"(p)
                 : "memory");
    memcpy(&value, &bits, 16);
  } else {
    uint2 bits;
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(bits.x), "=r"(bits.y) : "l"(p) : "memory");
    memcpy(&value, &bits, 8);
  }
  return value;
}
template <typename T>
__device__ __forceinline__ void store_global(T* p, T value) {
  if constexpr (sizeof(T) == 16) {  // spelled out: as an assignment the compiler splits some into four
    uint4 bits;
    memcpy(&bits, &value, 16);
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w)
                 : "memory");
  } else {
    *p = value;
  }
}

// Starts bringing the line of p into L2; p need not be aligned.
__device__ __forceinline__ void prefetch_global(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// ---- asynchronous copies to shared memory ----

// 16 bytes, both sides aligned to 16; zero_instead: writes zeros and reads nothing.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool zero_instead = false) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(zero_instead ? 0 : 16)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kGroupsLeft of this thread's groups are still under way.
template <int kGroupsLeft>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

// ---- Hopper: barriers in shared memory that also count bytes, and bulk copies ----

#if __CUDA_ARCH__ >= 900
constexpr bool kHasBulkCopies = true;

// count: arrivals per phase. One thread initialises, then mbarrier_init_fence and a barrier, before anyone uses it.
__device__ __forceinline__ void mbarrier_init(uint64_t* shared, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(shared)), "r"(count) : "memory");
}
__device__ __forceinline__ void mbarrier_init_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Arrives, and announces `bytes` of copies to this barrier in this phase.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* shared, unsigned bytes) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(
                   shared_address(shared)),
               "r"(bytes)
               : "memory");
}
// Returns when the phase of this parity (0 for the first) is over.
__device__ __forceinline__ void mbarrier_wait(uint64_t* shared, unsigned parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain_%=:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again_%=;\n}" ::"r"(shared_address(shared)),
      "r"(parity)
      : "memory");
}
// `bytes` from global to shared memory, both aligned to 16, a multiple of 16; the barrier's bytes count them.
__device__ __forceinline__ void bulk_copy(void* shared, const void* global, unsigned bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
#else
// So that kernels with bulk copies compile for older architectures, where they do nothing and are not launched.
constexpr bool kHasBulkCopies = false;
__device__ __forceinline__ void mbarrier_init(uint64_t*, unsigned) {}
__device__ __forceinline__ void mbarrier_init_fence() {}
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t*, unsigned) {}
__device__ __forceinline__ void mbarrier_wait(uint64_t*, unsigned) {}
__device__ __forceinline__ void bulk_copy(void*, const void*, unsigned, uint64_t*) {}
#endif

// A barrier among `threads` threads of the block; id 1 to 15 (0 is __syncthreads).
__device__ __forceinline__ void named_barrier(unsigned id, unsigned threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- tensor cores ----

// d[16 x 8] += a[16 x 16] b[16 x 8], bfloat16 with fp32 sums. Lane 4 g + t holds a: rows g and g + 8 (a[0], a[1]) at
// columns 2 t, 2 t + 1, and again at columns 2 t + 8, 2 t + 9 (a[2], a[3]); b: rows 2 t, 2 t + 1 (b[0]) and 2 t + 8,
// 2 t + 9 (b[1]) of column g; d: columns 2 t, 2 t + 1 of row g (d[0], d[1]) and of row g + 8 (d[2], d[3]).
__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- arithmetic ----

__device__ __forceinline__ float ex2_approx(float x) {  // 2^x within 2 ulp, subnormal results kept
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float ex2_approx_flushed(float x) {  // as ex2_approx, but one instruction: subnormals are 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float rcp_approx(float x) {  // 1 / x within 1 ulp
  float y;
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ uint16_t bits_of_bfloat16(float x) {  // rounded to nearest even
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
__device__ __forceinline__ uint16_t bits_of_float16(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
__device__ __forceinline__ float float_of_float16(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
// The upper halves of two floats, as two bfloat16 cut off: low in bits 0 to 15.
__device__ __forceinline__ unsigned upper_halves(float low, float high) {
  return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
}

// x, of which the compiler knows no more: what is computed from it is computed again, not kept in registers meanwhile.
__device__ __forceinline__ int32_t opaque(int32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

}  // namespace llamba
#endif
