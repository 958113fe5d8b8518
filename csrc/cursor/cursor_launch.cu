// cursor_reset, cursor_begin, cursor_commit, cursor_rollback on CUDA devices: checks that need no data, then one launch.
#include "common/cuda_check.h"
#include "cursor/cursor_check.h"
#include "cursor/cursor_kernel.cuh"

namespace llamba {
namespace {

template <typename Args>
int launch_over_batch(const char* op, void (*kernel)(Args), size_t shared_bytes, const Args& args, void* stream) {
  const int status = check_cursor(op, args.cursor);
  if (status != LLAMBA_OK) return status;
  if (args.cursor.capacity > kMaxCapacity) {
    return fail(LLAMBA_VALUE_ERROR, "%s: cursor must have at most %d physical rows per slot on CUDA; got %d", op,
                kMaxCapacity, args.cursor.capacity);
  }
  if (args.batch == 0) return LLAMBA_OK;
  CUDA_CHECK(op, launch(kernel, dim3(static_cast<unsigned>(args.batch)), dim3(kCursorThreads), shared_bytes,
                        static_cast<cudaStream_t>(stream), args));
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" {

int llamba_cursor_reset_cuda(const llamba_cursor_reset_args* args, void* stream) {
  LLAMBA_CHECK_SIZE("cursor_reset", args);
  if (args->prompt) {
    const int status = llamba::check_session("cursor_reset", args->cursor, args->session);
    if (status != LLAMBA_OK) return status;
  }
  return llamba::launch_over_batch("cursor_reset", llamba::cursor_reset_kernel, 0, *args, stream);
}

int llamba_cursor_begin_cuda(const llamba_cursor_begin_args* args, void* stream) {
  LLAMBA_CHECK_SIZE("cursor_begin", args);
  const int status = llamba::check_session("cursor_begin", args->cursor, args->session);
  if (status != LLAMBA_OK) return status;
  return llamba::launch_over_batch("cursor_begin", llamba::cursor_begin_kernel, 0, *args, stream);
}

int llamba_cursor_commit_cuda(const llamba_cursor_commit_args* args, void* stream) {
  LLAMBA_CHECK_SIZE("cursor_commit", args);
  return llamba::launch_over_batch("cursor_commit", llamba::cursor_commit_kernel, sizeof(llamba::CursorStorage), *args,
                                   stream);
}

int llamba_cursor_rollback_cuda(const llamba_cursor_rollback_args* args, void* stream) {
  LLAMBA_CHECK_SIZE("cursor_rollback", args);
  const int status = llamba::check_session("cursor_rollback", args->cursor, args->session);
  if (status != LLAMBA_OK) return status;
  return llamba::launch_over_batch("cursor_rollback", llamba::cursor_rollback_kernel, 0, *args, stream);
}

}  // extern "C"
