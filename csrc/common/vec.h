// vec16: sixteen float lanes on every instruction set, so that one kernel source has one lane map everywhere.
// AVX-512 and AVX2 give the same bits; the generic set has no fused multiply-add and rounds twice.
// Included by *_isa.cpp files only, inside their own namespace (LLAMBA_ISA); all functions have internal linkage.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/dtype.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

#define LLAMBA_INLINE [[maybe_unused]] inline __attribute__((always_inline))

constexpr int32_t kSqrtHalfBits = 0x3f3504f3;  // of the float sqrt(1/2)

// One native register: a few operations, one instruction each.
#if defined(__AVX512F__)
using native = __m512;
using native_int = __m512i;
constexpr int kNativeLanes = 16;
LLAMBA_INLINE native n_load(const float* p) { return _mm512_loadu_ps(p); }
LLAMBA_INLINE void n_store(float* p, native a) { _mm512_storeu_ps(p, a); }
LLAMBA_INLINE native n_set(float a) { return _mm512_set1_ps(a); }
LLAMBA_INLINE native n_fma(native a, native b, native c) { return _mm512_fmadd_ps(a, b, c); }
LLAMBA_INLINE native n_max(native a, native b) { return _mm512_max_ps(a, b); }  // b if either is NaN
LLAMBA_INLINE native n_min(native a, native b) { return _mm512_min_ps(a, b); }  // b if either is NaN
LLAMBA_INLINE native n_round(native a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
LLAMBA_INLINE native n_pow2(native integral) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(integral), _mm512_set1_epi32(127)), 23));
}
// x = mantissa 2^exponent with a mantissa from sqrt(1/2) to sqrt(2), for normal x > 0.
LLAMBA_INLINE native n_mantissa(native x, native* exponent) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i above = _mm512_sub_epi32(bits, _mm512_set1_epi32(kSqrtHalfBits));
  *exponent = _mm512_cvtepi32_ps(_mm512_srai_epi32(above, 23));
  const __m512i shift = _mm512_and_si512(above, _mm512_set1_epi32(static_cast<int>(0xff800000u)));
  return _mm512_castsi512_ps(_mm512_sub_epi32(bits, shift));
}
// 2^k where k + 127 is in the low bits of the float's bits.
LLAMBA_INLINE native n_low_bits_pow2(native a) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23));
}
LLAMBA_INLINE native n_where_greater(native a, native b, native yes, native no) {  // no if either is NaN
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes);
}
// A bfloat16 in the low or high half of each 32 bits, widened.
LLAMBA_INLINE native_int n_load_int(const void* p) { return _mm512_loadu_si512(p); }
LLAMBA_INLINE native n_low_half(native_int a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
LLAMBA_INLINE native n_high_half(native_int a) {
  return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
#elif defined(__AVX2__)
using native = __m256;
using native_int = __m256i;
constexpr int kNativeLanes = 8;
LLAMBA_INLINE native n_load(const float* p) { return _mm256_loadu_ps(p); }
LLAMBA_INLINE void n_store(float* p, native a) { _mm256_storeu_ps(p, a); }
LLAMBA_INLINE native n_set(float a) { return _mm256_set1_ps(a); }
LLAMBA_INLINE native n_fma(native a, native b, native c) { return _mm256_fmadd_ps(a, b, c); }
LLAMBA_INLINE native n_max(native a, native b) { return _mm256_max_ps(a, b); }
LLAMBA_INLINE native n_min(native a, native b) { return _mm256_min_ps(a, b); }
LLAMBA_INLINE native n_round(native a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LLAMBA_INLINE native n_pow2(native integral) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(integral), _mm256_set1_epi32(127)), 23));
}
LLAMBA_INLINE native n_mantissa(native x, native* exponent) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i above = _mm256_sub_epi32(bits, _mm256_set1_epi32(kSqrtHalfBits));
  *exponent = _mm256_cvtepi32_ps(_mm256_srai_epi32(above, 23));
  const __m256i shift = _mm256_and_si256(above, _mm256_set1_epi32(static_cast<int>(0xff800000u)));
  return _mm256_castsi256_ps(_mm256_sub_epi32(bits, shift));
}
LLAMBA_INLINE native n_low_bits_pow2(native a) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23));
}
LLAMBA_INLINE native n_where_greater(native a, native b, native yes, native no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
LLAMBA_INLINE native_int n_load_int(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
LLAMBA_INLINE native n_low_half(native_int a) { return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)); }
LLAMBA_INLINE native n_high_half(native_int a) {
  return _mm256_castsi256_ps(_mm256_and_si256(a, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
#else
typedef float native __attribute__((vector_size(16)));
typedef int32_t native_int __attribute__((vector_size(16)));
constexpr int kNativeLanes = 4;
LLAMBA_INLINE native n_load(const float* p) {
  native a;
  std::memcpy(&a, p, sizeof(a));
  return a;
}
LLAMBA_INLINE void n_store(float* p, native a) { std::memcpy(p, &a, sizeof(a)); }
LLAMBA_INLINE native n_set(float a) { return native{a, a, a, a}; }
LLAMBA_INLINE native n_fma(native a, native b, native c) { return a * b + c; }
LLAMBA_INLINE native n_max(native a, native b) { return a > b ? a : b; }
LLAMBA_INLINE native n_min(native a, native b) { return a < b ? a : b; }
LLAMBA_INLINE native n_round(native a) {  // |a| < 2^22: adding and taking away 1.5 * 2^23 rounds to nearest even
  const native magic = n_set(12582912.0f);
  return (a + magic) - magic;
}
LLAMBA_INLINE native n_bits(native_int bits) {
  native a;
  std::memcpy(&a, &bits, sizeof(a));
  return a;
}
LLAMBA_INLINE native n_pow2(native integral) {
  return n_bits((__builtin_convertvector(integral, native_int) + 127) << 23);
}
LLAMBA_INLINE native n_mantissa(native x, native* exponent) {
  native_int bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const native_int above = bits - kSqrtHalfBits;
  *exponent = __builtin_convertvector(above >> 23, native);
  return n_bits(bits - (above & static_cast<int32_t>(0xff800000u)));
}
LLAMBA_INLINE native n_low_bits_pow2(native a) {
  native_int bits;
  std::memcpy(&bits, &a, sizeof(bits));
  return n_bits(bits << 23);
}
LLAMBA_INLINE native n_where_greater(native a, native b, native yes, native no) { return a > b ? yes : no; }
LLAMBA_INLINE native_int n_load_int(const void* p) {
  native_int a;
  std::memcpy(&a, p, sizeof(a));
  return a;
}
LLAMBA_INLINE native n_low_half(native_int a) { return n_bits(a << 16); }
LLAMBA_INLINE native n_high_half(native_int a) { return n_bits(a & static_cast<int32_t>(0xffff0000u)); }
#endif

constexpr int kLanes = 16;
constexpr int kParts = kLanes / kNativeLanes;

struct vec16 {
  native part[kParts];
};

#define LLAMBA_EACH_PART(expression)                         \
  vec16 y;                                                   \
  for (int i = 0; i < kParts; ++i) y.part[i] = (expression); \
  return y

LLAMBA_INLINE vec16 load(const float* p) { LLAMBA_EACH_PART(n_load(p + i * kNativeLanes)); }
LLAMBA_INLINE vec16 broadcast(float a) { LLAMBA_EACH_PART(n_set(a)); }
LLAMBA_INLINE vec16 fma(vec16 a, vec16 b, vec16 c) { LLAMBA_EACH_PART(n_fma(a.part[i], b.part[i], c.part[i])); }
LLAMBA_INLINE vec16 mul(vec16 a, vec16 b) { LLAMBA_EACH_PART(a.part[i] * b.part[i]); }
LLAMBA_INLINE vec16 add(vec16 a, vec16 b) { LLAMBA_EACH_PART(a.part[i] + b.part[i]); }
LLAMBA_INLINE vec16 div(vec16 a, vec16 b) { LLAMBA_EACH_PART(a.part[i] / b.part[i]); }
LLAMBA_INLINE vec16 max(vec16 a, vec16 b) { LLAMBA_EACH_PART(n_max(a.part[i], b.part[i])); }  // b where either is NaN
LLAMBA_INLINE vec16 min(vec16 a, vec16 b) { LLAMBA_EACH_PART(n_min(a.part[i], b.part[i])); }  // b where either is NaN
LLAMBA_INLINE void store(float* p, vec16 a) {
  for (int i = 0; i < kParts; ++i) n_store(p + i * kNativeLanes, a.part[i]);
}

LLAMBA_INLINE vec16 load(const bfloat16* p) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return vec16{{_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))}};
#elif defined(__AVX2__)
  vec16 y;
  for (int i = 0; i < 2; ++i) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * i));
    y.part[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  return y;
#else
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = to_float(p[i]);
  return load(lanes);
#endif
}

