// The order in which the recurrent kernel visits a tree's tokens: depth first, so that most tokens find their parent's
// state in hand. Elsewhere the path from the committed context is walked again. Visits come in chunks whose conv
// outputs fit the shared memory: a token in a chunk has a place there, however often it is visited.
#pragma once

#include "mamba2_verify/mamba2_cuda.h"
#include "mamba2_verify/mamba2_tokens.cuh"

namespace llamba {
namespace {

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
__device__ inline void order_tree(const Mamba2Step& step, TreeVisits& tree) {
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
__device__ inline void fill_chunk(const Mamba2Step& step, int32_t places, TreeVisits& tree) {
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

}  // namespace
}  // namespace llamba
