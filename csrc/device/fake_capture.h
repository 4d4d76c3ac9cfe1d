// SPDX-License-Identifier: MIT
// Capture on the fake GPU: what streams would do is written down, and a graph plays it again.
//
// A graph is one list in the order of the calls, played on one stream. That is one of the orders
// CUDA may choose: it never shows that two branches of a graph could overlap. A stream joins a
// capture when it waits for an event recorded in it, and must be joined back before the end, as on
// CUDA. All under the device's mutex; a finished graph is immutable.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "device/fake_stream.h"

namespace pycomm {

struct FakeGraph {
  std::vector<FakeTask> tasks;
};

struct FakeCapture {
  uint64_t id = 0;
  FakeStream* origin = nullptr;
  std::string invalid;  // why it will not become a graph
  FakeGraph graph;
  // Tasks of each stream that takes part, and how many of every other's came before its last one.
  struct Member {
    size_t tasks = 0;
    std::map<const FakeStream*, size_t> seen;
  };
  std::map<FakeStream*, Member> members;

  void add(FakeStream* stream, FakeTask task);
  // The event now stands for the end of what `stream` has captured.
  void record(FakeStream* stream, FakeEvent& event);
  void wait(FakeStream* stream, const FakeEvent& event);
  // Whether some stream has work that the origin does not wait for.
  bool unjoined() const;
};

}  // namespace pycomm
