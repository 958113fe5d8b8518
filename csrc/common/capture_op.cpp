// Records the calls that a thread's operators make and repeats them without torch: what a CUDA graph is to a GPU. A
// decoding step is some hundreds of calls of microseconds; through Python and torch's dispatcher each costs as much again.
#include <chrono>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/run.h"

namespace llamba {
namespace {

struct Call {
  const char* op;
  std::unique_ptr<char[]> args;  // the operator's struct; what it points to must outlive the capture
  int (*cpu)(const void*);       // null: CUDA
  int32_t device;
};

using Linear = llamba_skinny_linear_args;

// Projections of one x that follow one another: together they wake the threads once. None reads what another writes:
// they read x, and no output shares memory with its x.
struct Linears {
  int64_t count = 1;
  Linear args[LLAMBA_MAX_LINEARS];
};

bool is_same_x(const Linear& a, const Linear& b) {
  return a.dtype == b.dtype && a.x == b.x && a.batch == b.batch && a.ntokens == b.ntokens &&
         a.in_features == b.in_features && a.x_stride_batch == b.x_stride_batch && a.x_stride_token == b.x_stride_token;
}

int run_linears(const void* linears) {
  const auto* const all = static_cast<const Linears*>(linears);
  return llamba_skinny_linear_many_cpu(all->args, all->count);
}

}  // namespace

struct Capture {
  std::vector<Call> calls;
};

namespace {

thread_local Capture* recording = nullptr;

void record_linear(const char* op, const Linear& args) {
  std::vector<Call>& calls = recording->calls;
  if (!calls.empty() && calls.back().cpu == run_linears) {
    Linears& group = *reinterpret_cast<Linears*>(calls.back().args.get());
    if (group.count < LLAMBA_MAX_LINEARS && is_same_x(group.args[0], args)) {
      group.args[group.count++] = args;
      return;
    }
  }
  Call call{op, std::make_unique<char[]>(sizeof(Linears)), run_linears, -1};
  new (call.args.get()) Linears{1, {args}};
  calls.push_back(std::move(call));
}

void repeat(const Call& call) {
  if (call.cpu == nullptr) return run_cuda(call.op, call.args.get(), call.device);
  const int status = call.cpu(call.args.get());
  check_status(status, llamba_last_error());
}

}  // namespace

void record(const char* op, const void* args, size_t size, int (*cpu)(const void*), int32_t device) {
  if (recording == nullptr) return;
  if (cpu == reinterpret_cast<int (*)(const void*)>(llamba_skinny_linear_cpu)) {
    return record_linear(op, *static_cast<const Linear*>(args));
  }
  Call call{op, std::make_unique<char[]>(size), cpu, device};
  std::memcpy(call.args.get(), args, size);
  recording->calls.push_back(std::move(call));
}

void refuse_in_capture(const char* op) {
  if (recording == nullptr) return;
  check_status(LLAMBA_VALUE_ERROR,
               (std::string(op) + ": a capture must hold only operators of a step; got " + op).c_str());
}

}  // namespace llamba

// Called by llamba_kernels/capture.py.
extern "C" {

// The calling thread's operators are recorded, beside being run, until llamba_capture_end.
LLAMBA_API void llamba_capture_begin(void) {
  delete llamba::recording;  // of a capture that failed
  llamba::recording = new llamba::Capture;
}

LLAMBA_API llamba::Capture* llamba_capture_end(void) {
  llamba::Capture* const capture = llamba::recording;
  llamba::recording = nullptr;
  return capture;
}

LLAMBA_API int64_t llamba_capture_size(const llamba::Capture* capture) {
  return static_cast<int64_t>(capture->calls.size());
}

LLAMBA_API const char* llamba_capture_name(const llamba::Capture* capture, int64_t i) { return capture->calls[i].op; }

// seconds: [size], to which each call's time is added, or null. Stops at the first call that fails, with its status;
// llamba_op_error has the sentence.
LLAMBA_API int llamba_capture_replay(const llamba::Capture* capture, double* seconds) {
  using Clock = std::chrono::steady_clock;
  try {
    for (const llamba::Call& call : capture->calls) {
      const Clock::time_point start = seconds ? Clock::now() : Clock::time_point{};
      llamba::repeat(call);
      if (seconds) *seconds++ += std::chrono::duration<double>(Clock::now() - start).count();
    }
  } catch (const std::runtime_error&) {
    return llamba_op_status();
  }
  return LLAMBA_OK;
}

LLAMBA_API void llamba_capture_free(llamba::Capture* capture) { delete capture; }
}
