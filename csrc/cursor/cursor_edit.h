// The arithmetic of the cursor, shared by the CPU and the CUDA code: every new table entry is a pure function of the
// old slot, so that a GPU block can compute them all at once. The slot's layout is described in llamba.h.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "llamba.h"

namespace llamba {
namespace {

enum CursorField { kPosition = 0, kLive = 1, kFold = 2, kNtokens = 3 };
constexpr int32_t kNoStep = 0;  // ntokens of a slot between steps
constexpr int32_t kMostTokens = 0x7fffffff;
constexpr int32_t kBrokenStep = -1;  // ntokens of a slot that a bad device-side argument broke

[[maybe_unused]] LLAMBA_HOST_DEVICE int32_t table_size(const llamba_cursor& cursor) {
  return cursor.width - 1 + cursor.capacity;
}

// Whether the header's numbers fit the table: everything below adds them. Rows follow in check_slot (CPU only).
[[maybe_unused]] LLAMBA_HOST_DEVICE bool header_is_valid(const int32_t* header, const llamba_cursor& cursor) {
  const int64_t step = header[kNtokens] > kNoStep ? header[kNtokens] : 0;
  return header[kLive] >= 0 && header[kPosition] >= header[kLive] && header[kFold] >= 0 &&
         header[kFold] <= header[kLive] && cursor.width - 1 + int64_t{header[kLive]} + step <= table_size(cursor);
}

// The furthest token the checkpoint may stand at when `position` tokens are committed: a multiple of fold_every that
// leaves max_rollback tokens unfolded.
[[maybe_unused]] LLAMBA_HOST_DEVICE int32_t checkpoint_target(int32_t position, const llamba_session& session) {
  const int32_t foldable = position - session.max_rollback;
  return foldable > 0 ? foldable / session.fold_every * session.fold_every : 0;
}

[[maybe_unused]] LLAMBA_HOST_DEVICE int32_t fold_at_begin(int32_t position, int32_t live,
                                                          const llamba_session& session) {
  const int32_t fold = checkpoint_target(position, session) - (position - live);
  return fold > 0 ? fold : 0;
}

[[maybe_unused]] LLAMBA_HOST_DEVICE int32_t most_rollback(const int32_t* header, const llamba_session& session) {
  return header[kLive] < session.max_rollback ? header[kLive] : session.max_rollback;
}

// Entry i of a slot whose checkpoint stands at token `checkpoint`: min(width-1, checkpoint) tail rows, then the live
// rows, then the free rows, all numbered upwards from 0.
[[maybe_unused]] LLAMBA_HOST_DEVICE int32_t entry_after_reset(int32_t i, int32_t checkpoint,
                                                              const llamba_cursor& cursor) {
  const int32_t tail = checkpoint < cursor.width - 1 ? checkpoint : cursor.width - 1;
  const int32_t row = i - (cursor.width - 1) + tail;
  return row >= 0 && row < cursor.capacity ? row : -1;
}

// Whether path names `accepted` tokens of a step of ntokens, ascending.
[[maybe_unused]] LLAMBA_HOST_DEVICE bool path_is_valid(const int32_t* path, int32_t accepted, int32_t ntokens) {
  for (int32_t i = 0; i < accepted; ++i) {
    if (path[i] <= (i > 0 ? path[i - 1] : -1) || path[i] >= ntokens) return false;
  }
  return true;
}

// What a commit does to the row table: the list tail + live rows moves left by `fold`, the accepted rows join it, and
// everything else becomes free, in this order: unused free rows, rejected rows, rows dropped from the front.
struct CommitPlan {
  int32_t fold;         // entries that leave the front
  int32_t committed;    // end of tail and live rows in the old table: where the step's rows start
  int32_t accepted;     // tokens that stay
  int32_t ntokens;      // tokens of the step
  int32_t used;         // end of the old table's meaningful entries
  int32_t zero_rows;    // leading -1 entries among those that leave the front
  const int32_t* path;  // [accepted] the tokens that stay, ascending, or nullptr: the first ones
};

[[maybe_unused]] LLAMBA_HOST_DEVICE CommitPlan plan_commit(const int32_t* header, const int32_t* table,
                                                           int32_t accepted, const int32_t* path,
                                                           const llamba_cursor& cursor) {
  int32_t zero_rows = 0;
  while (zero_rows < cursor.width - 1 && table[zero_rows] < 0) ++zero_rows;
  CommitPlan plan;
  plan.fold = header[kFold];
  plan.committed = cursor.width - 1 + header[kLive];
  plan.accepted = accepted;
  plan.ntokens = header[kNtokens];
  plan.path = path;
  plan.used = cursor.capacity + zero_rows;
  plan.zero_rows = zero_rows < plan.fold ? zero_rows : plan.fold;
  return plan;
}

[[maybe_unused]] LLAMBA_HOST_DEVICE int32_t entry_after_commit(int32_t i, const int32_t* table,
                                                               const CommitPlan& plan) {
  const int32_t kept = plan.committed - plan.fold;  // of the old tail and live rows
  if (i < kept) return table[plan.fold + i];
  i -= kept;
  if (i < plan.accepted) return table[plan.committed + (plan.path ? plan.path[i] : i)];
  i -= plan.accepted;
  const int32_t proposed = plan.committed + plan.ntokens, unused = plan.used - proposed;
  if (i < unused) return table[proposed + i];
  i -= unused;
  if (i < plan.ntokens - plan.accepted) {  // token i of those that do not stay
    if (plan.path == nullptr) return table[plan.committed + plan.accepted + i];
    for (int32_t j = 0; j < plan.accepted && plan.path[j] <= i; ++j) ++i;
    return table[plan.committed + i];
  }
  i -= plan.ntokens - plan.accepted;
  const int32_t dropped = plan.fold - plan.zero_rows;
  return i < dropped ? table[plan.zero_rows + i] : -1;
}

}  // namespace
}  // namespace llamba
