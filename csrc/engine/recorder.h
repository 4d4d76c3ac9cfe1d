// SPDX-License-Identifier: MIT
// The flight recorder: the last kRecorderEntries operations of a group and how far each came.
// Always on, fixed memory, dumped as JSON on a failure (PYCOMM_FLIGHT_DIR) and on request.
//
// Any thread, and none waits: an entry is one cache line of plain stores, and who dumps leaves out
// an entry that is rewritten meanwhile.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "base/limits.h"
#include "base/ticks.h"
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
  struct alignas(kCacheLineBytes) Entry {
    std::atomic<uint64_t> sequence{0};
    std::atomic<uint64_t> count{0};
    std::atomic<const char*> algorithm{""};  // the plan's, which lives as long as the engine
    std::atomic<uint64_t> submitted{0}, started{0}, finished{0};  // ticks; 0: not yet
    std::atomic<int> root{0};
    std::atomic<int> peer{0};
    std::atomic<Collective> collective{};
    std::atomic<ReduceOp> op{};
    std::atomic<DType> dtype{};
    std::atomic<FailureKind> failure{};
    std::atomic<uint32_t> holds{0};  // which record; 0: none, or it is being written
  };
  static_assert(sizeof(Entry) == kCacheLineBytes);

  static uint32_t mark_of(size_t record) { return static_cast<uint32_t>(record) | 1u << 31; }
  Entry* entry_of(size_t record);
  std::string describe(size_t record, double us_per_tick) const;

  const TickScale scale_;
  std::vector<Entry> entries_;
  std::atomic<size_t> next_{0};
};

// The text as a JSON string, quotes included.
std::string json_quote(const std::string& text);

}  // namespace pycomm
