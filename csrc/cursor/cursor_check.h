// Checks of the cursor's arguments that need no data: shared by the CPU entry points and the CUDA launchers.
#pragma once

#include <cinttypes>

#include "common/error.h"
#include "llamba.h"

namespace llamba {
namespace {

inline int check_cursor(const char* op, const llamba_cursor& cursor) {
  if (cursor.width < 2 || cursor.width > 4) {
    return fail(LLAMBA_VALUE_ERROR, "%s: width must be 2 to 4; got %d", op, cursor.width);
  }
  if (cursor.capacity < cursor.width + 1) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: cursor must have at least width + 1 = %d physical rows per slot; got %d "
                "(its last dimension is %d + width - 1 + rows)",
                op, cursor.width + 1, cursor.capacity, LLAMBA_CURSOR_HEADER);
  }
  return LLAMBA_OK;
}

[[maybe_unused]] inline int check_session(const char* op, const llamba_cursor& cursor, const llamba_session& session) {
  if (session.fold_every < 1) {
    return fail(LLAMBA_VALUE_ERROR, "%s: fold_every must be at least 1; got %d", op, session.fold_every);
  }
  if (session.max_rollback < 0) {
    return fail(LLAMBA_VALUE_ERROR, "%s: max_rollback must be at least 0; got %d", op, session.max_rollback);
  }
  if (session.max_window < 1) {
    return fail(LLAMBA_VALUE_ERROR, "%s: max_window must be at least 1; got %d", op, session.max_window);
  }
  const int64_t needed =
      int64_t{cursor.width} - 1 + session.fold_every - 1 + session.max_rollback + 2 * int64_t{session.max_window};
  if (cursor.capacity < needed) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: cursor must have at least width-1 + fold_every-1 + max_rollback + 2*max_window = %" PRId64
                " physical rows per slot; got %d",
                op, needed, cursor.capacity);
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba
