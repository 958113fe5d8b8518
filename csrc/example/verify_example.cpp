// A Mamba-2 layer decodes speculatively through the C interface, without torch: a window of 4 tokens is verified, 2 of
// them stay, and the next step goes on. Each output must have the bits of plain decoding, one token at a time.
//
//   g++ -std=c++17 -Icsrc/include csrc/example/verify_example.cpp llamba_kernels/libllamba_cpu.so
//   -Wl,-rpath,$PWD/llamba_kernels -o verify_example && ./verify_example
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "llamba.h"

constexpr int kHeads = 4, kHeaddim = 16, kDstate = 32, kGroups = 2, kDim = kHeads * kHeaddim;
constexpr int kConvDim = kDim + 2 * kGroups * kDstate, kWidth = 4, kWindow = 4;
constexpr llamba_session kSession = {/*fold_every=*/2, /*max_rollback=*/0, /*max_window=*/kWindow};
constexpr int kCapacity = kWidth - 1 + 1 + 2 * kWindow;  // width-1 + fold_every-1 + max_rollback + 2 max_window

void check(int status) {
  if (status != LLAMBA_OK) std::printf("%s\n", llamba_last_error()), std::exit(1);
}

std::vector<float> numbers(int count, float shift) {  // any will do
  std::vector<float> values(count);
  for (int i = 0; i < count; ++i) values[i] = std::sin(0.7f * i + shift);
  return values;
}

bool equal_bits(const float* a, const float* b, int ntokens) {
  return std::memcmp(a, b, sizeof(float) * ntokens * kDim) == 0;
}

struct Decoder {  // one sequence of one layer: its buffers, and a step
  std::vector<float> weight = numbers(kConvDim * kWidth, 1), A = std::vector<float>(kHeads, -0.5f),
                     D = numbers(kHeads, 2);
  std::vector<float> checkpoint = std::vector<float>(kDim * kDstate), rows = std::vector<float>(kCapacity * kConvDim);
  std::vector<float> dt_rows = std::vector<float>(kCapacity * kHeads);
  std::vector<int32_t> table = std::vector<int32_t>(LLAMBA_CURSOR_HEADER + kWidth - 1 + kCapacity);
  llamba_cursor cursor = {table.data(), 1, int64_t(table.size()), kWidth, kCapacity};
  int32_t slot = 0;

  Decoder() {
    llamba_cursor_reset_args args = {sizeof args, cursor, &slot, nullptr, 1, kSession};
    check(llamba_cursor_reset_cpu(&args));
  }

  void step(const float* xBC, const float* dt, int32_t ntokens, int32_t accepted, float* out) {
    llamba_cursor_begin_args begin = {sizeof begin, cursor, &slot, &ntokens, 1, kSession};
    check(llamba_cursor_begin_cpu(&begin));
    llamba_mamba2_verify_args args = {};
    args.size = sizeof args, args.fold_every = kSession.fold_every;  // float32 and recurrent are zeros
    args.batch = 1, args.max_ntokens = ntokens, args.nheads = kHeads, args.headdim = kHeaddim, args.dstate = kDstate;
    args.x_heads = kHeads, args.B_heads = args.C_heads = kGroups;
    args.xBC = xBC, args.xBC_stride_token = kConvDim, args.dt = dt, args.dt_stride_token = kHeads;
    args.conv_weight = weight.data(), args.conv_weight_stride_channel = kWidth, args.conv_weight_stride_tap = 1;
    args.A = A.data(), args.D = D.data(), args.cursor = cursor, args.slots = &slot;
    args.checkpoint = checkpoint.data(), args.checkpoint_stride_head = kHeaddim * kDstate;
    args.checkpoint_stride_dim = kDstate, args.rows = rows.data(), args.rows_stride_row = kConvDim;
    args.dt_rows = dt_rows.data(), args.dt_rows_stride_row = kHeads;
    args.out = out, args.out_stride_token = kDim, args.out_stride_head = kHeaddim;
    check(llamba_mamba2_verify_cpu(&args));  // strides of dimensions of one entry may be anything
    llamba_cursor_commit_args commit = {sizeof commit, cursor, &slot, &accepted, nullptr, 0, 0, 1};
    check(llamba_cursor_commit_cpu(&commit));
  }
};

int main() {
  Decoder speculative, plain;
  std::vector<float> xBC = numbers(6 * kConvDim, 3), dt = numbers(6 * kHeads, 4), wrong = numbers(4 * kConvDim, 5);
  std::vector<float> expected(6 * kDim), out(kWindow * kDim);
  for (int i = 0; i < 6; ++i) plain.step(&xBC[i * kConvDim], &dt[i * kHeads], 1, 1, &expected[i * kDim]);

  std::copy(&xBC[0], &xBC[2 * kConvDim], wrong.begin());  // of a window of 4 tokens the last 2 are wrong drafts
  speculative.step(wrong.data(), dt.data(), kWindow, 2, out.data());
  bool same = equal_bits(&expected[0], &out[0], 2);
  same = same && !equal_bits(&expected[2 * kDim], &out[2 * kDim], 2);             // or this would show nothing
  speculative.step(&xBC[2 * kConvDim], &dt[2 * kHeads], kWindow, 4, out.data());  // on with the right ones
  same = same && equal_bits(&expected[2 * kDim], &out[0], 4);
  std::printf("windows of 4 with 2 and 4 tokens kept %s 6 single tokens, bit for bit (%s)\n",
              same ? "=" : "DIFFER FROM", llamba_isa_cpu());
  return !same;
}
