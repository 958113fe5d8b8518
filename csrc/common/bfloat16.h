// bfloat16 as 16 bits; conversion rounds to nearest even, NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

namespace llamba {
namespace {

struct bfloat16 {
  uint16_t bits;
};

[[maybe_unused]] inline float to_float(float x) { return x; }
[[maybe_unused]] inline float to_float(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof(y));
  return y;
}

[[maybe_unused]] inline void from_float(float x, float* y) { *y = x; }
[[maybe_unused]] inline void from_float(float x, bfloat16* y) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    y->bits = static_cast<uint16_t>((bits >> 16) | 0x0040u);
  } else {
    y->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

}  // namespace
}  // namespace llamba
