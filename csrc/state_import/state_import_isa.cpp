// state_import -- a state's rows of one head in the checkpoint's dtype, rounded to nearest even.
#include "common/vec.h"
#include "llamba.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

template <typename S>
void import_head(const llamba_state_import_args& args, int32_t i, int32_t head) {
  for (int32_t dim = 0; dim < args.headdim; ++dim) {
    const float* from =
        args.state + i * args.state_stride_batch + head * args.state_stride_head + dim * args.state_stride_dim;
    S* to = static_cast<S*>(args.checkpoint) + args.slots[i] * args.checkpoint_stride_slot +
            head * args.checkpoint_stride_head + dim * args.checkpoint_stride_dim;
    for (int32_t n = 0; n < args.dstate; n += kLanes) {
      const int lanes = lanes_left(args.dstate - n);
      store_first(to + n, load_first(from + n, lanes), lanes);
    }
  }
}

}  // namespace

void state_import_head(const llamba_state_import_args& args, int32_t i, int32_t head) {
  LLAMBA_SWITCH_DTYPE(args.checkpoint_dtype, S, import_head<S>(args, i, head));
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
