// conv1d_verify -- sixteen channels of out at a time for all tokens of a step, the taps in registers; the order of the
// taps is the order of the sum.
#include "common/vec.h"
#include "conv1d_verify/conv1d_vec.h"
#include "conv1d_verify/conv1d_verify_cpu.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

template <typename T>
void run_blocks(const llamba_conv1d_verify_args& args, const StepSequence& sequence, int64_t begin, int64_t end,
                float* floats) {
  const int32_t ntotal = sequence.live + sequence.ntokens, blocks = (args.headdim + kBlock - 1) / kBlock;
  const int32_t heads_per_x = args.nheads / args.x_heads;
  const void** inputs = reinterpret_cast<const void**>(floats);
  float* values = floats + int64_t{ntotal} * kInputFloats;  // [ntokens, kBlock]
  const T* new_tokens = static_cast<const T*>(args.x) + sequence.batch_idx * args.x_stride_batch;
  T* slot_rows = static_cast<T*>(args.rows) + sequence.slot * args.rows_stride_slot;
  T* out = static_cast<T*>(args.out) + sequence.batch_idx * args.out_stride_batch;
  find_inputs<T>(sequence, args.cursor.width, slot_rows, args.rows_stride_row, new_tokens, args.x_stride_token, inputs);
  const ConvWeights weights{args.conv_weight, args.conv_weight_stride_channel, args.conv_weight_stride_tap,
                            args.conv_bias, args.cursor.width};
  for (int64_t item = begin; item < end; ++item) {
    const int32_t head = static_cast<int32_t>(item / blocks), dim = static_cast<int32_t>(item % blocks) * kBlock;
    const int lanes = lanes_left(args.headdim - dim);
    const int32_t channel = head * args.headdim + dim, input = head / heads_per_x * args.headdim + dim;
    convolve_any<T>(weights, {inputs, sequence.live, ntotal}, channel, input, lanes, values, kBlock);
    for (int32_t i = 0; i < sequence.ntokens; ++i) {
      store_first(out + i * args.out_stride_token + channel, load(values + i * kBlock), lanes);
    }
    // Rows that several heads share are written by the first head's item, and only there.
    if (head % heads_per_x == 0) {
      store_rows<T>(sequence, new_tokens, args.x_stride_token, slot_rows, args.rows_stride_row, input, lanes);
    }
  }
}

}  // namespace

int64_t conv1d_scratch_floats(const StepSequence& sequence) {
  return int64_t{sequence.live + sequence.ntokens} * kInputFloats + int64_t{sequence.ntokens} * kBlock;
}

void conv1d_blocks(const llamba_conv1d_verify_args& args, const StepSequence& sequence, int64_t begin, int64_t end,
                   float* scratch) {
  LLAMBA_SWITCH_DTYPE(args.dtype, T, run_blocks<T>(args, sequence, begin, end, scratch));
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
