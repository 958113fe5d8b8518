// The order in which a recurrent kernel visits a sequence's tokens, in chunks whose inputs fit the shared memory: first
// the live rows, then a chain's tokens. A tree's come depth first, so that most find their parent's state in hand;
// elsewhere the path from the committed context is walked again. A token in a chunk has a place there, however often it
// is visited.
#pragma once

#include "cursor/cursor_step.cuh"

namespace llamba {
namespace {

constexpr int32_t kMostTree = 64;                       // tokens of a step with parents
constexpr int32_t kMostVisits = 64;                     // of a chunk of a tree
enum Visit { kPlace = 31, kEmit = 32, kRestart = 64 };  // bits of a visit: place of the token; its output is wanted;
                                                        // the state is the committed one first

struct TreeVisits {
  int8_t parent[kMostTree], depth[kMostTree];    // of the step's tokens; parent -1: the committed context
  int8_t order[kMostTree];                       // depth first
  int8_t path[kMostTree];                        // tokens from the root to the last one that was emitted
  int8_t next[kMostTree], child[kMostTree + 1];  // siblings; first children, of the committed context at [kMostTree]
  int8_t place[kMostTree];                       // of a token in this chunk; -1: none
  // ---- the chunk ----
  int8_t token[kPlace + 1];  // [nplaces]
  uint8_t visits[kMostVisits];
  int32_t nplaces, nvisits;
  uint32_t emitted;  // bit p: the token at place p gives its output in this chunk
  // ---- how far the chunks have come ----
  int32_t done;    // tokens emitted
  int32_t walked;  // tokens of the next one's path that have been walked again
};

// By one thread.
__device__ inline void order_tree(const Step& step, TreeVisits& tree) {
  for (int32_t i = 0; i <= kMostTree; ++i) tree.child[i] = -1;
  for (int32_t i = 0; i < step.ntokens; ++i) {
    const int32_t parent = parent_of(step, step.live + i) - step.live;
    tree.parent[i] = static_cast<int8_t>(parent < 0 ? -1 : parent);
    tree.depth[i] = static_cast<int8_t>(parent < 0 ? 0 : tree.depth[parent] + 1);
  }
  for (int32_t i = step.ntokens - 1; i >= 0; --i) {
    const int32_t parent = tree.parent[i] < 0 ? kMostTree : tree.parent[i];
    tree.next[i] = tree.child[parent];
    tree.child[parent] = static_cast<int8_t>(i);
  }
  int32_t token = tree.child[kMostTree];
  for (int32_t count = 0; token >= 0; ++count) {
    tree.order[count] = static_cast<int8_t>(token);
    if (tree.child[token] >= 0) {
      token = tree.child[token];
    } else {
      while (token >= 0 && tree.next[token] < 0) token = tree.parent[token];
      if (token >= 0) token = tree.next[token];
    }
  }
  tree.done = tree.walked = 0;
}

// The next chunk, by one thread. places: of tokens that fit.
__device__ inline void fill_chunk(const Step& step, int32_t places, TreeVisits& tree) {
  for (int32_t i = 0; i < step.ntokens; ++i) tree.place[i] = -1;
  tree.nplaces = tree.nvisits = 0;
  tree.emitted = 0;
  while (tree.done < step.ntokens && tree.nvisits < kMostVisits) {
    const int32_t token = tree.order[tree.done], depth = tree.depth[token];
    const bool in_hand = tree.done == 0 || tree.parent[token] == tree.order[tree.done - 1];
    const bool emit = in_hand || tree.walked == depth;
    const int32_t visited = emit ? token : tree.path[tree.walked];
    int32_t place = tree.place[visited];
    if (place < 0) {
      if (tree.nplaces == places) break;
      place = tree.nplaces++;
      tree.place[visited] = static_cast<int8_t>(place);
      tree.token[place] = static_cast<int8_t>(visited);
    }
    const int32_t restart = !in_hand && tree.walked == 0 ? kRestart : 0;
    tree.visits[tree.nvisits++] = static_cast<uint8_t>(place | restart | (emit ? kEmit : 0));
    ++tree.walked;
    if (!emit) continue;
    tree.emitted |= 1u << place;
    tree.path[depth] = static_cast<int8_t>(token);
    tree.walked = 0;
    ++tree.done;
  }
}

// Tokens that are in shared memory together.
struct Chunk {
  int32_t first;  // chain: the token at place 0
  int32_t nplaces;
  int32_t nvisits;
  uint32_t emitted;  // bit p: the token at place p gives an output
  bool tree;
};

// How far a walk through a step has come. Barriers: none for a chain, two for each chunk of a tree.
struct Walk {
  int32_t chained;        // tokens before the tree, or all
  int32_t done, emitted;  // of the chained ones; of the tree's
  bool tree, first_of_tree;
};

__device__ __forceinline__ Walk begin_walk(const Step& step, TreeVisits& tree) {
  Walk walk{};
  walk.tree = step.valid && step.parents != nullptr && step.ntokens > 0;
  walk.chained = !step.valid ? 0 : walk.tree ? step.live : step.live + step.ntokens;
  if (walk.tree && threadIdx.x == 0) order_tree(step, tree);
  return walk;
}

// The next chunk of at most `places` tokens; false: there is none.
__device__ __forceinline__ bool next_chunk(const Step& step, int32_t places, Walk& walk, TreeVisits& tree,
                                           Chunk& chunk) {
  chunk.tree = walk.done == walk.chained;
  if (!chunk.tree) {
    chunk.first = walk.done;
    chunk.nvisits = chunk.nplaces = walk.chained - walk.done < places ? walk.chained - walk.done : places;
    walk.done += chunk.nplaces;
    const int32_t live_places = step.live - chunk.first < 0 ? 0 : step.live - chunk.first;
    chunk.emitted = live_places < 32 ? ((1u << chunk.nplaces) - 1) >> live_places << live_places : 0;
    return true;
  }
  if (!walk.tree || walk.emitted >= step.ntokens) return false;
  walk.first_of_tree = walk.emitted == 0;
  __syncthreads();  // the last chunk's list has been read, also by those that store its outputs
  if (threadIdx.x == 0) fill_chunk(step, places, tree);
  __syncthreads();  // the chunk's list is written before it is read
  chunk.nplaces = tree.nplaces;
  chunk.nvisits = tree.nvisits;
  chunk.emitted = tree.emitted;
  for (uint32_t rest = chunk.emitted; rest != 0; rest &= rest - 1) ++walk.emitted;
  return true;
}

// The token at a place, numbered as in the row table.
__device__ __forceinline__ int32_t token_at(const Step& step, const Chunk& chunk, const TreeVisits& tree, int32_t p) {
  return chunk.tree ? step.live + tree.token[p] : chunk.first + p;
}
__device__ __forceinline__ int32_t visit_at(const Chunk& chunk, const TreeVisits& tree, int32_t v) {
  return chunk.tree ? tree.visits[v] : v | (chunk.emitted >> v & 1) * kEmit;
}

}  // namespace
}  // namespace llamba
