// mamba2_verify on the CPU: checks, scratch, and the two parallel stages (conv, then scan) over the whole batch.
#include "mamba2_verify/mamba2_verify_cpu.h"

#include <vector>

#include "common/dtype.h"
#include "common/parallel.h"
#include "common/ssm_step.h"
#include "cursor/cursor_check.h"
#include "cursor/cursor_edit.h"
#include "cursor/cursor_slots.h"

namespace llamba {
namespace {

constexpr int32_t kMaxDstate = 256;
// State elements a thread should at least update before a second thread is worth waking (about 10 us of work on one core).
constexpr int64_t kElementsPerPiece = 1 << 18;

int check(const llamba_mamba2_verify_args& args) {
  const char* op = "mamba2_verify";
  if (args.dtype != LLAMBA_FLOAT32 && args.dtype != LLAMBA_BFLOAT16) {
    return fail(LLAMBA_TYPE_ERROR, "%s: dtype must be float32 or bfloat16; got code %d", op, args.dtype);
  }
  constexpr int32_t kMostSize = 1 << 24;  // keeps every sum of sizes below within int32
  const struct {
    const char* name;
    int32_t value;
  } sizes[] = {{"max_ntokens", args.max_ntokens}, {"nheads", args.nheads}, {"headdim", args.headdim}};
  for (const auto& size : sizes) {
    if (size.value < 1 || size.value > kMostSize) {
      return fail(LLAMBA_VALUE_ERROR, "%s: %s must be 1 to %d; got %d", op, size.name, kMostSize, size.value);
    }
  }
  if (int64_t{args.nheads} * args.headdim > kMostSize || int64_t{args.nheads} * args.dstate > kMostSize) {
    return fail(LLAMBA_VALUE_ERROR, "%s: nheads times headdim or dstate must be at most %d; got %d times %d or %d", op,
                kMostSize, args.nheads, args.headdim, args.dstate);
  }
  if (args.dstate < 16 || args.dstate > kMaxDstate || args.dstate % 16 != 0) {
    return fail(LLAMBA_VALUE_ERROR, "%s: dstate must be a multiple of 16 up to %d; got %d", op, kMaxDstate,
                args.dstate);
  }
  const struct {
    const char* name;
    int32_t heads;
  } groups[] = {{"x_heads", args.x_heads}, {"B_heads", args.B_heads}, {"C_heads", args.C_heads}};
  for (const auto& group : groups) {
    if (group.heads < 1 || args.nheads % group.heads != 0) {
      return fail(LLAMBA_VALUE_ERROR, "%s: %s must divide nheads = %d; got %d", op, group.name, args.nheads,
                  group.heads);
    }
  }
  const int status = check_cursor(op, args.cursor);
  return status == LLAMBA_OK ? check_slots(op, args.slots, args.batch, args.cursor.nslots) : status;
}

// The open step of batch entry i, without its scratch; refuses what would read or write outside the buffers.
int open_step(const llamba_mamba2_verify_args& args, int32_t i, Mamba2Sequence* sequence) {
  const int32_t slot = args.slots[i];
  const int status = check_slot("mamba2_verify", args.cursor, slot);
  if (status != LLAMBA_OK) return status;
  const int32_t* header = args.cursor.data + slot * args.cursor.slot_stride;
  if (header[kNtokens] <= kNoStep) {
    return fail(LLAMBA_VALUE_ERROR, "mamba2_verify: slot %d must have an open step; got none (cursor_begin opens it)",
                slot);
  }
  if (header[kNtokens] > args.max_ntokens) {
    return fail(LLAMBA_VALUE_ERROR, "mamba2_verify: xBC must hold the open step's %d tokens of slot %d; got %d",
                header[kNtokens], slot, args.max_ntokens);
  }
  *sequence = Mamba2Sequence{};
  sequence->batch_idx = i;
  sequence->slot = slot;
  sequence->live = header[kLive];
  sequence->fold = header[kFold];
  sequence->ntokens = header[kNtokens];
  sequence->ntotal = header[kLive] + header[kNtokens];
  sequence->fresh = header[kPosition] == header[kLive];
  sequence->table = header + LLAMBA_CURSOR_HEADER;
  return LLAMBA_OK;
}

// Stage 0: step sizes and decays of all tokens (a few scalars per head); stores the new tokens' dt rows.
template <typename T>
void prepare_dt(const llamba_mamba2_verify_args& args, const Mamba2Sequence& sequence) {
  T* slot_rows = static_cast<T*>(args.dt_rows) + sequence.slot * args.dt_rows_stride_slot;
  const T* fresh_dt = static_cast<const T*>(args.dt) + sequence.batch_idx * args.dt_stride_batch;
  const int32_t* rows = sequence.table + args.cursor.width - 1;
  for (int32_t t = 0; t < sequence.ntotal; ++t) {
    T* row = slot_rows + rows[t] * args.dt_rows_stride_row;
    const T* raw = t < sequence.live ? row : fresh_dt + (t - sequence.live) * args.dt_stride_token;
    for (int32_t head = 0; head < args.nheads; ++head) {
      const float bias = args.dt_bias ? args.dt_bias[head] : 0.0f;
      const float dt = softplus(to_float(raw[head]) + bias);
      sequence.dt[int64_t{t} * args.nheads + head] = dt;
      sequence.decay[int64_t{t} * args.nheads + head] = decay(dt, args.A[head]);
      if (t >= sequence.live) row[head] = raw[head];
    }
  }
}

template <typename T>
void write_zero(const llamba_mamba2_verify_args& args, int32_t i, int32_t first_token) {
  for (int32_t t = first_token; t < args.max_ntokens; ++t) {
    for (int32_t head = 0; head < args.nheads; ++head) {
      T* out = static_cast<T*>(args.out) + i * args.out_stride_batch + t * args.out_stride_token +
               head * args.out_stride_head;
      for (int32_t dim = 0; dim < args.headdim; ++dim) out[dim] = T{};
    }
  }
}

template <typename T>
int mamba2_verify(const llamba_mamba2_verify_args& args) {
  Mamba2Sizes sizes;
  sizes.conv_dim = args.x_heads * args.headdim + (args.B_heads + args.C_heads) * args.dstate;
  sizes.conv_stride = (sizes.conv_dim + 15) / 16 * 16;

  // kept between calls: a step allocates nothing once the largest window has been seen
  static thread_local std::vector<Mamba2Sequence> sequences;
  static thread_local std::vector<float> scratch;
  sequences.clear();
  int64_t tokens = 0;
  for (int32_t i = 0; i < args.batch; ++i) {
    if (args.slots[i] < 0) continue;
    Mamba2Sequence sequence;
    const int status = open_step(args, i, &sequence);
    if (status != LLAMBA_OK) return status;
    sequences.push_back(sequence);
    tokens += sequence.ntotal;
  }
  // Nothing has been written so far, and nothing fails from here on.
  const int64_t floats_per_token = sizes.conv_stride + 2 * int64_t{args.nheads};
  if (static_cast<int64_t>(scratch.size()) < tokens * floats_per_token) scratch.resize(tokens * floats_per_token);
  float* free_scratch = scratch.data();
  for (Mamba2Sequence& sequence : sequences) {
    sequence.conv = free_scratch;
    sequence.dt = sequence.conv + int64_t{sequence.ntotal} * sizes.conv_stride;
    sequence.decay = sequence.dt + int64_t{sequence.ntotal} * args.nheads;
    free_scratch += sequence.ntotal * floats_per_token;
    prepare_dt<T>(args, sequence);
  }

  // Each stage is one parallel region over (sequence, item); a piece may span several sequences.
  const Mamba2Sequence* first = sequences.data();
  const int64_t count = static_cast<int64_t>(sequences.size());
  const auto run_stage = [&](auto kernel, int64_t items, int64_t elements_per_item) {
    const int64_t tokens_per_sequence = count > 0 ? (tokens + count - 1) / count : 1;
    const int64_t grain = kElementsPerPiece / (elements_per_item * tokens_per_sequence) + 1;
    parallel_for(0, count * items, grain, [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t sequence = begin / items, item = begin % items;
        const int64_t stop = item + (end - begin) < items ? item + (end - begin) : items;
        kernel(first[sequence], item, stop);
        begin += stop - item;
      }
    });
  };
  run_stage([&](const Mamba2Sequence& sequence, int64_t begin,
                int64_t end) { LLAMBA_CALL_ISA(mamba2_conv, args, sizes, sequence, begin, end); },
            sizes.conv_stride / 16, 16 * 8);
  run_stage([&](const Mamba2Sequence& sequence, int64_t begin,
                int64_t end) { LLAMBA_CALL_ISA(mamba2_scan, args, sizes, sequence, begin, end); },
            int64_t{args.nheads} * args.headdim, args.dstate);

  size_t next = 0;
  for (int32_t i = 0; i < args.batch; ++i) {
    const bool padding = next >= sequences.size() || sequences[next].batch_idx != i;
    write_zero<T>(args, i, padding ? 0 : sequences[next++].ntokens);
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_mamba2_verify_cpu(const llamba_mamba2_verify_args* args) {
  LLAMBA_CHECK_SIZE("mamba2_verify", args);
  const int status = llamba::check(*args);
  if (status != LLAMBA_OK) return status;
  return args->dtype == LLAMBA_FLOAT32 ? llamba::mamba2_verify<float>(*args)
                                       : llamba::mamba2_verify<llamba::bfloat16>(*args);
}
