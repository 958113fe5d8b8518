// What mamba2_verify and materialize share on the CPU: the plan of a step's tokens, and
// the parallel loop.
#pragma once

#include <vector>

#include "mamba2_verify/mamba2_verify_cpu.h"

namespace llamba {

// The tokens of a batch of sequences, in one buffer that is kept between calls.
class Mamba2Plan {
 public:
  void clear() { tokens_.clear(); }
  // Plans sequences whose live, fold and ntokens are set; sets their tokens and nbranches.
  void add(const llamba_mamba2_verify_args& args, Mamba2Sequence* sequences, size_t count);

 private:
  void add_sequence(const llamba_mamba2_verify_args& args, Mamba2Sequence* sequence);
  void add_branches(const int32_t* parents, Mamba2Sequence* sequence, Mamba2Token* tokens);

  std::vector<Mamba2Token> tokens_;
  std::vector<int32_t> branches_;  // per token of a sequence: its branch state, or -1; [0] is the committed context's
};

// Runs mamba2_blocks over planned sequences on all threads.
void mamba2_run(const llamba_mamba2_verify_args& args, const Mamba2Sequence* sequences, int64_t count);

}  // namespace llamba
