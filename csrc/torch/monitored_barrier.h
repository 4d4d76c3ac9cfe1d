// SPDX-License-Identifier: MIT
// A barrier that says who did not come, and leaves the group as it was: later collectives work.
//
// Rank 0 collects arrivals, every other rank learns from it how it ended, all through the store:
// a rank that is stuck in a collective cannot be asked over the group's own links without an
// operation of its own. For finding out which rank is stuck, not for speed. Caller's thread, blocks
// for at most twice the timeout.
#pragma once

#include <functional>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "base/deadline.h"
#include "base/error.h"

namespace pycomm {

struct MonitoredBarrier {
  c10::intrusive_ptr<c10d::Store> store;
  std::string round;  // key prefix, the same on all ranks and never used before
  int rank = 0;
  int world_size = 1;
  std::chrono::milliseconds timeout{0};
  bool wait_all_ranks = false;           // wait for all to the deadline, then name each
  std::function<Failure()> group_state;  // ends the wait as soon as the group has failed

  // Throws CommError(timeout) that names who is missing, on every rank that came; or the group's
  // failure.
  void run() const;
  // Removes this round's keys; for rank 0, once every rank has left it.
  void clean() const;

 private:
  void collect() const;
  void follow() const;
  std::string key(int rank) const;
  bool wait_for(const std::string& key, Deadline deadline) const;
};

}  // namespace pycomm
