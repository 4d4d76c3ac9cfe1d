// SPDX-License-Identifier: MIT
#include "bucket/size_trial.h"

#include <algorithm>

#include "base/limits.h"

namespace pycomm {

SizeTrial::SizeTrial(std::vector<size_t> sizes)
    : sizes_(std::move(sizes)), seconds_(sizes_.size(), 0), settled_(sizes_.size() < 2) {}

bool SizeTrial::record(double seconds) {
  if (settled_ || complete()) return false;
  if (++backwards_ == 1) return false;
  double& best = seconds_[at_];
  best = backwards_ == 2 ? seconds : std::min(best, seconds);
  if (backwards_ <= kTrialBackwards) return false;
  backwards_ = 0;
  if (++tried_ < sizes_.size()) at_ = tried_;
  return true;
}

void SizeTrial::decide() {
  at_ = 0;
  for (size_t i = 1; i < sizes_.size(); ++i) {
    const double bound = at_ == 0 ? seconds_[0] * (1 - kTrialGain) : seconds_[at_];
    if (seconds_[i] < bound) at_ = i;
  }
  settled_ = true;
}

}  // namespace pycomm
