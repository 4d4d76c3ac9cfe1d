// SPDX-License-Identifier: MIT
// One call on a device, ready to be submitted to the engine and then to be put on a stream: through
// the host, by streams and words alone (device_calls.cc), or between hosts (hierarchy_call.h).
// Under the lane's lock, all of it but passed()'s result.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "base/error.h"
#include "engine/operation.h"

namespace pycomm {

class PreparedCall {
 public:
  using Operations = std::vector<std::shared_ptr<Operation>>;

  PreparedCall() = default;
  virtual ~PreparedCall() = default;
  PreparedCall(const PreparedCall&) = delete;
  PreparedCall& operator=(const PreparedCall&) = delete;
  // For the engine; empty: a graph captures it.
  virtual Operations operations() const = 0;
  virtual Failure enqueue(void* stream) = 0;
  // Whether the stream has done with it, which a failure's end of the operations does not say;
  // null: a graph captures it.
  virtual std::function<bool()> passed() const = 0;
};

}  // namespace pycomm
