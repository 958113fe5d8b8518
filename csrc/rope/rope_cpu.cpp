#include "common/cpu_isa.h"
#include "common/parallel.h"
#include "rope/rope_check.h"

namespace llamba {

// All heads of tokens [begin, end), counted through the batch.
LLAMBA_DECLARE_ISA(void rope_tokens(const llamba_rope_args& args, int64_t begin, int64_t end))

}  // namespace llamba

using namespace llamba;

extern "C" int llamba_rope_cpu(const llamba_rope_args* args) {
  constexpr const char* kOp = "rope";
  const int status = check_rope(args);
  if (status != LLAMBA_OK) return status;
  for (int64_t b = 0; b < args->batch; ++b) {
    for (int64_t t = 0; t < args->ntokens; ++t) {
      const int32_t position = args->positions[b * args->positions_stride_batch + t];
      if (position >= args->npositions) {
        return fail(LLAMBA_VALUE_ERROR,
                    "%s: positions must be below npositions = %" PRId64 "; got %d for token %" PRId64
                    " of sequence %" PRId64,
                    kOp, args->npositions, position, t, b);
      }
    }
  }
  parallel_for(0, args->batch * args->ntokens, kElementsPerThread / (args->nheads * args->head_dim + 1) + 1,
               [&](int64_t begin, int64_t end) { LLAMBA_CALL_ISA(rope_tokens, *args, begin, end); });
  return LLAMBA_OK;
}