// Elements 0, 2, ... 30 and 1, 3, ... 31 of 32: in each 32 bits the lower half is the even one.
LLAMBA_INLINE vec16 load_even(const bfloat16* p) {
  vec16 y;
  for (int i = 0; i < kParts; ++i) y.part[i] = n_low_half(n_load_int(p + 2 * i * kNativeLanes));
  return y;
}
LLAMBA_INLINE vec16 load_odd(const bfloat16* p) {
  vec16 y;
  for (int i = 0; i < kParts; ++i) y.part[i] = n_high_half(n_load_int(p + 2 * i * kNativeLanes));
  return y;
}

LLAMBA_INLINE vec16 load(const float16* p) {
#if defined(__AVX512F__)
  return vec16{{_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}};
#elif defined(__AVX2__)
  vec16 y;
  for (int i = 0; i < 2; ++i) {
    y.part[i] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * i)));
  }
  return y;
#else
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = to_float(p[i]);
  return load(lanes);
#endif
}

LLAMBA_INLINE void store(float16* p, vec16 a) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.part[0], _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  for (int i = 0; i < 2; ++i) {
    const __m128i halves = _mm256_cvtps_ph(a.part[i], _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8 * i), halves);
  }
#else
  float lanes[kLanes];
  store(lanes, a);
  for (int i = 0; i < kLanes; ++i) from_float(lanes[i], p + i);
