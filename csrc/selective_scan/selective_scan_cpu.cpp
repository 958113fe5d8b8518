// selective_scan on the CPU: checks, the sequences, one parallel loop over their blocks of channels.
#include "selective_scan/selective_scan_cpu.h"

#include <algorithm>

#include "common/parallel.h"
#include "selective_scan/selective_scan_check.h"

namespace llamba {
namespace {

constexpr const char* kOp = "selective_scan";

int selective_scan(const llamba_selective_scan_args& args) {
  const int status = check_selective_scan(kOp, args);
  if (status != LLAMBA_OK) return status;
  const ScanBlocks blocks = scan_blocks(args);
  const int64_t nsequences = scan_sequences(args), tokens = args.batch * args.length;
  // A block's token costs as much as some dstate vectors of an elementwise operator.
  const int64_t work = std::max<int64_t>(tokens / std::max<int64_t>(nsequences, 1), 1) * args.dstate * kScanLanes;
  const int64_t grain = std::max<int64_t>(kElementsPerThread / work, 1);
  parallel_for(0, nsequences * blocks.count, grain, [&](int64_t begin, int64_t end) {
    float* scratch = aligned_scratch(scan_scratch(args.dstate));
    while (begin < end) {
      const int64_t index = begin / blocks.count, first = begin % blocks.count;
      const int64_t last = std::min(first + end - begin, blocks.count);
      LLAMBA_CALL_ISA(selective_scan_run, args, scan_sequence(args, index), first, last, scratch);
      begin += last - first;
    }
  });
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_selective_scan_cpu(const llamba_selective_scan_args* args) {
  LLAMBA_CHECK_SIZE(llamba::kOp, args);
  return llamba::guarded(llamba::kOp, [&] { return llamba::selective_scan(*args); });
}
