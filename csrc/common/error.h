// One sentence per failure, kept per thread: `op: argument must rule; got value`.
#pragma once

#include <cinttypes>
#include <new>

#include "llamba.h"

namespace llamba {

// Records the sentence and returns `status`, so that a check reads: return fail(LLAMBA_VALUE_ERROR, "...", ...).
__attribute__((format(printf, 2, 3))) int fail(llamba_status status, const char* format, ...);

// body() of a C function, which must not throw: what its vectors throw becomes a sentence.
template <typename Body>
int guarded(const char* op, const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return fail(LLAMBA_MEMORY_ERROR, "%s: memory must suffice for the scratch; got none", op);
  }
}

}  // namespace llamba

// First lines of every function of the C interface: a caller compiled against another version of the struct is refused,
// and so is a dtype that is none.
#define LLAMBA_CHECK_SIZE(op, args)                                                                                   \
  if ((args)->size != sizeof(*(args))) {                                                                              \
    return llamba::fail(LLAMBA_VALUE_ERROR, "%s: size must be that of the struct, %zu; got %zu", op, sizeof(*(args)), \
                        (args)->size);                                                                                \
  }
#define LLAMBA_CHECK_DTYPE(op, args)                                                                          \
  if ((args)->dtype < LLAMBA_FLOAT32 || (args)->dtype > LLAMBA_FLOAT16) {                                     \
    return llamba::fail(LLAMBA_TYPE_ERROR, "%s: dtype must be float32, bfloat16 or float16; got code %d", op, \
                        static_cast<int>((args)->dtype));                                                     \
  }
// LLAMBA_CHECK_RANGE(kOp, args, vocab, 1, INT32_MAX): both ends included. LLAMBA_CHECK_LEAST(kOp, args, batch, 0).
#define LLAMBA_CHECK_RANGE(op, args, field, least, most)                                                           \
  if ((args)->field < (least) || (args)->field > (most)) {                                                         \
    return llamba::fail(LLAMBA_VALUE_ERROR, "%s: " #field " must be %" PRId64 " to %" PRId64 "; got %" PRId64, op, \
                        int64_t{least}, int64_t{most}, int64_t{(args)->field});                                    \
  }
#define LLAMBA_CHECK_LEAST(op, args, field, least)                                                           \
  if ((args)->field < (least)) {                                                                             \
    return llamba::fail(LLAMBA_VALUE_ERROR, "%s: " #field " must be at least %" PRId64 "; got %" PRId64, op, \
                        int64_t{least}, int64_t{(args)->field});                                             \
  }
