// SPDX-License-Identifier: MIT
// Uses a plan of a small group as a part of a larger one, by renaming its ranks and chunks.
// Pure; any thread.
#pragma once

#include <vector>

#include "plan/plan.h"

namespace pycomm {

struct Embedding {
  int world_size = 1;                    // of the larger plan
  int work_chunks = 1;                   // of the larger plan
  std::vector<int> ranks;                // rank of the part -> rank of the whole
  std::vector<std::vector<int>> chunks;  // work chunk of the part -> those of the whole it covers
  bool keeps_completes = true;           // false: the part's sums are not yet everybody's
};

// A chunk that covers several becomes that many steps; a fold becomes that many folds.
Plan embed(const Plan& part, const Embedding& embedding);

}  // namespace pycomm
