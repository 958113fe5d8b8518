// What the CPU entry point hands to the kernels of one instruction set.
#pragma once

#include "common/cpu_isa.h"
#include "llamba.h"

namespace llamba {

// One sequence of the batch with its open step. Token t of `ntotal` is live row t, or new token t - live.
struct Mamba2Sequence {
  int32_t batch_idx;
  int32_t slot;
  int32_t live, fold, ntokens, ntotal;
  bool fresh;            // the checkpoint reads as zero
  const int32_t* table;  // row ids: width-1 tail, live, free
  float* conv;           // [ntotal, conv_stride] conv outputs x, B, C, rounded to the activation dtype; scratch
  float* dt;             // [ntotal, nheads] after bias and softplus; scratch
  float* decay;          // [ntotal, nheads] exp(dt A); scratch
};

struct Mamba2Sizes {
  int32_t conv_dim;     // x_heads * headdim + (B_heads + C_heads) * dstate
  int32_t conv_stride;  // conv_dim rounded up to whole vectors
};

// Stage 1: conv outputs of channels [16 * begin, 16 * end) for all tokens; stores the new tokens' rows.
LLAMBA_DECLARE_ISA(void mamba2_conv(const llamba_mamba2_verify_args& args, const Mamba2Sizes& sizes,
                                    const Mamba2Sequence& sequence, int64_t begin, int64_t end))
// Stage 2: advance state rows [begin, end) of (head, dim) through all tokens; emits y, folds the checkpoint.
LLAMBA_DECLARE_ISA(void mamba2_scan(const llamba_mamba2_verify_args& args, const Mamba2Sizes& sizes,
                                    const Mamba2Sequence& sequence, int64_t begin, int64_t end))

}  // namespace llamba
