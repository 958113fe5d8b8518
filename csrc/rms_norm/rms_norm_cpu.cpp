#include "common/cpu_isa.h"
#include "common/parallel.h"
#include "rms_norm/rms_norm_check.h"

namespace llamba {

// Rows [begin, end) of batch * ntokens * nheads.
LLAMBA_DECLARE_ISA(void rms_norm_rows(const llamba_rms_norm_args& args, int64_t begin, int64_t end))

}  // namespace llamba

using namespace llamba;

extern "C" int llamba_rms_norm_cpu(const llamba_rms_norm_args* args) {
  const int status = check_rms_norm(args);
  if (status != LLAMBA_OK) return status;

  parallel_for(0, args->batch * args->ntokens * args->nheads, kElementsPerThread / (args->width + 1) + 1,
               [&](int64_t begin, int64_t end) { LLAMBA_CALL_ISA(rms_norm_rows, *args, begin, end); });
  return LLAMBA_OK;
}
