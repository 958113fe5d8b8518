// The largest element of a row and where it is, in one pass; shared by the ops that read rows of logits.
// Included by *_isa.cpp files only, inside their own namespace (LLAMBA_ISA); all functions have internal linkage.
#pragma once

#include "common/vec.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

constexpr int64_t kRowBlock = 1024;  // elements: a block stays in the nearest cache

struct RowMax {
  float max;       // NaN if any element is NaN
  int64_t argmax;  // the lowest index of it; 0 if max is NaN
};

// The largest of n elements; NaN if any is NaN, which maxima alone would lose.
template <typename T>
float block_max(const T* row, int n) {
  const vec16 zero = broadcast(0.0f);
  vec16 largest = broadcast(-__builtin_inff()), nan_if_any = zero;
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const vec16 value = load(row + i);
    largest = max(largest, value);
    nan_if_any = add(nan_if_any, min(zero, value));
  }
  float candidates[2 * kLanes], nan_lanes[kLanes];
  store(candidates, largest);
  store(nan_lanes, nan_if_any);
  int count = kLanes;
  for (; i < n; ++i) candidates[count++] = to_float(row[i]);
  float result = candidates[0];
  for (int j = 0; j < count; ++j) {
    if (__builtin_isnan(candidates[j]) || __builtin_isnan(nan_lanes[j % kLanes])) return __builtin_nanf("");
    if (candidates[j] > result) result = candidates[j];
  }
  return result;
}

template <typename T>
RowMax row_max(const T* row, int64_t size) {
  RowMax result{-__builtin_inff(), 0};
  for (int64_t start = 0; start < size; start += kRowBlock) {
    const float largest = block_max(row + start, static_cast<int>(size - start < kRowBlock ? size - start : kRowBlock));
    if (__builtin_isnan(largest)) return RowMax{largest, 0};
    if (largest > result.max) {
      result.max = largest;
      result.argmax = start;  // the first block that has it
    }
  }
  while (to_float(row[result.argmax]) < result.max) ++result.argmax;
  return result;
}

}  // namespace
}  // namespace LLAMBA_ISA
}  // namespace llamba
