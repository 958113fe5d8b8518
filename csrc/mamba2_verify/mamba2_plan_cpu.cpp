#include "common/dtype.h"
#include "common/parallel.h"
#include "cursor/cursor_check.h"
#include "cursor/cursor_edit.h"
#include "mamba2_verify/mamba2_plan.h"

namespace llamba {
namespace {

// State elements a thread should at least update before a second thread is worth waking (about 10 us of work on one core).
constexpr int64_t kElementsPerPiece = 1 << 18;

// Floats of one thread's scratch; see Scratch in mamba2_verify_isa.cpp.
int64_t scratch_floats(const llamba_mamba2_verify_args& args, const Mamba2Sequence& sequence) {
  const int64_t ntotal = sequence.live + sequence.ntokens, headdim = (args.headdim + kBlock - 1) / kBlock * kBlock;
  return ntotal * (kInputFloats + headdim + args.dstate + kBlock + 2) + 2 * 16 +
         sequence.ntokens * (int64_t{args.dstate} + kBlock * 16) + sequence.nbranches * int64_t{kBlock} * 16;
}

}  // namespace

void Mamba2Plan::add(const llamba_mamba2_verify_args& args, Mamba2Sequence* sequences, size_t count) {
  size_t total = 0;
  for (size_t i = 0; i < count; ++i) total += sequences[i].live + sequences[i].ntokens;
  tokens_.reserve(tokens_.size() + total);  // the sequences point into it
  for (size_t i = 0; i < count; ++i) add_sequence(args, &sequences[i]);
}

void Mamba2Plan::add_sequence(const llamba_mamba2_verify_args& args, Mamba2Sequence* sequence) {
  const int32_t* header = args.cursor.data + sequence->slot * args.cursor.slot_stride;
  const int32_t* table = header + LLAMBA_CURSOR_HEADER;
  const int32_t* parents = args.parents ? args.parents + sequence->batch_idx * args.parents_stride_batch : nullptr;
  const int32_t width = args.cursor.width, live = sequence->live;
  const size_t first = tokens_.size();
  tokens_.resize(first + live + sequence->ntokens);
  Mamba2Token* tokens = tokens_.data() + first;
  sequence->tokens = tokens;
  sequence->nbranches = 0;
  int32_t position = header[kPosition] - live;  // of the token in question
  for (int32_t t = 0; t < live; ++t, ++position) {
    for (int32_t tap = 0; tap < width; ++tap) tokens[t].window[tap] = table[t + tap];
    tokens[t].save = tokens[t].load = -1;
    tokens[t].row = table[width - 1 + t];
    tokens[t].round = (position + 1) % args.fold_every == 0;
  }
  branches_.resize(sequence->ntokens);  // here: depth of each new token
  for (int32_t i = 0; i < sequence->ntokens; ++i) {
    Mamba2Token& token = tokens[live + i];
    const int32_t parent = parents ? parents[i] : i - 1;
    branches_[i] = parent < 0 ? 0 : branches_[parent] + 1;
    // The parent's window, moved on by this token; that of the committed context is the end of tail and live rows.
    const int32_t* before = parent < 0 ? table + live - 1 : tokens[live + parent].window;
    for (int32_t tap = 0; tap + 1 < width; ++tap) token.window[tap] = before[tap + 1];
    token.window[width - 1] = -2 - i;
    token.save = token.load = -1;
    token.row = table[width - 1 + live + i];
    token.round = (position + branches_[i] + 1) % args.fold_every == 0;
  }
  if (parents) add_branches(parents, sequence, tokens);
}

// A token whose parent is not the token before it starts from a branch state. That state is saved as soon as it is no
// longer in hand: before the token that follows the parent.
void Mamba2Plan::add_branches(const int32_t* parents, Mamba2Sequence* sequence, Mamba2Token* tokens) {
  const int32_t live = sequence->live;
  branches_.assign(sequence->ntokens, -1);  // by parent + 1; the last token is nobody's parent
  for (int32_t i = 0; i < sequence->ntokens; ++i) {
    if (parents[i] == i - 1) continue;
    int32_t& branch = branches_[parents[i] + 1];
    if (branch < 0) {
      branch = sequence->nbranches++;
      tokens[live + parents[i] + 1].save = branch;
    }
    tokens[live + i].load = branch;
  }
}

void mamba2_run(const llamba_mamba2_verify_args& args, const Mamba2Sequence* sequences, int64_t count) {
  if (count == 0) return;  // padding only
  const int64_t blocks = int64_t{args.nheads} * ((args.headdim + kBlock - 1) / kBlock);
  int64_t tokens = 0, floats = 0;
  for (int64_t i = 0; i < count; ++i) {
    tokens += sequences[i].live + sequences[i].ntokens;
    const int64_t needed = scratch_floats(args, sequences[i]);
    if (needed > floats) floats = needed;
  }
  const int64_t elements_per_block = (tokens + count) * kBlock * args.dstate / count;
  parallel_for(0, count * blocks, kElementsPerPiece / elements_per_block + 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> scratch;  // kept between calls: a step allocates nothing
    if (static_cast<int64_t>(scratch.size()) < floats + 16) scratch.resize(floats + 16);
    float* aligned = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
    while (begin < end) {  // a piece may span several sequences
      const int64_t block = begin % blocks;
      const int64_t stop = block + (end - begin) < blocks ? block + (end - begin) : blocks;
      const Mamba2Sequence& sequence = sequences[begin / blocks];
      LLAMBA_CALL_ISA(mamba2_blocks, args, sequence, block, stop, aligned);
      begin += stop - block;
    }
  });
}

}  // namespace llamba
