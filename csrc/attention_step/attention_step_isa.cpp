// attention_step -- softmax(scale q . K) V of a step's tokens over their sequence, at the speed of reading K and V once.
// Work      one call per (sequence, kv head, chunk of 256 positions): all queries of the head's group and of the window
//           share each key and value while it is in the nearest cache; combine_chunks then puts the chunks together
// Order     a key's place is its position: committed keys lie at theirs, a token of the step at position + depth, wherever
//           in the cache the step put it. Lanes, blocks of 16 and chunks are those of the position
// Scores    one dot product per (query, key): element d adds to lane d % 16 in order of d, then the lanes' fixed tree
// Softmax   exact maximum of the chunk; weights exp(score - maximum) add to lane position % 16 in order, then the tree;
//           each block of 16 positions adds its
//           values from zero, one fused multiply-add each in order of position, and the blocks add up in order
// Window    keys before a token's sliding window are left out of the maximum, of the lanes (a zero) and of the blocks' sums
// Numerics  fp32, one rounding at the end. So the bits of a (token, head) depend on its query and the keys and values on its
//           path alone: not on the window, the tree around it, the batch or the threads
#include "attention_step/attention_step_cpu.h"
#include "common/vec.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

// Dot products of (queries x keys), and sums of (queries x vectors of a value), that run side by side: with what they
// read they must fit the registers.
constexpr int kKeysAtOnce = kNativeLanes == 16 ? 4 : 2;
constexpr int kQueriesAtOnce = kNativeLanes == 16 ? 4 : 2;
constexpr int kVectorsAtOnce = kNativeLanes == 16 ? 4 : 2;

// Rows of floats: in the cache itself, or a copy of 16. In the cache the next 16 follow, and whoever reads a row first
// asks for its place in those: spread over the arithmetic like this, reading and computing take turns no more.
struct Block {
  const float* rows;
  int64_t stride;
  bool in_cache;
};

template <typename T>
void copy_row(const T* row, int64_t size, float* copy) {
  for (int64_t d = 0; d < size; d += kLanes) store(copy + d, load_first(row + d, lanes_left(size - d)));
}

