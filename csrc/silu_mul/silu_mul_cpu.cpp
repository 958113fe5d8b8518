#include "common/cpu_isa.h"
#include "common/parallel.h"
#include "silu_mul/silu_mul_check.h"

namespace llamba {

// Rows [begin, end) of batch * ntokens.
LLAMBA_DECLARE_ISA(void silu_mul_rows(const llamba_silu_mul_args& args, int64_t begin, int64_t end))

}  // namespace llamba

using namespace llamba;

extern "C" int llamba_silu_mul_cpu(const llamba_silu_mul_args* args) {
  const int status = check_silu_mul(args);
  if (status != LLAMBA_OK) return status;
  parallel_for(0, args->batch * args->ntokens, kElementsPerThread / (args->width + 1) + 1,
               [&](int64_t begin, int64_t end) { LLAMBA_CALL_ISA(silu_mul_rows, *args, begin, end); });
  return LLAMBA_OK;
}
