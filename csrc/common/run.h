// Calls an operator behind the C interface on the device of its tensors, for *_op.cpp files.
#pragma once

#include "common/check.h"

namespace llamba {

// llamba_<op>_cuda of libllamba_cuda.so on the device's current stream; throws one sentence if it cannot.
void run_cuda(const char* op, const void* args, int32_t device);
#ifdef LLAMBA_SIMT
bool simt_has(const char* op);  // a CUDA kernel that the executor of csrc/simt runs on CPU tensors
#endif

// on: any tensor of the call; the operator runs on its device.
template <typename Args>
void run(const char* op, const Tensor& on, const Args& args, int (*cpu)(const Args*)) {
  if (on.device().is_cuda()) return run_cuda(op, &args, on.get_device_index());
#ifdef LLAMBA_SIMT
  if (simt_has(op)) return run_cuda(op, &args, 0);
#endif
  const int status = cpu(&args);  // first: the sentence is read after the call that records it
  check_status(status, llamba_last_error());
}

}  // namespace llamba
