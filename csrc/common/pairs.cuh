// Two neighbouring elements, in one access where the address allows it; `count`: how many of them exist, if fewer.
#pragma once

#include "common/math.cuh"

namespace llamba {
namespace {

constexpr int32_t kPair = 2;

template <typename T>
struct PairBits {
  using type = unsigned;
};
template <>
struct PairBits<float> {
  using type = uint2;
};

template <typename T>
__device__ __forceinline__ bool is_whole_pair(const T* p, int32_t count) {
  return count >= kPair && reinterpret_cast<uintptr_t>(p) % (kPair * sizeof(T)) == 0;
}
template <typename T>
__device__ __forceinline__ void load_pair(const T* p, int32_t count, T (&v)[kPair]) {
  if (is_whole_pair(p, count)) {
    using Bits = typename PairBits<T>::type;
    const Bits bits = load_global(reinterpret_cast<const Bits*>(p));
    memcpy(v, &bits, sizeof(bits));
  } else {
    for (int32_t c = 0; c < kPair; ++c) v[c] = c < count ? load_global(p + c) : T{};
  }
}
template <typename T>
__device__ __forceinline__ void store_pair(T* p, int32_t count, const T (&v)[kPair]) {
  if (is_whole_pair(p, count)) {
    using Bits = typename PairBits<T>::type;
    Bits bits;
    memcpy(&bits, v, sizeof(bits));
    store_global(reinterpret_cast<Bits*>(p), bits);
  } else {
    for (int32_t c = 0; c < kPair; ++c) {
      if (c < count) store_global(p + c, v[c]);
    }
  }
}

}  // namespace
}  // namespace llamba
