// SPDX-License-Identifier: MIT
// An operation that somebody else carries out, a device for one: the engine gives it its place
// among the group's operations, waits for its end, and looks after its deadline and the peers it
// waits for.
//
// Called by the one thread of the engine that attends to the operation; shared with the operation.
#pragma once

#include <vector>

#include "base/error.h"

namespace pycomm {

class Watched {
 public:
  virtual ~Watched() = default;
  // Plain loads.
  virtual bool over() = 0;
  // What it waits for now, as ranks. This rank: for what was called here before it.
  virtual std::vector<int> awaited() = 0;
  // What the device itself found out, empty as a rule. Plain loads.
  virtual Failure fault() = 0;
  // Somebody has given it up already, and is about to say why.
  virtual bool given_up() = 0;
  // How it is carried out, for the flight recorder. Lives as long as the program.
  virtual const char* label() const = 0;
};

}  // namespace pycomm
