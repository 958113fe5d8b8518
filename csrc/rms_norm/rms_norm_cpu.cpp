#include "common/cpu_isa.h"
#include "common/error.h"
#include "common/parallel.h"

namespace llamba {

// Rows [begin, end) of batch * ntokens * nheads.
LLAMBA_DECLARE_ISA(void rms_norm_rows(const llamba_rms_norm_args& args, int64_t begin, int64_t end))

}  // namespace llamba

using namespace llamba;

extern "C" int llamba_rms_norm_cpu(const llamba_rms_norm_args* args) {
  constexpr const char* kOp = "rms_norm";
  LLAMBA_CHECK_SIZE(kOp, args);
  LLAMBA_CHECK_DTYPE(kOp, args);
  LLAMBA_CHECK_LEAST(kOp, args, batch, 0);
  LLAMBA_CHECK_LEAST(kOp, args, ntokens, 0);
  LLAMBA_CHECK_LEAST(kOp, args, nheads, 0);
  LLAMBA_CHECK_LEAST(kOp, args, width, 0);
  if (!(args->eps > 0.0f)) return fail(LLAMBA_VALUE_ERROR, "%s: eps must be positive; got %g", kOp, args->eps);

  parallel_for(0, args->batch * args->ntokens * args->nheads, kElementsPerThread / (args->width + 1) + 1,
               [&](int64_t begin, int64_t end) { LLAMBA_CALL_ISA(rms_norm_rows, *args, begin, end); });
  return LLAMBA_OK;
}
