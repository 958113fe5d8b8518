// Calls an operator behind the C interface on the device of its tensors, for *_op.cpp files.
#pragma once

#include "common/check.h"

namespace llamba {

// llamba_<op>_cuda of libllamba_cuda.so on the device's current stream; throws one sentence if it cannot.
void run_cuda(const char* op, const void* args, int32_t device);

// Adds the call to this thread's capture, if there is one (capture_op.cpp). cpu null: CUDA.
void record(const char* op, const void* args, size_t size, int (*cpu)(const void*), int32_t device);
// For operators whose struct points to memory of the call itself.
void refuse_in_capture(const char* op);
#ifdef LLAMBA_SIMT
bool simt_has(const char* op);  // a CUDA kernel that the executor of csrc/simt runs on CPU tensors
#endif

// on: any tensor of the call; the operator runs on its device.
template <typename Args>
void run(const char* op, const Tensor& on, const Args& args, int (*cpu)(const Args*)) {
  int32_t device = on.device().is_cuda() ? on.get_device_index() : -1;
#ifdef LLAMBA_SIMT
  if (simt_has(op)) device = 0;
#endif
  if (device >= 0) {
    run_cuda(op, &args, device);
    return record(op, &args, sizeof(args), nullptr, device);
  }
  const int status = cpu(&args);  // first: the sentence is read after the call that records it
  check_status(status, llamba_last_error());
  record(op, &args, sizeof(args), reinterpret_cast<int (*)(const void*)>(cpu), -1);
}

}  // namespace llamba
