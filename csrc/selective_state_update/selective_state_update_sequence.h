// Which states a sequence of selective_state_update reads and writes: the same for the CPU and the CUDA kernel.
#pragma once

#include "common/host_device.h"
#include "llamba.h"

namespace llamba {
namespace {

constexpr int64_t kNoState = -1;

struct SsuSequence {
  int64_t batch, first;  // of the token operands: index in the batch dimension, and of the first token
  int64_t ntokens;
  int64_t slot;        // where it starts, or kNoState: padding, which starts at zero and stores nothing
  int64_t buffer_row;  // or kNoState
};

[[maybe_unused]] LLAMBA_HOST_DEVICE int64_t read_index(const llamba_indices& indices, int64_t row, int64_t column) {
  const int64_t i = row * indices.strides[0] + column * indices.strides[1];
  return indices.is_int64 ? static_cast<const int64_t*>(indices.data)[i] : static_cast<const int32_t*>(indices.data)[i];
}

// The index as a slot: kNoState if it is padding or names none.
[[maybe_unused]] LLAMBA_HOST_DEVICE int64_t as_slot(const llamba_selective_state_update_args& args, int64_t index) {
  return index == args.pad_slot_id || index < 0 || index >= args.nslots ? kNoState : index;
}

// The column of slots where sequence i starts.
[[maybe_unused]] LLAMBA_HOST_DEVICE int64_t ssu_column(const llamba_selective_state_update_args& args, int64_t i) {
  const int64_t accepted = args.accepted.data ? read_index(args.accepted, i, 0) : 1;
  return accepted > 1 ? accepted - 1 : 0;
}

[[maybe_unused]] LLAMBA_HOST_DEVICE SsuSequence ssu_sequence(const llamba_selective_state_update_args& args,
                                                             int64_t i) {
  SsuSequence sequence{i, 0, args.ntokens, i, kNoState};
  if (args.cu_seqlens.data) {
    const int64_t begin = read_index(args.cu_seqlens, i, 0), end = read_index(args.cu_seqlens, i + 1, 0);
    sequence.batch = 0;
    sequence.first = begin;
    sequence.ntokens = begin >= 0 && begin <= end && end <= args.ntokens ? end - begin : 0;
  }
  if (args.slots.data) {
    const int64_t column = ssu_column(args, i);
    sequence.slot = column < args.slots.columns ? as_slot(args, read_index(args.slots, i, column)) : kNoState;
  }
  if (args.buffer && sequence.slot != kNoState) {
    const int64_t row = args.buffer_rows.data ? read_index(args.buffer_rows, i, 0) : sequence.slot;
    if (row >= 0 && row < args.nbuffer) sequence.buffer_row = row;
  }
  return sequence;
}

[[maybe_unused]] LLAMBA_HOST_DEVICE bool stores_each_token(const llamba_selective_state_update_args& args) {
  return args.accepted.data || (args.dst_slots.data && args.dst_slots.columns > 1);
}

// Where the state after `token` of sequence i goes, or kNoState.
[[maybe_unused]] LLAMBA_HOST_DEVICE int64_t ssu_destination(const llamba_selective_state_update_args& args, int64_t i,
                                                            const SsuSequence& sequence, int64_t token) {
  if (args.disable_state_update || sequence.slot == kNoState) return kNoState;
  const llamba_indices& indices = args.dst_slots.data ? args.dst_slots : args.slots;
  if (stores_each_token(args)) {
    return token < indices.columns ? as_slot(args, read_index(indices, i, token)) : kNoState;
  }
  if (token + 1 < sequence.ntokens) return kNoState;
  return args.dst_slots.data ? as_slot(args, read_index(indices, i, 0)) : sequence.slot;
}

// The token whose buffered state `token` of sequence i starts from, or -1: the state that the token before it left.
[[maybe_unused]] LLAMBA_HOST_DEVICE int64_t ssu_parent(const llamba_selective_state_update_args& args, int64_t i,
                                                       const SsuSequence& sequence, int64_t token) {
  if (!args.parents.data || sequence.buffer_row == kNoState || token == 0 || token >= args.parents.columns) return -1;
  const int64_t parent = read_index(args.parents, i, token);
  return parent >= 0 && parent < token && parent < args.buffer_steps ? parent : -1;
}

}  // namespace
}  // namespace llamba
