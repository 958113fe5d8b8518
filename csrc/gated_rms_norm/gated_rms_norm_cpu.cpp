#include "common/cpu_isa.h"
#include "common/error.h"
#include "common/parallel.h"

namespace llamba {

// Groups [begin, end), counted through all rows.
LLAMBA_DECLARE_ISA(void gated_rms_norm_groups(const llamba_gated_rms_norm_args& args, int64_t begin, int64_t end))

}  // namespace llamba

using namespace llamba;

extern "C" int llamba_gated_rms_norm_cpu(const llamba_gated_rms_norm_args* args) {
  constexpr const char* kOp = "gated_rms_norm";
  LLAMBA_CHECK_SIZE(kOp, args);
  LLAMBA_CHECK_DTYPE(kOp, args);
  LLAMBA_CHECK_LEAST(kOp, args, batch, 0);
  LLAMBA_CHECK_LEAST(kOp, args, ntokens, 0);
  LLAMBA_CHECK_LEAST(kOp, args, width, 0);
  if (args->group_size < 1 || args->width % args->group_size != 0) {
    return fail(LLAMBA_VALUE_ERROR, "%s: group_size must divide the width of x, %lld; got %lld", kOp,
                static_cast<long long>(args->width), static_cast<long long>(args->group_size));
  }
  if (!(args->eps > 0.0f)) return fail(LLAMBA_VALUE_ERROR, "%s: eps must be positive; got %g", kOp, args->eps);

  const int64_t groups = args->batch * args->ntokens * (args->width / args->group_size);
  const int64_t grain = (kElementsPerThread + args->group_size - 1) / args->group_size;
  parallel_for(0, groups, grain,
               [&](int64_t begin, int64_t end) { LLAMBA_CALL_ISA(gated_rms_norm_groups, *args, begin, end); });
  return LLAMBA_OK;
}
