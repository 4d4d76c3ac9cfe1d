// SPDX-License-Identifier: MIT
// The trial of bucket sizes, driven by made-up times.
#include <algorithm>

#include "base/limits.h"
#include "bucket/size_trial.h"
#include "check.h"

using namespace pycomm;

namespace {

// Runs a trial in which size k takes seconds[k]; returns the size that it settles on.
size_t settles_on(std::vector<size_t> sizes, const std::vector<double>& seconds) {
  SizeTrial trial(sizes);
  for (int i = 0; i < 1000 && !trial.settled(); ++i) {
    size_t now = 0;
    while (sizes[now] != trial.size()) ++now;
    if (trial.record(seconds[now]) && trial.complete()) trial.decide();
  }
  CHECK(trial.settled(), "no end");
  return trial.size();
}

}  // namespace

TEST("the fastest size wins, and the first one unless another is clearly faster") {
  CHECK(settles_on({4, 1, 16}, {1.0, 0.5, 0.7}) == 1, "");
  CHECK(settles_on({4, 1, 16}, {1.0, 0.8, 0.7}) == 16, "");
  CHECK(settles_on({4, 1, 16}, {1.0, 2.0, 1.0 - kTrialGain / 2}) == 4, "within noise");
}

TEST("the first backward with a size does not count, the fastest of the others does") {
  SizeTrial trial({4, 1});
  CHECK(!trial.record(0.001), "new buckets");
  for (int i = 1; i < kTrialBackwards; ++i) CHECK(!trial.record(3.0 + i), "not yet");
  CHECK(trial.record(2.0) && trial.size() == 1 && !trial.complete(), "the next size");
  CHECK(trial.seconds()[0] == 2.0, trial.seconds()[0]);
}

TEST("ranks that exchange the maximum of their times decide alike") {
  SizeTrial a({4, 1}), b({4, 1});
  while (!a.complete()) {
    a.record(a.size() == 4 ? 1.0 : 0.5);
    b.record(b.size() == 4 ? 1.0 : 3.0);
  }
  for (size_t i = 0; i < 2; ++i) {
    a.seconds()[i] = b.seconds()[i] = std::max(a.seconds()[i], b.seconds()[i]);
  }
  a.decide();
  b.decide();
  CHECK(a.size() == 4 && b.size() == 4, "the slowest rank counts");
}

TEST("a single size is settled at once") {
  SizeTrial trial({7});
  CHECK(trial.settled() && trial.size() == 7 && !trial.record(1.0), "");
}
