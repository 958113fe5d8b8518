// cursor_reset, cursor_begin, cursor_commit, cursor_rollback on the CPU: everything is checked for the whole batch before anything is
// written, so that a refused call changes nothing.
#include <cstdio>
#include <vector>

#include "cursor/cursor_check.h"
#include "cursor/cursor_edit.h"
#include "cursor/cursor_slots.h"

namespace llamba {
namespace {

int32_t* slot_header(const llamba_cursor& cursor, int32_t slot) { return cursor.data + slot * cursor.slot_stride; }

int check_batch(const char* op, const llamba_cursor& cursor, const int32_t* slots, int64_t batch) {
  const int status = check_cursor(op, cursor);
  return status == LLAMBA_OK ? check_slots(op, slots, batch, cursor.nslots) : status;
}

// "2 5 1", at most eight of them: what a sentence shows of a path.
struct ListText {
  char text[128] = "";
  ListText(const int32_t* values, int32_t count) {
    size_t used = 0;
    for (int32_t i = 0; i < count && i < 8; ++i) {
      used += std::snprintf(text + used, sizeof(text) - used, i > 0 ? " %d" : "%d", values[i]);
    }
    if (count > 8) std::snprintf(text + used, sizeof(text) - used, " ...");
  }
};

int cursor_reset(const llamba_cursor_reset_args& args) {
  int status = check_batch("cursor_reset", args.cursor, args.slots, args.batch);
  if (status == LLAMBA_OK && args.prompt) status = check_session("cursor_reset", args.cursor, args.session);
  if (status != LLAMBA_OK) return status;
  for (int64_t i = 0; i < args.batch && args.prompt; ++i) {
    if (args.slots[i] >= 0 && args.prompt[i] < 0) {
      return fail(LLAMBA_VALUE_ERROR, "cursor_reset: prompt must be at least 0 tokens; got %d for slot %d",
                  args.prompt[i], args.slots[i]);
    }
  }
  for (int64_t i = 0; i < args.batch; ++i) {
    if (args.slots[i] < 0) continue;
    const int32_t position = args.prompt ? args.prompt[i] : 0;
    const int32_t checkpoint = args.prompt ? checkpoint_target(position, args.session) : 0;
    int32_t* header = slot_header(args.cursor, args.slots[i]);
    header[kPosition] = position;
    header[kLive] = position - checkpoint;
    header[kFold] = 0;
    header[kNtokens] = kNoStep;
    for (int32_t entry = 0; entry < table_size(args.cursor); ++entry) {
      header[LLAMBA_CURSOR_HEADER + entry] = entry_after_reset(entry, checkpoint, args.cursor);
    }
  }
  return LLAMBA_OK;
}

int cursor_begin(const llamba_cursor_begin_args& args) {
  int status = check_batch("cursor_begin", args.cursor, args.slots, args.batch);
  if (status == LLAMBA_OK) status = check_session("cursor_begin", args.cursor, args.session);
  if (status != LLAMBA_OK) return status;
  for (int64_t i = 0; i < args.batch; ++i) {
    const int32_t slot = args.slots[i];
    if (slot < 0) continue;
    const int32_t* header = slot_header(args.cursor, slot);
    status = check_slot("cursor_begin", args.cursor, slot);
    if (status != LLAMBA_OK) return status;
    if (header[kNtokens] != kNoStep) {
      return fail(LLAMBA_VALUE_ERROR,
                  "cursor_begin: slot %d must have no open step (commit it, or reset the slot if the step failed); "
                  "got an open step of %d tokens",
                  slot, header[kNtokens]);
    }
    if (args.ntokens[i] < 1 || args.ntokens[i] > args.session.max_window) {
      return fail(LLAMBA_VALUE_ERROR, "cursor_begin: ntokens must be 1 to max_window = %d; got %d for slot %d",
                  args.session.max_window, args.ntokens[i], slot);
    }
    // live rows beyond this bound belong to a session with other constants: the step would run out of rows
    const int32_t most_live = args.session.fold_every - 1 + args.session.max_rollback + args.session.max_window;
    if (header[kLive] > most_live) {
      return fail(LLAMBA_VALUE_ERROR,
                  "cursor_begin: slot %d must have at most fold_every-1 + max_rollback + max_window = %d live rows; "
                  "got %d",
                  slot, most_live, header[kLive]);
    }
    if (header[kPosition] > kMostTokens - args.ntokens[i]) {
      return fail(LLAMBA_VALUE_ERROR, "cursor_begin: slot %d must stay below 2^31 tokens; got %d + %d", slot,
                  header[kPosition], args.ntokens[i]);
    }
  }
  for (int64_t i = 0; i < args.batch; ++i) {
    if (args.slots[i] < 0) continue;
    int32_t* header = slot_header(args.cursor, args.slots[i]);
    header[kFold] = fold_at_begin(header[kPosition], header[kLive], args.session);
    header[kNtokens] = args.ntokens[i];
  }
  return LLAMBA_OK;
}

int cursor_commit(const llamba_cursor_commit_args& args) {
  int status = check_batch("cursor_commit", args.cursor, args.slots, args.batch);
  if (status != LLAMBA_OK) return status;
  for (int64_t i = 0; i < args.batch; ++i) {
    const int32_t slot = args.slots[i];
    if (slot < 0) continue;
    status = check_slot("cursor_commit", args.cursor, slot);
    if (status != LLAMBA_OK) return status;
    const int32_t ntokens = slot_header(args.cursor, slot)[kNtokens];
    if (ntokens <= kNoStep) {
      return fail(LLAMBA_VALUE_ERROR, "cursor_commit: slot %d must have an open step; got none (begin opens it)", slot);
    }
    if (args.accepted[i] < 0 || args.accepted[i] > ntokens) {
      return fail(LLAMBA_VALUE_ERROR, "cursor_commit: accepted must be 0 to ntokens = %d; got %d for slot %d", ntokens,
                  args.accepted[i], slot);
    }
    if (args.path == nullptr) continue;
    if (args.accepted[i] > args.path_length) {
      return fail(LLAMBA_VALUE_ERROR, "cursor_commit: path must hold the %d accepted tokens of slot %d; got %" PRId64,
                  args.accepted[i], slot, args.path_length);
    }
    const int32_t* path = args.path + i * args.path_stride_batch;
    if (!path_is_valid(path, args.accepted[i], ntokens)) {
      return fail(LLAMBA_VALUE_ERROR,
                  "cursor_commit: path must hold %d ascending tokens from 0 to %d for slot %d; got %s",
                  args.accepted[i], ntokens - 1, slot, ListText(path, args.accepted[i]).text);
    }
  }
  static thread_local std::vector<int32_t> old_table;  // kept between calls: a step allocates nothing
  for (int64_t i = 0; i < args.batch; ++i) {
    if (args.slots[i] < 0) continue;
    int32_t* header = slot_header(args.cursor, args.slots[i]);
    int32_t* table = header + LLAMBA_CURSOR_HEADER;
    old_table.assign(table, table + table_size(args.cursor));
    const int32_t* path = args.path ? args.path + i * args.path_stride_batch : nullptr;
    const CommitPlan plan = plan_commit(header, old_table.data(), args.accepted[i], path, args.cursor);
    for (int32_t entry = 0; entry < table_size(args.cursor); ++entry) {
      table[entry] = entry_after_commit(entry, old_table.data(), plan);
    }
    header[kPosition] += args.accepted[i];
    header[kLive] += args.accepted[i] - header[kFold];
    header[kFold] = 0;
    header[kNtokens] = kNoStep;
  }
  return LLAMBA_OK;
}

// The rows of the tokens that are taken back stand right before the free rows: they become the first of these.
int cursor_rollback(const llamba_cursor_rollback_args& args) {
  int status = check_batch("cursor_rollback", args.cursor, args.slots, args.batch);
  if (status == LLAMBA_OK) status = check_session("cursor_rollback", args.cursor, args.session);
  if (status != LLAMBA_OK) return status;
  for (int64_t i = 0; i < args.batch; ++i) {
    const int32_t slot = args.slots[i];
    if (slot < 0) continue;
    status = check_slot("cursor_rollback", args.cursor, slot);
    if (status != LLAMBA_OK) return status;
    const int32_t* header = slot_header(args.cursor, slot);
    if (header[kNtokens] != kNoStep) {
      return fail(LLAMBA_VALUE_ERROR,
                  "cursor_rollback: slot %d must have no open step (commit it first); got an open step of %d tokens",
                  slot, header[kNtokens]);
    }
    const int32_t most = most_rollback(header, args.session);
    if (args.n[i] < 0 || args.n[i] > most) {
      return fail(LLAMBA_VALUE_ERROR,
                  "cursor_rollback: n must be 0 to min(max_rollback, live rows) = min(%d, %d); got %d for slot %d",
                  args.session.max_rollback, header[kLive], args.n[i], slot);
    }
  }
  for (int64_t i = 0; i < args.batch; ++i) {
    if (args.slots[i] < 0) continue;
    int32_t* header = slot_header(args.cursor, args.slots[i]);
    header[kPosition] -= args.n[i];
    header[kLive] -= args.n[i];
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" {

int llamba_cursor_rollback_cpu(const llamba_cursor_rollback_args* args) {
  LLAMBA_CHECK_SIZE("cursor_rollback", args);
  return llamba::guarded("cursor_rollback", [&] { return llamba::cursor_rollback(*args); });
}

int llamba_cursor_reset_cpu(const llamba_cursor_reset_args* args) {
  LLAMBA_CHECK_SIZE("cursor_reset", args);
  return llamba::guarded("cursor_reset", [&] { return llamba::cursor_reset(*args); });
}

int llamba_cursor_begin_cpu(const llamba_cursor_begin_args* args) {
  LLAMBA_CHECK_SIZE("cursor_begin", args);
  return llamba::guarded("cursor_begin", [&] { return llamba::cursor_begin(*args); });
}

int llamba_cursor_commit_cpu(const llamba_cursor_commit_args* args) {
  LLAMBA_CHECK_SIZE("cursor_commit", args);
  return llamba::guarded("cursor_commit", [&] { return llamba::cursor_commit(*args); });
}

}  // extern "C"