// scores = scale * the dot products of a few queries with the 16 rows.
template <int kQueries, bool kPrefetch>
void score_tile(const float* query, Block block, float scale, float* scores, int64_t padded) {
  vec16 sums[kQueries][kLanes];
  for (int first = 0; first < kLanes; first += kKeysAtOnce) {
    const float* row = block.rows + first * block.stride;
    vec16 sum[kQueries][kKeysAtOnce];
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
      for (int key = 0; key < kKeysAtOnce; ++key) sum[i][key] = broadcast(0.0f);
    }
    for (int64_t d = 0; d < padded; d += kLanes) {
      vec16 keys[kKeysAtOnce];
#pragma GCC unroll 4
      for (int key = 0; key < kKeysAtOnce; ++key) {
        if (kPrefetch) __builtin_prefetch(row + (key + kLanes) * block.stride + d);
        keys[key] = load(row + key * block.stride + d);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kQueries; ++i) {
        const vec16 q = load(query + i * padded + d);
#pragma GCC unroll 4
        for (int key = 0; key < kKeysAtOnce; ++key) sum[i][key] = fma(q, keys[key], sum[i][key]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
      for (int key = 0; key < kKeysAtOnce; ++key) sums[i][first + key] = sum[i][key];
    }
  }
  for (int i = 0; i < kQueries; ++i) store(scores + i * kChunk, mul(sum_each(sums[i]), broadcast(scale)));
}

// Queries [0, queries): as many at once as the registers hold, then fewer.
template <int kQueries = kQueriesAtOnce>
void score_keys(const float* query, Block block, float scale, float* scores, int64_t padded, int64_t queries) {
  for (; queries >= kQueries; queries -= kQueries) {
    (block.in_cache ? score_tile<kQueries, true> : score_tile<kQueries, false>)(query, block, scale, scores, padded);
    block.in_cache = false;
    query += kQueries * padded;
    scores += kQueries * kChunk;
  }
  if constexpr (kQueries > 1) score_keys<kQueries - 1>(query, block, scale, scores, padded, queries);
}

// sums += weights . the first `count` rows, for a few queries and a few vectors of each row.
template <int kQueries, int kVectors, bool kPrefetch>
void add_values_tile(const float* weights, Block block, int count, float* sums, int64_t sums_stride) {
  vec16 sum[kQueries][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[i][v] = broadcast(0.0f);
  }
  for (int key = 0; key < count; ++key) {
    const float* row = block.rows + key * block.stride;
    vec16 value[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      if (kPrefetch) __builtin_prefetch(row + kLanes * block.stride + v * kLanes);
      value[v] = load(row + v * kLanes);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
      const vec16 weight = broadcast(weights[i * kChunk + key]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[i][v] = fma(weight, value[v], sum[i][v]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* const total = sums + i * sums_stride + v * kLanes;
      store(total, add(load(total), sum[i][v]));
    }
  }
}

template <int kQueries, bool kPrefetch>
void add_values_row(const float* weights, Block block, int count, float* sums, int64_t sums_stride, int64_t padded) {
  constexpr int64_t kTile = kVectorsAtOnce * kLanes;
  int64_t d = 0;
  for (; d + kTile <= padded; d += kTile, block.rows += kTile) {
    add_values_tile<kQueries, kVectorsAtOnce, kPrefetch>(weights, block, count, sums + d, sums_stride);
  }
  for (; d < padded; d += kLanes, block.rows += kLanes) {
    add_values_tile<kQueries, 1, kPrefetch>(weights, block, count, sums + d, sums_stride);
  }
}

// Queries [0, queries): as many at once as the registers hold, then fewer.
template <int kQueries = kQueriesAtOnce>
void add_values(const float* weights, Block block, int count, float* sums, int64_t sums_stride, int64_t padded,
                int64_t queries) {
  for (; queries >= kQueries; queries -= kQueries) {
    (block.in_cache ? add_values_row<kQueries, true> : add_values_row<kQueries, false>)(weights, block, count, sums,
                                                                                        sums_stride, padded);
    block.in_cache = false;
    weights += kQueries * kChunk;
    sums += kQueries * sums_stride;
  }
  if constexpr (kQueries > 1) {
    add_values<kQueries - 1>(weights, block, count, sums, sums_stride, padded, queries);
  }
}

// The keys, or the values, of one (slot, kv head).
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;
  int64_t head_dim, padded;
  float* copies;  // [16, padded]

  // 16 committed rows from `first` on.
  LLAMBA_INLINE Block committed(int64_t first) const {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (head_dim == padded) return Block{reinterpret_cast<const float*>(data + first * stride), stride, true};
    }
    for (int i = 0; i < kLanes; ++i) {
      const T* row = data + (first + i) * stride;
      for (int64_t d = 0; d < head_dim; d += 64 / static_cast<int64_t>(sizeof(T))) {
        __builtin_prefetch(row + kLanes * stride + d);
      }
      copy_row(row, head_dim, copies + i * padded);
    }
    return Block{copies, padded, false};
  }

  // Rows [skip, count) of those from position `first` on as token t sees them: some may be the step's own. The others
  // are stale.
  Block on_path(const AttentionSequence& sequence, int64_t token, int64_t first, int skip, int count) const {
    for (int i = skip; i < count; ++i) {
      int64_t row = first + i;
      if (row >= sequence.position && sequence.path) {
        row = sequence.position + sequence.path[token * sequence.ntokens + row - sequence.position];
      }
      copy_row(data + row * stride, head_dim, copies + i * padded);
    }
    return Block{copies, padded, false};
  }
};

// scores[skip, count) -> weights exp(score - maximum), up to whole vectors of which the rest is zero. skip < kLanes
LLAMBA_INLINE void soften(float* scores, int skip, int count, float* maximum, float* total) {
  float lanes[kLanes];
  for (int lane = 0; lane < skip; ++lane) scores[lane] = -__builtin_inff();
  vec16 largest = broadcast(-__builtin_inff());
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) largest = max(largest, load(scores + i));
  store(lanes, largest);
  float most = lanes[0];
  for (int lane = 1; lane < kLanes; ++lane) most = lanes[lane] > most ? lanes[lane] : most;
  for (; i < count; ++i) most = scores[i] > most ? scores[i] : most;

  vec16 sums = broadcast(0.0f);
  for (i = 0; i < count; i += kLanes) {
    const int n = lanes_left(count - i);
    const vec16 weights = exp(add(load_first(scores + i, n), broadcast(-most)));
    store(scores + i, broadcast(0.0f));
    store_first(scores + i, weights, n);
    for (int lane = 0; lane < skip; ++lane) scores[lane] = 0.0f;  // exp ends above zero
    sums = add(sums, load(scores + i));
  }
  *maximum = most;
  *total = sum(sums);
}

