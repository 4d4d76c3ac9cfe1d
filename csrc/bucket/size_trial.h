// SPDX-License-Identifier: MIT
// Finds the bucket size with which backward is fastest by trying a few in the first steps.
//
// Every rank records the seconds of its own backwards; when all sizes have been tried the ranks
// exchange what they found (the slowest rank counts) and decide by the same numbers, so that they
// agree. Plain state; one thread at a time.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace pycomm {

class SizeTrial {
 public:
  // Bytes to try; the first one stays unless another is faster by kTrialGain. One alone is settled.
  explicit SizeTrial(std::vector<size_t> sizes);

  size_t size() const { return sizes_[at_]; }
  bool settled() const { return settled_; }
  // Of a backward with size(). The first with a size is not counted, since its buckets are new.
  // True when size() has changed, or when all are tried and decide() is due.
  bool record(double seconds);
  bool complete() const { return tried_ == sizes_.size(); }
  // The fastest backward of each size so far; this is what ranks exchange, keeping the maximum.
  std::span<double> seconds() { return seconds_; }
  // By seconds(). Settles size().
  void decide();

 private:
  std::vector<size_t> sizes_;
  std::vector<double> seconds_;
  size_t at_ = 0, tried_ = 0;
  int backwards_ = 0;  // with this size
  bool settled_ = false;
};

}  // namespace pycomm