#endif
}

#if defined(__AVX512F__)
// The float's bits with the bfloat16 that from_float gives in their upper half; the lower half means nothing.
LLAMBA_INLINE __m512i bfloat16_bits(vec16 a) {
  const __m512i bits = _mm512_castps_si512(a.part[0]);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet_nan = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a.part[0], a.part[0], _CMP_UNORD_Q), quiet_nan);
}
#endif

// Rounds as from_float does.
LLAMBA_INLINE void store(bfloat16* p, vec16 a) {
#if defined(__AVX512F__)
  const __m256i upper = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bfloat16_bits(a), 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), upper);
#elif defined(__AVX2__)
  __m256i result[2];
  for (int i = 0; i < 2; ++i) {
    const __m256i bits = _mm256_castps_si256(a.part[i]);
    const __m256i upper = _mm256_srli_epi32(bits, 16);
    const __m256i half = _mm256_add_epi32(_mm256_and_si256(upper, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
    const __m256i quiet_nan = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a.part[i], a.part[i], _CMP_UNORD_Q));
    result[i] = _mm256_blendv_epi8(rounded, quiet_nan, is_nan);
  }
  const __m256i packed = _mm256_packus_epi32(result[0], result[1]);  // the middle quarters are swapped
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
#else
  float lanes[kLanes];
  store(lanes, a);
  for (int i = 0; i < kLanes; ++i) from_float(lanes[i], p + i);
#endif
}

// How many of 16 lanes hold elements when `left` are left.
LLAMBA_INLINE int lanes_left(int64_t left) { return left < kLanes ? static_cast<int>(left) : kLanes; }

// The first n lanes, the rest zero; nothing beyond p + n is touched.
template <typename T>
LLAMBA_INLINE vec16 load_first(const T* p, int n) {
  if (n == kLanes) return load(p);
  float lanes[kLanes] = {};
  for (int i = 0; i < n; ++i) lanes[i] = to_float(p[i]);
  return load(lanes);
}
template <typename T>
LLAMBA_INLINE void store_first(T* p, vec16 a, int n) {
  if (n == kLanes) return store(p, a);
  float lanes[kLanes];
  store(lanes, a);
  for (int i = 0; i < n; ++i) from_float(lanes[i], p + i);
}

// Sum of the lanes in one fixed tree: lane i with i + 8, then i + 4, i + 2, i + 1.
LLAMBA_INLINE float sum(vec16 a) {
#if defined(__AVX512F__)
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.part[0]), 1));
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.part[0]), high);
#elif defined(__AVX2__)
  const __m256 eight = _mm256_add_ps(a.part[0], a.part[1]);
#endif
#if defined(__AVX2__)
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  four = _mm_add_ss(four, _mm_movehdup_ps(four));
  return _mm_cvtss_f32(four);
