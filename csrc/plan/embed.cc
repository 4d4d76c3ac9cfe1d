// SPDX-License-Identifier: MIT
#include "plan/embed.h"

#include "base/error.h"
#include "plan/fold.h"

namespace pycomm {
namespace {

// Chunk lists of the whole, for each work and each scratch chunk of the part.
struct ChunkMap {
  ChunkMap(const Plan& part, const Embedding& embedding, std::vector<int>* scratch_like)
      : work(embedding.chunks) {
    for (const int like : part.scratch_like) {
      scratch.emplace_back();
      const auto likes =
          like == kToken ? std::vector<int>{kToken} : work[static_cast<size_t>(like)];
      for (const int new_like : likes) {
        scratch.back().push_back(static_cast<int>(scratch_like->size()));
        scratch_like->push_back(new_like);
      }
    }
  }

  const std::vector<int>& covered(ChunkRef chunk) const {
    return (chunk.buffer == Buffer::work ? work : scratch)[static_cast<size_t>(chunk.index)];
  }

  std::vector<std::vector<int>> work;
  std::vector<std::vector<int>> scratch;
};

}  // namespace

Plan embed(const Plan& part, const Embedding& embedding) {
  PYCOMM_ASSERT(static_cast<int>(embedding.chunks.size()) == part.work_chunks, part.work_chunks,
                " chunks, ", embedding.chunks.size(), " named");
  PYCOMM_ASSERT(static_cast<int>(embedding.ranks.size()) == part.world_size, part.world_size,
                " ranks, ", embedding.ranks.size(), " named");
  Plan whole = part;
  whole.world_size = embedding.world_size;
  whole.rank = embedding.ranks[static_cast<size_t>(part.rank)];
  whole.root = embedding.ranks[static_cast<size_t>(part.root)];
  whole.work_chunks = embedding.work_chunks;
  whole.scratch_like.clear();
  whole.steps.clear();
  const ChunkMap map(part, embedding, &whole.scratch_like);
  // Invariant: steps before `first` are written. Going piece by piece through a whole fold, rather
  // than through each of its steps, keeps the recv_reduce of one piece together.
  for (size_t first = 0, end = 0; first < part.steps.size(); first = end) {
    end = fold_end(part.steps, first);
    const size_t pieces = map.covered(part.steps[first].chunk).size();
    for (size_t piece = 0; piece < pieces; ++piece) {
      for (size_t i = first; i < end; ++i) {
        Step step = part.steps[i];
        step.chunk.index = map.covered(step.chunk)[piece];
        if (step.peer >= 0) {
          step.peer = embedding.ranks[static_cast<size_t>(step.peer)];
        } else {
          step.source.index = map.covered(step.source)[piece];
        }
        step.completes = step.completes && embedding.keeps_completes;
        whole.steps.push_back(step);
      }
    }
  }
  return whole;
}

}  // namespace pycomm
