// The checks of a batch's slots on the CPU, shared by every op that is given slots: in range, none twice, and each
// described by a cursor that the cursor ops have written.
#pragma once

#include <cinttypes>
#include <vector>

#include "common/error.h"
#include "cursor/cursor_edit.h"
#include "llamba.h"

namespace llamba {

inline int check_slots(const char* op, const int32_t* slots, int64_t batch, int64_t nslots,
                       const char* name = "slots") {
  if (nslots < 0) return fail(LLAMBA_VALUE_ERROR, "%s: nslots must be at least 0; got %" PRId64, op, nslots);
  static thread_local std::vector<char> seen;  // kept between calls: a step allocates nothing
  seen.assign(nslots, 0);
  for (int64_t i = 0; i < batch; ++i) {
    const int32_t slot = slots[i];
    if (slot < 0) continue;
    if (slot >= nslots) {
      return fail(LLAMBA_VALUE_ERROR, "%s: %s must be below nslots = %" PRId64 "; got %d at index %" PRId64, op, name,
                  nslots, slot, i);
    }
    if (seen[slot]) {
      return fail(LLAMBA_VALUE_ERROR, "%s: %s must name a slot at most once; got %d twice", op, name, slot);
    }
    seen[slot] = 1;
  }
  return LLAMBA_OK;
}

// A header within bounds, every physical row in the table exactly once, and the open step's rows among them: so a table
// that was never reset, or that is read with another width than it was made for, is refused before a row id is used.
inline int check_slot(const char* op, const llamba_cursor& cursor, int32_t slot) {
  const int32_t* header = cursor.data + slot * cursor.slot_stride;
  const int32_t* table = header + LLAMBA_CURSOR_HEADER;
  bool valid = header_is_valid(header, cursor);
  if (valid) {
    static thread_local std::vector<char> seen;
    seen.assign(cursor.capacity, 0);
    int32_t zero_rows = 0;
    while (zero_rows < cursor.width - 1 && table[zero_rows] == -1) ++zero_rows;
    const int32_t used = zero_rows + cursor.capacity, step = header[kNtokens] > kNoStep ? header[kNtokens] : 0;
    valid = cursor.width - 1 + header[kLive] + step <= used && header[kPosition] <= kMostTokens - step;
    for (int32_t i = zero_rows; valid && i < used; ++i) {
      valid = table[i] >= 0 && table[i] < cursor.capacity && !seen[table[i]];
      if (valid) seen[table[i]] = 1;
    }
    for (int32_t i = used; valid && i < table_size(cursor); ++i) valid = table[i] == -1;
  }
  if (valid) return LLAMBA_OK;
  return fail(LLAMBA_VALUE_ERROR,
              "%s: cursor must describe slot %d as the cursor ops write it for width %d and %d rows; got position %d, "
              "live %d, fold %d, ntokens %d and a row table that does not fit",
              op, slot, cursor.width, cursor.capacity, header[kPosition], header[kLive], header[kFold],
              header[kNtokens]);
}

inline int check_open_step(const char* op, const int32_t* header, int32_t slot) {
  if (header[kNtokens] > kNoStep) return LLAMBA_OK;
  return fail(LLAMBA_VALUE_ERROR, "%s: slot %d must have an open step; got none (cursor_begin opens it)", op, slot);
}

// parents: [ntokens] of a step's tokens, or nullptr: a chain.
inline int check_parents(const char* op, const int32_t* parents, int32_t ntokens, int32_t slot) {
  for (int32_t token = 0; parents && token < ntokens; ++token) {
    if (parents[token] < -1 || parents[token] >= token) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: parents must be -1 or an earlier token of the step; got %d for token %d of slot %d", op,
                  parents[token], token, slot);
    }
  }
  return LLAMBA_OK;
}

}  // namespace llamba
