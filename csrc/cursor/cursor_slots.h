// The check of a batch's slots on the CPU, shared by every op that is given slots: in range, and none twice.
#pragma once

#include <cinttypes>
#include <vector>

#include "common/error.h"
#include "llamba.h"

namespace llamba {

inline int check_slots(const char* op, const int32_t* slots, int64_t batch, int64_t nslots) {
  static thread_local std::vector<char> seen;  // kept between calls: a step allocates nothing
  seen.assign(nslots, 0);
  for (int64_t i = 0; i < batch; ++i) {
    const int32_t slot = slots[i];
    if (slot < 0) continue;
    if (slot >= nslots) {
      return fail(LLAMBA_VALUE_ERROR, "%s: slots must be below nslots = %" PRId64 "; got %d at index %" PRId64, op,
                  nslots, slot, i);
    }
    if (seen[slot]) {
      return fail(LLAMBA_VALUE_ERROR, "%s: slots must name a slot at most once; got %d twice", op, slot);
    }
    seen[slot] = 1;
  }
  return LLAMBA_OK;
}

}  // namespace llamba
