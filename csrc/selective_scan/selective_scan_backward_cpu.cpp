// selective_scan's backward on the CPU: checks, the sums' memory, a loop over groups and one over each kind of sum.
#include <algorithm>
#include <memory>
#include <vector>

#include "common/parallel.h"
#include "selective_scan/selective_scan_check.h"

namespace llamba {
namespace {

constexpr const char* kOp = "selective_scan_backward";
constexpr int64_t kItems = 64;  // groups of all batch entries where there are so many blocks: work for as many threads

// The most heads that the channels of one group have.
int64_t most_heads(const ScanBlocks& blocks, const ScanPartials& partials, int64_t channels) {
  int64_t most = 0;
  for (int64_t group = 0; group < partials.groups; ++group) {
    const int64_t first = block_channel(blocks, group_begin(blocks, partials, group)) / channels;
    const int64_t last = block_channel(blocks, group_begin(blocks, partials, group + 1) - 1) / channels;
    most = std::max(most, last - first + 1);
  }
  return most;
}

int selective_scan_backward(const llamba_selective_scan_backward_args& args) {
  const llamba_selective_scan_args& scan = args.scan;
  int status = check_selective_scan(kOp, scan);
  if (status == LLAMBA_OK && args.grad_states && scan.state_every < 1) {
    status = fail(LLAMBA_VALUE_ERROR, "%s: state_every must be at least 1; got %" PRId64, kOp, scan.state_every);
  }
  if (status == LLAMBA_OK && scan.length > kScanChunk && !scan.chunk_states) {
    status =
        fail(LLAMBA_VALUE_ERROR, "%s: chunk_states must be given beyond %" PRId64 " tokens; got none", kOp, kScanChunk);
  }
  if (status != LLAMBA_OK) return status;
  const ScanBlocks blocks = scan_blocks(scan);
  ScanPartials partials{};
  partials.groups = std::min(blocks.count, std::max<int64_t>(kItems / std::max<int64_t>(scan.batch, 1), 1));
  partials.group_blocks = (blocks.count + partials.groups - 1) / partials.groups;
  partials.state = whole_vectors(scan.dstate);
  partials.B_heads = most_heads(blocks, partials, scan.d_inner / scan.B_heads);
  partials.C_heads = most_heads(blocks, partials, scan.d_inner / scan.C_heads);
  const int64_t channel_floats = scan.batch * blocks.count * (partials.state + 2) * kScanLanes;
  const int64_t head_floats = scan.batch * partials.groups * scan.length * partials.state;
  const int64_t floats = channel_floats + head_floats * (partials.B_heads + partials.C_heads);
  const std::unique_ptr<float[]> storage(new float[floats + kScanLanes]);
  partials.channels = aligned(storage.get());
  partials.B = partials.channels + channel_floats;
  partials.C = partials.B + head_floats * partials.B_heads;

  std::vector<ScanSequence> sequences;
  for (int64_t index = 0; index < scan_sequences(scan); ++index) sequences.push_back(scan_sequence(scan, index));
  const int64_t entry_sequences = scan.cu_seqlens ? static_cast<int64_t>(sequences.size()) : 1;
  parallel_for(0, scan.batch * partials.groups, 1, [&](int64_t begin, int64_t end) {
    float* scratch = aligned_scratch(scan_backward_scratch(partials));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t batch_idx = item / partials.groups;
      LLAMBA_CALL_ISA(selective_scan_backward_run, args, partials, batch_idx, item % partials.groups,
                      sequences.data() + batch_idx, entry_sequences, scratch);
    }
  });
  const int64_t row_floats = partials.groups * partials.state * (partials.B_heads + partials.C_heads);
  parallel_for(0, scan.batch * scan.length, kElementsPerThread / row_floats + 1, [&](int64_t begin, int64_t end) {
    LLAMBA_CALL_ISA(selective_scan_sum_tokens, args, partials, begin, end);
  });
  LLAMBA_CALL_ISA(selective_scan_sum_channels, args, partials, 0, blocks.count);
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_selective_scan_backward_cpu(const llamba_selective_scan_backward_args* args) {
  LLAMBA_CHECK_SIZE(llamba::kOp, args);
  return llamba::guarded(llamba::kOp, [&] { return llamba::selective_scan_backward(*args); });
}
