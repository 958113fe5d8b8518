#include "common/parallel.h"

namespace llamba {
namespace {
int run_serially(int64_t begin, int64_t end, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
  body(begin, end, context);
  return 0;
}
}  // namespace

llamba_parallel_for parallel_for_pointer = run_serially;
}  // namespace llamba

extern "C" void llamba_set_parallel_for_cpu(llamba_parallel_for parallel_for) {
  llamba::parallel_for_pointer = parallel_for ? parallel_for : llamba::run_serially;
}
