// materialize on the CPU: mamba2_verify's own kernel takes the live rows from the checkpoint to a state of their own.
#include "common/dtype.h"
#include "cursor/step_plan.h"
#include "mamba2_verify/mamba2_check.h"
#include "mamba2_verify/mamba2_verify_cpu.h"
#include "materialize/materialize_verify.h"

namespace llamba {
namespace {

constexpr const char* kOp = "materialize";

void write_zero_state(const llamba_materialize_args& args, int32_t i) {
  for (int32_t head = 0; head < args.nheads; ++head) {
    for (int32_t dim = 0; dim < args.headdim; ++dim) {
      float* state =
          args.state + i * args.state_stride_batch + head * args.state_stride_head + dim * args.state_stride_dim;
      for (int32_t n = 0; n < args.dstate; ++n) state[n] = 0.0f;
    }
  }
}

int materialize(const llamba_materialize_args& args) {
  const llamba_mamba2_verify_args verify = as_verify(args);
  int status = check_mamba2_sizes(kOp, verify);
  if (status != LLAMBA_OK) return status;
  static thread_local StepPlan plan;
  status = plan.make(kOp, step_args(verify, args.fold_every, "xBC"), false);
  if (status != LLAMBA_OK) return status;
  for (StepSequence& sequence : plan.sequences()) {
    sequence.state = args.state + sequence.batch_idx * args.state_stride_batch;
    sequence.state_stride_head = args.state_stride_head;
    sequence.state_stride_dim = args.state_stride_dim;
  }
  mamba2_run(verify, plan);

  const int64_t size = element_size(args.dtype),
                conv_dim = args.x_heads * args.headdim + (args.B_heads + args.C_heads) * args.dstate;
  for (int32_t i = 0; i < args.batch; ++i) {
    const int32_t slot = args.slots[i];
    if (slot < 0) write_zero_state(args, i);
    write_tail(args.cursor, slot,
               static_cast<const char*>(args.rows) + (slot < 0 ? 0 : slot) * args.rows_stride_slot * size,
               args.rows_stride_row * size, conv_dim * size,
               static_cast<char*>(args.tail) + i * args.tail_stride_batch * size, args.tail_stride_row * size);
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_materialize_cpu(const llamba_materialize_args* args) {
  LLAMBA_CHECK_SIZE(llamba::kOp, args);
  return llamba::guarded(llamba::kOp, [&] { return llamba::materialize(*args); });
}
