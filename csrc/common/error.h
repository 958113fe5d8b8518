// One sentence per failure, kept per thread: `op: argument must rule; got value`.
#pragma once

#include "llamba.h"

namespace llamba {

// Records the sentence and returns `status`, so that a check reads: return fail(LLAMBA_VALUE_ERROR, "...", ...).
__attribute__((format(printf, 2, 3))) int fail(llamba_status status, const char* format, ...);

}  // namespace llamba

// First line of every function of the C interface: a caller compiled against another version of the struct is refused.
#define LLAMBA_CHECK_SIZE(op, args)                                                                            \
  if ((args)->size != sizeof(*(args))) {                                                                       \
    return llamba::fail(LLAMBA_VALUE_ERROR, "%s: size must be that of the struct, %zu; got %zu", op, sizeof(*(args)), \
                        (args)->size);                                                                         \
  }
