// Checks of slot_copy's arguments that need no data: shared by the CPU entry point and the CUDA launcher.
#pragma once

#include <cinttypes>

#include "cursor/cursor_check.h"

namespace llamba {
namespace {

inline int check_slot_copy(const llamba_slot_copy_args* args) {
  constexpr const char* kOp = "slot_copy";
  LLAMBA_CHECK_SIZE(kOp, args);
  LLAMBA_CHECK_LEAST(kOp, args, batch, 0);
  LLAMBA_CHECK_LEAST(kOp, args, nbuffers, 0);
  const int status = check_cursor(kOp, args->cursor);
  if (status != LLAMBA_OK) return status;
  if (args->buffer_size != sizeof(llamba_slot_buffer)) {
    return fail(LLAMBA_VALUE_ERROR, "%s: buffer_size must be that of the struct, %zu; got %zu", kOp,
                sizeof(llamba_slot_buffer), args->buffer_size);
  }
  for (int64_t b = 0; b < args->nbuffers; ++b) {
    const llamba_slot_buffer& buffer = args->buffers[b];
    if (buffer.ndim < 1 || buffer.ndim > LLAMBA_MAX_DIMS || buffer.element_size < 1 || buffer.token_dim == 0 ||
        buffer.token_dim >= buffer.ndim || buffer.sizes[0] < args->cursor.nslots) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: buffers must have 1 to %d dimensions, the first of nslots = %" PRId64
                  ", and a token_dim among the others; got ndim %d, element_size %d, token_dim %d in buffer %" PRId64,
                  kOp, LLAMBA_MAX_DIMS, args->cursor.nslots, buffer.ndim, buffer.element_size, buffer.token_dim, b);
    }
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba
