// skinny_linear -- out = x weight^T + bias for a few rows of x, at the speed of reading weight once.
// Work      a thread takes kBlock features at a time and multiplies them by up to kMaxTokens rows of x. Up to kFew.tokens
//           rows, each tile runs over all of in_features. With more, in_features is walked in blocks of kBlockBytes, so
//           that a tile's rows of x stay in the nearest cache while the features pass by, and weight, read from memory
//           by the first tile of tokens, in the next cache for the others
// Registers one accumulator of 16 lanes per (feature, token) of a tile; between blocks they rest in memory
// Numerics  fp32 fused multiply-adds. Element k of in_features adds to lane k % 16 in order of k (float32, float16), or to
//           lane k % 32 / 2, the even k of each 32 first (bfloat16: two elements in 32 bits widen by a shift and a mask).
//           avx512bf16 adds bfloat16 in pairs: k and k + 1 at once to the same lane, by vdpbf16ps, which takes subnormal
//           numbers as zero. A partial step is filled up with zeros. Then the lanes' fixed tree, bias, one rounding. So an
//           output's bits depend on its row of x and its row of weight alone, not on the tile they meet in, the number of
//           rows or the threads
#include <cstring>

#include "common/vec.h"
#include "llamba.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

// The accumulators of a tile, its weight vectors and one vector of x must fit the registers (AVX-512: 32 of 16 floats).
// The processor's own prefetching falls behind where a step takes long, and stops where a row ends. So a tile that reads
// weight from memory fetches so many bytes ahead in each row, and in its last steps the beginning of rows to come.
struct TileShape {
  int features, tokens, bytes_ahead;
};
constexpr bool kWide = kNativeLanes == 16;
constexpr TileShape kFew = kWide ? TileShape{6, 4, 2048} : TileShape{6, 1, 2048};
constexpr TileShape kMany = kWide ? TileShape{3, 8, 3072} : TileShape{2, 2, 3072};

// Features a thread takes at a time: whole tiles of either shape, whole vectors of outputs. With fewer, the rows of x, which
// streaming weight drives out of the second cache, are read again too often (48: 8 float32 rows take 1.6 times one row's
// time instead of 1.25); with 192 the accumulators crowd it.
constexpr int kBlock = 96;
constexpr int kMaxTokens = 64;  // accumulators of kBlock x kMaxTokens take 384 KiB of the stack and of the second cache
constexpr int kBlockBytes = 4096;  // of each row: 8 rows of x take 32 of the nearest cache's 48 KiB

// The rows to come are those of the next tile, or where rows are short of the first that begins at least so far from
// this one: three rows of 1152 bytes take less time to multiply than to arrive.
constexpr int kBytesToNext = 6144;

// 64 bytes of a row are a step: two vectors to multiply for 16 bits, otherwise one.
template <typename T>
constexpr int kStep = 64 / sizeof(T);
template <typename T>
constexpr int kVectors = kStep<T> / kLanes;
LLAMBA_INLINE vec16 load_vector(const float* p, int) { return load(p); }
LLAMBA_INLINE vec16 load_vector(const float16* p, int i) { return load(p + i * kLanes); }
#if defined(__AVX512BF16__)
struct pairs {
  __m512bh part[1];
};
template <>
constexpr int kVectors<bfloat16> = 1;
LLAMBA_INLINE pairs load_vector(const bfloat16* p, int) {
  return pairs{{reinterpret_cast<__m512bh>(_mm512_loadu_si512(p))}};
}
LLAMBA_INLINE vec16 fma(pairs a, pairs b, vec16 c) {
  return vec16{{_mm512_dpbf16_ps(c.part[0], a.part[0], b.part[0])}};
}
#else
LLAMBA_INLINE vec16 load_vector(const bfloat16* p, int i) { return i == 0 ? load_even(p) : load_odd(p); }
#endif

// GCC would read x again for every feature to save an instruction: then loads, not products, set the pace.
template <typename Vector>
LLAMBA_INLINE void keep_in_register([[maybe_unused]] Vector& a) {
#if defined(__AVX512F__)
  asm("" : "+v"(a.part[0]));
#endif
}

template <typename T>
struct Tile {
  const T *weight, *x;
  int64_t weight_stride, x_stride;
  int64_t length;  // of in_features: whole steps
  const T* next;   // weight of a tile to come; null: weight comes from a cache, nothing is fetched ahead
  int64_t ahead;   // elements
  vec16* sums;     // [tokens, kBlock], the tile's features of each row, written; read, too, unless `first`
  bool first;
};

template <typename T, int kFeatures, int kTokens>
LLAMBA_INLINE void multiply_step(const T* const (&weight)[kFeatures], const T* const (&x)[kTokens], int64_t k,
                                 vec16 (&sums)[kTokens][kFeatures]) {
#pragma GCC unroll 2
  for (int i = 0; i < kVectors<T>; ++i) {
    decltype(load_vector(weight[0], 0)) weight_reg[kFeatures];
#pragma GCC unroll 8
    for (int feature = 0; feature < kFeatures; ++feature) weight_reg[feature] = load_vector(weight[feature] + k, i);
#pragma GCC unroll 8
    for (int token = 0; token < kTokens; ++token) {
      auto x_reg = load_vector(x[token] + k, i);
      keep_in_register(x_reg);
#pragma GCC unroll 8
      for (int feature = 0; feature < kFeatures; ++feature) {
        sums[token][feature] = fma(weight_reg[feature], x_reg, sums[token][feature]);
      }
    }
  }
}

template <typename T, int kFeatures, int kTokens>
void multiply_tile(const Tile<T>& tile) {
  const T *weight[kFeatures], *x[kTokens];
  vec16 sums[kTokens][kFeatures];
  for (int i = 0; i < kFeatures; ++i) weight[i] = tile.weight + i * tile.weight_stride;
  for (int j = 0; j < kTokens; ++j) {
    x[j] = tile.x + j * tile.x_stride;
    for (int i = 0; i < kFeatures; ++i) sums[j][i] = tile.first ? broadcast(0.0f) : tile.sums[j * kBlock + i];
  }
  const int64_t length = tile.length;
  int64_t k = 0;
  if (tile.next) {
    const int64_t ahead = tile.ahead < length ? tile.ahead : length;
    for (; k < length - ahead; k += kStep<T>) {
      for (int i = 0; i < kFeatures; ++i) __builtin_prefetch(weight[i] + k + ahead);
      multiply_step(weight, x, k, sums);
    }
    for (const T* next = tile.next; k < length; k += kStep<T>, next += kStep<T>) {
      for (int i = 0; i < kFeatures; ++i) __builtin_prefetch(next + i * tile.weight_stride);
      multiply_step(weight, x, k, sums);
    }
  }
  for (; k < length; k += kStep<T>) multiply_step(weight, x, k, sums);
  for (int j = 0; j < kTokens; ++j) {
    for (int i = 0; i < kFeatures; ++i) tile.sums[j * kBlock + i] = sums[j][i];
  }
}

// multiply_tile for a number of tokens known at run time, at most kTokens.
template <typename T, int kFeatures, int kTokens>
void multiply_tokens(const Tile<T>& tile, int tokens) {
  if (tokens == kTokens) return multiply_tile<T, kFeatures, kTokens>(tile);
  if constexpr (kTokens > 1) multiply_tokens<T, kFeatures, kTokens - 1>(tile, tokens);
}

// features x tokens outputs over all.length of in_features: all of `all` is that of the first of them, but `next` follows
// the last. The rows of x in a tile stay while the features pass by; the first rows fetch weight for the others.
template <typename T, TileShape kShape>
void multiply_block(const Tile<T>& all, int features, int tokens) {
  const int64_t rows_apart = kBytesToNext / (all.length * sizeof(T) + 1) + 1;
  const int64_t to_next = rows_apart > kShape.features ? rows_apart : kShape.features;
  const int tiles = (tokens + kShape.tokens - 1) / kShape.tokens;
  for (int i = 0; i < tiles; ++i) {  // as equal as can be: a tile of one token costs nearly as much as a full one
    const int token = tokens * i / tiles, count = tokens * (i + 1) / tiles - token;
    const bool fetch = all.next && i == 0;
    Tile<T> tile = all;
    tile.next = nullptr;
    tile.ahead = kShape.bytes_ahead / sizeof(T);
    tile.x += token * all.x_stride;
    tile.sums += token * kBlock;
    int left = features;
    const auto pass = [&](int n) {
      left -= n;
      tile.weight += n * all.weight_stride;
      tile.sums += n;
    };
    for (; left >= kShape.features; pass(kShape.features)) {
      if (fetch) {
        tile.next = left > to_next ? tile.weight + to_next * all.weight_stride
                                   : all.next + (to_next - left) * all.weight_stride;
      }
      multiply_tokens<T, kShape.features, kShape.tokens>(tile, count);
    }
    tile.next = nullptr;
    for (; left > 0; pass(1)) multiply_tokens<T, 1, kShape.tokens>(tile, count);
  }
}

// Where in_features is no multiple of a step: copies of the rest of each row, followed by zeros.
template <typename T>
void copy_rest(T* copy, const T* rows, int64_t stride, int64_t count, int64_t rest) {
  std::memset(copy, 0, count * kStep<T> * sizeof(T));
  for (int64_t i = 0; i < count; ++i) std::memcpy(copy + i * kStep<T>, rows + i * stride, rest * sizeof(T));
}

template <typename T>
void multiply_rows(const T* x, int64_t x_stride, const T* weight, int64_t weight_stride, int64_t in_features,
                   int features, int tokens, vec16* sums) {
  const auto multiply = tokens <= kFew.tokens ? multiply_block<T, kFew> : multiply_block<T, kMany>;
  const int64_t steps = in_features / kStep<T>;
  const int64_t blocks = tokens <= kFew.tokens ? 1 : (steps * 64 + kBlockBytes - 1) / kBlockBytes;
  const int64_t block = blocks > 1 ? (steps + blocks - 1) / blocks * kStep<T> : steps * kStep<T>;
  int64_t k = 0;
  Tile<T> all{weight, x, weight_stride, x_stride, 0, nullptr, 0, sums, true};
  do {
    const int64_t left = steps * kStep<T> - k;
    all.length = left < block ? left : block;
    all.next = left > block ? all.weight + block : weight + kBlock * weight_stride;
    multiply(all, features, tokens);
    k += all.length;
    all.weight += all.length;
    all.x += all.length;
    all.first = false;
  } while (k < steps * kStep<T>);

  if (const int64_t rest = in_features - k) {
    T weight_rest[kBlock * kStep<T>], x_rest[kMaxTokens * kStep<T>];
    copy_rest(weight_rest, all.weight, weight_stride, features, rest);
    copy_rest(x_rest, all.x, x_stride, tokens, rest);
    multiply(Tile<T>{weight_rest, x_rest, kStep<T>, kStep<T>, kStep<T>, nullptr, 0, sums, false}, features, tokens);
  }
}

template <typename T>
void store_rows(const vec16* sums, const T* bias, T* out, int64_t out_stride, int features, int tokens) {
  for (int token = 0; token < tokens; ++token, sums += kBlock, out += out_stride) {
    for (int feature = 0; feature < features; feature += kLanes) {
      const int n = lanes_left(features - feature);
      vec16 y = sum_each(*reinterpret_cast<const vec16(*)[kLanes]>(sums + feature));  // only the first n are stored
      if (bias) y = add(y, load_first(bias + feature, n));
      store_first(out + feature, y, n);
    }
  }
}

template <typename T>
void multiply_features(const llamba_skinny_linear_args& args, int64_t begin, int64_t end) {
  vec16 sums[kMaxTokens * kBlock];
  for (int64_t feature = begin; feature < end; feature += kBlock) {
    const T* const weight = static_cast<const T*>(args.weight) + feature * args.weight_stride_row;
    const T* const bias = args.bias ? static_cast<const T*>(args.bias) + feature : nullptr;
    const int features = static_cast<int>(end - feature < kBlock ? end - feature : kBlock);
    for (int64_t batch = 0; batch < args.batch; ++batch) {
      const T* x = static_cast<const T*>(args.x) + batch * args.x_stride_batch;
      T* out = static_cast<T*>(args.out) + batch * args.out_stride_batch + feature;
      for (int64_t left = args.ntokens; left > 0; left -= kMaxTokens) {
        const int tokens = static_cast<int>(left < kMaxTokens ? left : kMaxTokens);
        multiply_rows(x, args.x_stride_token, weight, args.weight_stride_row, args.in_features, features, tokens, sums);
        store_rows(sums, bias, out, args.out_stride_token, features, tokens);
        x += kMaxTokens * args.x_stride_token;
        out += kMaxTokens * args.out_stride_token;
      }
    }
  }
}

}  // namespace

void skinny_linear_features(const llamba_skinny_linear_args& args, int64_t begin, int64_t end) {
  LLAMBA_SWITCH_DTYPE(args.dtype, T, multiply_features<T>(args, begin, end));
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
