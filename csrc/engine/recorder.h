// SPDX-License-Identifier: MIT
// The flight recorder: the last kRecorderEntries operations of a group and how far each came.
// Always on, fixed memory, dumped as JSON on a failure (PYCOMM_FLIGHT_DIR) and on request.
// Thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "engine/operation.h"

namespace pycomm {

class Recorder {
 public:
  explicit Recorder(int entries);

  // Returns the entry's index, to be given back to started() and finished().
  size_t submitted(const Operation& operation);
  // Its operation was overtaken by another before it began.
  void renumbered(size_t record, uint64_t sequence);
  void started(size_t record, const char* algorithm);
  void finished(size_t record, const Failure& failure);

  // {"rank":..., "world_size":..., "entries":[{"sequence":..., "collective":..., ...}, ...]},
  // oldest first. Times are microseconds since the recorder was made; -1 where it has not happened.
  std::string to_json(int rank, int world_size, const Failure& group_failure) const;

 private:
  struct Entry {
    uint64_t sequence = 0;
    uint64_t count = 0;
    Collective collective{};
    ReduceOp op{};
    DType dtype{};
    FailureKind failure{};
    int root = 0;
    int peer = 0;
    const char* algorithm = "";  // the plan's, which lives as long as the engine
    double submitted_us = -1, started_us = -1, finished_us = -1;
  };
  double now_us() const;

  const std::chrono::steady_clock::time_point origin_ = std::chrono::steady_clock::now();
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
  size_t next_ = 0;
};

// The text as a JSON string, quotes included.
std::string json_quote(const std::string& text);

}  // namespace pycomm
