// What the host side of selective_scan hands to its kernels, forward and backward.
#pragma once

#include "common/cpu_isa.h"
#include "llamba.h"

namespace llamba {

constexpr int64_t kScanChunk = LLAMBA_SCAN_CHUNK;
constexpr int64_t kScanLanes = 16;  // channels of a block: one per lane
constexpr int64_t kScanGroup = 4;   // blocks that take a chunk one after another: 64 channels, whole cache lines of x
constexpr int64_t kMaxScanState = 256;

// Tokens begin to end - 1 of a batch entry; index: of its initial and final state.
struct ScanSequence {
  int64_t batch_idx, begin, end, index;
};

// The channels in blocks of up to sixteen that share a B head and a C head.
struct ScanBlocks {
  int64_t unit;      // channels that share both heads
  int64_t per_unit;  // blocks
  int64_t count;
};

// What the backward sums piece by piece: a group is neighbouring blocks of one batch entry.
struct ScanPartials {
  int64_t groups;            // of a batch entry; depends on the sizes alone, or the threads would change bits
  int64_t group_blocks;      // most blocks of a group
  int64_t B_heads, C_heads;  // most heads of a group
  int64_t state;             // whole_vectors(dstate)
  float* channels;           // [batch, blocks, state + 2, lanes] gradients of A, then of D and dt_bias
  float *B, *C;              // [batch, groups, length, B_heads * state]; C likewise
};

namespace {  // internal linkage: every instruction set has its own copy

[[maybe_unused]] ScanBlocks scan_blocks(const llamba_selective_scan_args& args) {
  int64_t unit = args.d_inner / args.B_heads, other = args.d_inner / args.C_heads;
  while (other != 0) {  // the greatest common divisor
    const int64_t rest = unit % other;
    unit = other;
    other = rest;
  }
  const int64_t per_unit = (unit + kScanLanes - 1) / kScanLanes;
  return {unit, per_unit, args.d_inner / unit * per_unit};
}
// A block's first channel, and how many it has.
[[maybe_unused]] int64_t block_channel(const ScanBlocks& blocks, int64_t block) {
  return block / blocks.per_unit * blocks.unit + block % blocks.per_unit * kScanLanes;
}
[[maybe_unused]] int block_lanes(const ScanBlocks& blocks, int64_t block) {
  const int64_t left = blocks.unit - block % blocks.per_unit * kScanLanes;
  return static_cast<int>(left < kScanLanes ? left : kScanLanes);
}
[[maybe_unused]] int64_t B_head(const llamba_selective_scan_args& args, int64_t channel) {
  return channel / (args.d_inner / args.B_heads);
}
[[maybe_unused]] int64_t C_head(const llamba_selective_scan_args& args, int64_t channel) {
  return channel / (args.d_inner / args.C_heads);
}
[[maybe_unused]] int64_t whole_vectors(int64_t count) { return (count + kScanLanes - 1) / kScanLanes * kScanLanes; }
// The first block of a group, and a block's group.
[[maybe_unused]] int64_t group_begin(const ScanBlocks& blocks, const ScanPartials& partials, int64_t group) {
  return group * blocks.count / partials.groups;
}
[[maybe_unused]] int64_t group_of(const ScanBlocks& blocks, const ScanPartials& partials, int64_t block) {
  return ((block + 1) * partials.groups - 1) / blocks.count;
}
// Floats that selective_scan_run works in; 64-byte aligned.
[[maybe_unused]] int64_t scan_scratch(int64_t dstate) {
  return (2 * kScanGroup * dstate + 3 * kScanChunk) * kScanLanes + 2 * kScanChunk * whole_vectors(dstate);
}
// Floats that a group of selective_scan_backward_run works in; 64-byte aligned.
[[maybe_unused]] int64_t scan_backward_scratch(const ScanPartials& partials) {
  const int64_t states = (2 * partials.group_blocks + 1) * partials.state * kScanLanes;
  return states + kScanChunk * (2 * kScanLanes + 6) * kScanLanes + 2 * kScanChunk * partials.state;
}

}  // namespace

// Blocks [begin, end) of one sequence.
LLAMBA_DECLARE_ISA(void selective_scan_run(const llamba_selective_scan_args& args, const ScanSequence& sequence,
                                           int64_t begin, int64_t end, float* scratch))
// A group's part of everything, from the last token of a batch entry to the first. sequences: those of the entry.
LLAMBA_DECLARE_ISA(void selective_scan_backward_run(const llamba_selective_scan_backward_args& args,
                                                    const ScanPartials& partials, int64_t batch_idx, int64_t group,
                                                    const ScanSequence* sequences, int64_t nsequences, float* scratch))
// The groups' sums of the gradients of B and C: tokens [begin, end), counted through all batch entries.
LLAMBA_DECLARE_ISA(void selective_scan_sum_tokens(const llamba_selective_scan_backward_args& args,
                                                  const ScanPartials& partials, int64_t begin, int64_t end))
// The batch entries' sums of the gradients of A, D and dt_bias: blocks [begin, end).
LLAMBA_DECLARE_ISA(void selective_scan_sum_channels(const llamba_selective_scan_backward_args& args,
                                                    const ScanPartials& partials, int64_t begin, int64_t end))

}  // namespace llamba
