// One sentence per failure, kept per thread: `op: argument must rule; got value`.
#pragma once

#include "llamba.h"

namespace llamba {

// Records the sentence and returns `status`, so that a check reads: return fail(LLAMBA_VALUE_ERROR, "...", ...).
__attribute__((format(printf, 2, 3))) int fail(llamba_status status, const char* format, ...);

}  // namespace llamba
