#include "common/cpu_isa.h"
#include "common/parallel.h"
#include "gated_rms_norm/gated_rms_norm_check.h"

namespace llamba {

// Groups [begin, end), counted through all rows.
LLAMBA_DECLARE_ISA(void gated_rms_norm_groups(const llamba_gated_rms_norm_args& args, int64_t begin, int64_t end))

}  // namespace llamba

using namespace llamba;

extern "C" int llamba_gated_rms_norm_cpu(const llamba_gated_rms_norm_args* args) {
  const int status = check_gated_rms_norm(args);
  if (status != LLAMBA_OK) return status;

  const int64_t groups = args->batch * args->ntokens * (args->width / args->group_size);
  const int64_t grain = (kElementsPerThread + args->group_size - 1) / args->group_size;
  parallel_for(0, groups, grain,
               [&](int64_t begin, int64_t end) { LLAMBA_CALL_ISA(gated_rms_norm_groups, *args, begin, end); });
  return LLAMBA_OK;
}