template <typename T>
void attend(const llamba_attention_step_args& args, const AttentionSizes& sizes, const AttentionSequence& sequence,
            int64_t kv_head, int64_t chunk, float* scratch) {
  const int64_t queries = sequence.ntokens * sizes.group, padded = sizes.padded, first = chunk * kChunk;
  if (first_seen(args, sequence.position) >= first + kChunk) return;  // no token sees any of it
  float* const query = scratch;                                       // [queries, padded]
  float* const scores = query + queries * padded;                     // [queries, kChunk]
  float* const copies = scores + queries * kChunk;
  float* const partials = sequence.partials + (kv_head * sequence.nchunks + chunk) * queries * sizes.partial;
  const T* k = static_cast<const T*>(args.k_cache) + sequence.slot * args.k_cache_stride_slot +
               kv_head * args.k_cache_stride_head;
  const T* v = static_cast<const T*>(args.v_cache) + sequence.slot * args.v_cache_stride_slot +
               kv_head * args.v_cache_stride_head;
  const Rows<T> keys{k, args.k_cache_stride_token, args.head_dim, padded, copies};
  const Rows<T> values{v, args.v_cache_stride_token, args.head_dim, padded, copies};

  for (int64_t i = 0; i < queries; ++i) {  // query i: token i / group, head i % group of the group
    const T* q = static_cast<const T*>(args.q) + sequence.batch_idx * args.q_stride_batch +
                 i / sizes.group * args.q_stride_token + (kv_head * sizes.group + i % sizes.group) * args.q_stride_head;
    copy_row(q, args.head_dim, query + i * padded);
  }
  // A query sees the keys [begin_of, end_of) of this chunk, none if that is empty.
  const auto end_of = [&](int64_t i) {
    const int64_t end = sequence.position + depth_of(sequence, i / sizes.group) + 1 - first;
    return end < kChunk ? end : kChunk;
  };
  const auto begin_of = [&](int64_t i) {
    const int64_t begin = first_seen(args, sequence.position + depth_of(sequence, i / sizes.group)) - first;
    return begin > 0 ? begin : 0;
  };
  // Whole blocks of committed keys that every query sees are read once for all: [shared, alone), if not empty.
  int64_t alone = sequence.position - first, shared = 0;
  alone = alone < 0 ? 0 : alone < kChunk ? alone / kLanes * kLanes : kChunk;
  for (int64_t i = 0; i < queries; i += sizes.group) shared = begin_of(i) > shared ? begin_of(i) : shared;
  shared = (shared + kLanes - 1) / kLanes * kLanes;
  alone = alone > shared ? alone : shared;
  // body(key, skip, count) for the blocks of query i from `from` to `to`: of block `key` it sees [skip, count).
  const auto for_blocks = [&](int64_t i, int64_t from, int64_t to, const auto& body) {
    const int64_t begin = begin_of(i), end = end_of(i);
    from = from > begin ? from : begin / kLanes * kLanes;
    for (int64_t key = from; key < to && key < end; key += kLanes) {
      body(key, static_cast<int>(begin > key ? begin - key : 0), lanes_left(end - key));
    }
  };
  const auto score_alone = [&](int64_t i, int64_t from, int64_t to) {
    for_blocks(i, from, to, [&](int64_t key, int skip, int count) {
      const Block block = keys.on_path(sequence, i / sizes.group, first + key, skip, count);
      score_tile<1, false>(query + i * padded, block, args.scale, scores + i * kChunk + key, padded);
    });
  };
  const auto add_alone = [&](int64_t i, int64_t from, int64_t to) {
    for_blocks(i, from, to, [&](int64_t key, int skip, int count) {
      Block block = values.on_path(sequence, i / sizes.group, first + key, skip, count);
      block.rows += skip * padded;
      const float* const weights = scores + i * kChunk + key + skip;
      add_values_row<1, false>(weights, block, count - skip, partials + i * sizes.partial, 0, padded);
    });
  };

  for (int64_t key = shared; key < alone; key += kLanes) {
    const Block block = keys.committed(first + key);
    score_keys(query, block, args.scale, scores + key, padded, queries);
  }
  for (int64_t i = 0; i < queries; ++i) {
    score_alone(i, 0, shared);
    score_alone(i, alone, kChunk);
    float* const partial = partials + i * sizes.partial;
    for (int64_t d = 0; d < padded; d += kLanes) store(partial + d, broadcast(0.0f));
    const int64_t begin = begin_of(i), from = begin / kLanes * kLanes;
    if (begin < end_of(i)) {
      soften(scores + i * kChunk + from, static_cast<int>(begin - from), static_cast<int>(end_of(i) - from),
             partial + padded, partial + padded + 1);
    }
  }
  // In order of the blocks, whoever shares them.
  for (int64_t i = 0; i < queries; ++i) add_alone(i, 0, shared);
  for (int64_t key = shared; key < alone; key += kLanes) {
    add_values(scores + key, values.committed(first + key), kLanes, partials, sizes.partial, padded, queries);
  }
  for (int64_t i = 0; i < queries; ++i) add_alone(i, alone, kChunk);
}