#else
  const native four = (a.part[0] + a.part[2]) + (a.part[1] + a.part[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
#endif
}

// The sums of sixteen vectors: lane i is sum(rows[i]), bit for bit, in a third of the instructions.
LLAMBA_INLINE vec16 sum_each(const vec16 (&rows)[kLanes]) {
#if defined(__AVX512F__)
  __m512 eight[8], four[4], two[2];  // lanes left of each row; which rows: chosen so that the last step sorts them
  for (int i = 0; i < 8; ++i) {
    const __m512 a = rows[i % 4 + i / 4 * 8].part[0], b = rows[i % 4 + i / 4 * 8 + 4].part[0];
    eight[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
  for (int i = 0; i < 4; ++i) {  // rows i, i + 4, i + 8, i + 12, one in each quarter
    const __m512 a = eight[i], b = eight[i + 4];
    four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  for (int i = 0; i < 2; ++i) {
    const __m512d a = _mm512_castps_pd(four[2 * i]), b = _mm512_castps_pd(four[2 * i + 1]);
    two[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  return vec16{{_mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88), _mm512_shuffle_ps(two[0], two[1], 0xdd))}};
#elif defined(__AVX2__)
  vec16 y;
  for (int half = 0; half < 2; ++half) {
    const vec16* const row = rows + 8 * half;
    __m256 four[4], two[2];
    for (int i = 0; i < 4; ++i) {  // rows i and i + 4
      const __m256 a = _mm256_add_ps(row[i].part[0], row[i].part[1]);
      const __m256 b = _mm256_add_ps(row[i + 4].part[0], row[i + 4].part[1]);
      four[i] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
    for (int i = 0; i < 2; ++i) {
      const __m256d a = _mm256_castps_pd(four[2 * i]), b = _mm256_castps_pd(four[2 * i + 1]);
      two[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    y.part[half] = _mm256_add_ps(_mm256_shuffle_ps(two[0], two[1], 0x88), _mm256_shuffle_ps(two[0], two[1], 0xdd));
  }
  return y;
#else
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = sum(rows[i]);
  return load(lanes);
#endif
}

// Sixteen rows of four elements, column by column.
template <typename T>
LLAMBA_INLINE void load_columns(const T* p, vec16& a, vec16& b, vec16& c, vec16& d) {
#if defined(__AVX512F__)
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  __m512 quarter[4];
  for (int i = 0; i < 4; ++i) quarter[i] = load(p + i * kLanes).part[0];
  const __m512 ac_low = _mm512_permutex2var_ps(quarter[0], even, quarter[1]);
  const __m512 ac_high = _mm512_permutex2var_ps(quarter[2], even, quarter[3]);
  const __m512 bd_low = _mm512_permutex2var_ps(quarter[0], odd, quarter[1]);
  const __m512 bd_high = _mm512_permutex2var_ps(quarter[2], odd, quarter[3]);
  a.part[0] = _mm512_permutex2var_ps(ac_low, even, ac_high);
  b.part[0] = _mm512_permutex2var_ps(bd_low, even, bd_high);
  c.part[0] = _mm512_permutex2var_ps(ac_low, odd, ac_high);
  d.part[0] = _mm512_permutex2var_ps(bd_low, odd, bd_high);
#else
  vec16* const columns[] = {&a, &b, &c, &d};
  for (int column = 0; column < 4; ++column) {
    float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = to_float(p[4 * i + column]);
    *columns[column] = load(lanes);
  }
#endif
}

// The value that a has once it is stored as T.
template <typename T>
LLAMBA_INLINE vec16 rounded_to(vec16 a) {
  T stored[kLanes];
  store(stored, a);
  return load(stored);
}
template <>
LLAMBA_INLINE vec16 rounded_to<float>(vec16 a) {
  return a;
}
#if defined(__AVX512F__)  // without leaving the registers
template <>
LLAMBA_INLINE vec16 rounded_to<float16>(vec16 a) {
  return vec16{{_mm512_cvtph_ps(_mm512_cvtps_ph(a.part[0], _MM_FROUND_TO_NEAREST_INT))}};
}
template <>
LLAMBA_INLINE vec16 rounded_to<bfloat16>(vec16 a) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return vec16{{_mm512_castsi512_ps(_mm512_and_si512(bfloat16_bits(a), upper))}};
}
#endif

// e^x to 0.85 units in the last place. x is clamped to the range with finite, normal results; NaN stays NaN.
LLAMBA_INLINE vec16 exp(vec16 x) {
  vec16 y;
  for (int i = 0; i < kParts; ++i) {
    const native clamped = n_min(n_set(88.37626f), n_max(n_set(-87.33654f), x.part[i]));
    const native n = n_round(clamped * n_set(1.44269504088896341f));
    // r = x - n ln 2, ln 2 in two parts so that n * (high part) is exact
    const native r = n_fma(n, n_set(2.12194440e-4f), n_fma(n, n_set(-0.693359375f), clamped));
    native p = n_set(1.0f / 5040.0f);
    p = n_fma(p, r, n_set(1.0f / 720.0f));
    p = n_fma(p, r, n_set(1.0f / 120.0f));
    p = n_fma(p, r, n_set(1.0f / 24.0f));
    p = n_fma(p, r, n_set(1.0f / 6.0f));
    p = n_fma(p, r, n_set(0.5f));
    // 1 + r rounds; what it loses is added to the small terms, so that only the last addition rounds at full weight
    const native one_r = n_set(1.0f) + r;
    const native lost = r - (one_r - n_set(1.0f));
    y.part[i] = (one_r + n_fma(p, r * r, lost)) * n_pow2(n);
  }
  return y;
}

// 2^x to 0.95 units in the last place, in two thirds of exp's instructions. x is clamped to [-126, 127]; NaN stays NaN.
LLAMBA_INLINE vec16 exp2(vec16 x) {
  const native magic = n_set(12583039.0f);  // 1.5 * 2^23 + 127: added, it leaves round(x) + 127 in the low bits
  vec16 y;
  for (int i = 0; i < kParts; ++i) {
    const native clamped = n_min(n_set(127.0f), n_max(n_set(-126.0f), x.part[i]));
    const native shifted = clamped + magic;
    const native r = clamped - (shifted - magic);
    native p = n_set(1.5353362e-4f);  // minimax on [-1/2, 1/2] with p(0) = 1
    p = n_fma(p, r, n_set(1.3398875e-3f));
    p = n_fma(p, r, n_set(9.618437e-3f));
    p = n_fma(p, r, n_set(5.5503324e-2f));
    p = n_fma(p, r, n_set(0.24022648f));
    p = n_fma(p, r, n_set(0.6931472f));
    p = n_fma(p, r, n_set(1.0f));
    y.part[i] = p * n_low_bits_pow2(shifted);
  }
  return y;
}

// log(1 + e^x) to 1.6 units in the last place; x itself above 20, where the two agree to the last bit.
LLAMBA_INLINE vec16 softplus(vec16 x) {
  const vec16 power = exp(x);
  vec16 result;
  for (int i = 0; i < kParts; ++i) {
    const native one = n_set(1.0f), y = power.part[i];
    const native u = one + y;
    // what rounding took from 1 + y; the smaller term is the one that lost
    const native lost = n_where_greater(y, one, one - (u - y), y - (u - one));
    native exponent;
    const native f = n_mantissa(u, &exponent) - one;
    // log(1 + f) = f - f^2/2 + f^3 P(f), the polynomial of Cephes' logf
    native p = n_set(7.0376836292e-2f);
    p = n_fma(p, f, n_set(-1.1514610310e-1f));
    p = n_fma(p, f, n_set(1.1676998740e-1f));
    p = n_fma(p, f, n_set(-1.2420140846e-1f));
    p = n_fma(p, f, n_set(1.4249322787e-1f));
    p = n_fma(p, f, n_set(-1.6668057665e-1f));
    p = n_fma(p, f, n_set(2.0000714765e-1f));
    p = n_fma(p, f, n_set(-2.4999993993e-1f));
    p = n_fma(p, f, n_set(3.3333331174e-1f));
    const native square = f * f;
    native small = n_fma(p * f, square, lost / u);  // ln 2 is split so that exponent * (high part) is exact
    small = n_fma(exponent, n_set(-2.12194440e-4f), small);
    small = n_fma(square, n_set(-0.5f), small);
    const native log1p = n_fma(exponent, n_set(0.693359375f), f + small);
    result.part[i] = n_where_greater(x.part[i], n_set(20.0f), x.part[i], log1p);
  }
  return result;
}

// x * sigmoid(x). Where exp(-x) ends at its clamp, the value is under 4e-37: -0, and NaN for -infinity.
LLAMBA_INLINE vec16 silu(vec16 x) {
  const vec16 power = exp(mul(broadcast(-1.0f), x));
  LLAMBA_EACH_PART(n_where_greater(x.part[i], n_set(-88.37626f), x.part[i] / (n_set(1.0f) + power.part[i]),
                                   x.part[i] * n_set(0.0f)));
}

#undef LLAMBA_EACH_PART

}  // namespace
}  // namespace LLAMBA_ISA
}  // namespace llamba
