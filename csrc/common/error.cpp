// Linked into both libraries: each keeps the last failure of its own functions.
#include "common/error.h"

#include <cstdarg>
#include <cstdio>

namespace llamba {
namespace {
thread_local char last_error[512] = "";
thread_local int last_status = LLAMBA_OK;
}  // namespace

int fail(llamba_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof(last_error), format, arguments);
  va_end(arguments);
  last_status = status;
  return status;
}
}  // namespace llamba

extern "C" {
int llamba_abi_version(void) { return LLAMBA_ABI_VERSION; }
const char* llamba_last_error(void) { return llamba::last_error; }
int llamba_last_status(void) { return llamba::last_status; }
}