LLAMBA_INLINE float exp(float x) {
  float lanes[kLanes];
  store(lanes, exp(broadcast(x)));
  return lanes[0];
}

template <typename T>
void combine(const llamba_attention_step_args& args, const AttentionSizes& sizes, const AttentionSequence& sequence,
             int64_t head, int64_t token) {
  const int64_t padded = sizes.padded, place = sequence.position + depth_of(sequence, token);
  const int64_t begin = first_seen(args, place) / kChunk, chunks = place / kChunk + 1;  // [begin, chunks)
  const int64_t stride = sequence.ntokens * sizes.group * sizes.partial;                // from chunk to chunk
  float* const partials = sequence.partials + head / sizes.group * sequence.nchunks * stride +
                          (token * sizes.group + head % sizes.group) * sizes.partial;
  float most = partials[begin * stride + padded];
  for (int64_t chunk = begin + 1; chunk < chunks; ++chunk) {
    const float maximum = partials[chunk * stride + padded];
    most = maximum > most ? maximum : most;
  }
  T* const out = static_cast<T*>(args.out) + sequence.batch_idx * args.out_stride_batch +
                 token * args.out_stride_token + head * args.out_stride_head;
  float total = 0.0f;
  for (int64_t chunk = begin; chunk < chunks; ++chunk) {
    float* partial = partials + chunk * stride;
    partial[padded] = exp(partial[padded] - most);  // from here on the chunk's weight
    total += partial[padded] * partial[padded + 1];
  }
  for (int64_t d = 0; d < args.head_dim; d += kLanes) {
    vec16 sums = broadcast(0.0f);
    for (int64_t chunk = begin; chunk < chunks; ++chunk) {
      const float* partial = partials + chunk * stride;
      sums = fma(broadcast(partial[padded]), load(partial + d), sums);
    }
    store_first(out + d, div(sums, broadcast(total)), lanes_left(args.head_dim - d));
  }
}

}  // namespace

void attend_chunk(const llamba_attention_step_args& args, const AttentionSizes& sizes,
                  const AttentionSequence& sequence, int64_t kv_head, int64_t chunk, float* scratch) {
  LLAMBA_SWITCH_DTYPE(args.dtype, T, attend<T>(args, sizes, sequence, kv_head, chunk, scratch));
}

void combine_chunks(const llamba_attention_step_args& args, const AttentionSizes& sizes,
                    const AttentionSequence& sequence, int64_t begin, int64_t end) {
  for (int64_t head = begin; head < end; ++head) {
    for (int64_t token = 0; token < sequence.ntokens; ++token) {
      LLAMBA_SWITCH_DTYPE(args.dtype, T, combine<T>(args, sizes, sequence, head, token));
    }
  }
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
