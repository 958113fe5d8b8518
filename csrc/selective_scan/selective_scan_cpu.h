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

  int64_t channel(int64_t block) const { return block / per_unit * unit + block % per_unit * kScanLanes; }
  int lanes(int64_t block) const {
    const int64_t left = unit - block % per_unit * kScanLanes;
    return static_cast<int>(left < kScanLanes ? left : kScanLanes);
  }
};

inline ScanBlocks scan_blocks(const llamba_selective_scan_args& args) {
  int64_t unit = args.d_inner / args.B_heads, other = args.d_inner / args.C_heads;
  while (other != 0) {  // the greatest common divisor
    const int64_t rest = unit % other;
    unit = other;
    other = rest;
  }
  const int64_t per_unit = (unit + kScanLanes - 1) / kScanLanes;
  return {unit, per_unit, args.d_inner / unit * per_unit};
}

// Floats that selective_scan_run works in; 64-byte aligned.
inline int64_t scan_scratch(int64_t dstate) {
  return (2 * kScanGroup * dstate + 3 * kScanChunk) * kScanLanes + 2 * kScanChunk * dstate;
}

// Blocks [begin, end) of one sequence.
LLAMBA_DECLARE_ISA(void selective_scan_run(const llamba_selective_scan_args& args, const ScanSequence& sequence,
                                           int64_t begin, int64_t end, float* scratch))

}  // namespace llamba
