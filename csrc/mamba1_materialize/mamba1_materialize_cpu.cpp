// mamba1_materialize on the CPU: mamba1_verify's own kernel takes the live rows from the checkpoint to a state of their
// own.
#include <cstring>

#include "common/dtype.h"
#include "cursor/step_plan.h"
#include "mamba1_materialize/mamba1_materialize_verify.h"
#include "mamba1_verify/mamba1_check.h"
#include "mamba1_verify/mamba1_verify_cpu.h"

namespace llamba {
namespace {

constexpr const char* kOp = "mamba1_materialize";

int mamba1_materialize(const llamba_mamba1_materialize_args& args) {
  const llamba_mamba1_verify_args verify = as_verify(args);
  int status = check_mamba1_sizes(kOp, verify);
  if (status != LLAMBA_OK) return status;
  LLAMBA_CHECK_LEAST(kOp, &args, x_dim, 0);
  static thread_local StepPlan plan;
  status = plan.make(kOp, step_args(verify, args.fold_every, "x"), false);
  if (status != LLAMBA_OK) return status;
  for (StepSequence& sequence : plan.sequences()) {
    sequence.state = args.state + sequence.batch_idx * args.state_stride_batch;
    sequence.state_stride_dim = args.state_stride_channel;
  }
  mamba1_run(verify, plan);

  const int64_t size = element_size(args.dtype);
  for (int32_t i = 0; i < args.batch; ++i) {
    const int32_t slot = args.slots[i];
    for (int32_t channel = 0; slot < 0 && channel < args.d_inner; ++channel) {
      float* state = args.state + i * args.state_stride_batch + channel * args.state_stride_channel;
      std::memset(state, 0, args.dstate * sizeof(float));
    }
    write_tail(args.cursor, slot,
               static_cast<const char*>(args.rows) + (slot < 0 ? 0 : slot) * args.rows_stride_slot * size,
               args.rows_stride_row * size, args.x_dim * size,
               static_cast<char*>(args.tail) + i * args.tail_stride_batch * size, args.tail_stride_row * size);
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_mamba1_materialize_cpu(const llamba_mamba1_materialize_args* args) {
  LLAMBA_CHECK_SIZE(llamba::kOp, args);
  return llamba::guarded(llamba::kOp, [&] { return llamba::mamba1_materialize(*args); });
}
