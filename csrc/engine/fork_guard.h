// SPDX-License-Identifier: MIT
// What fork does to a group: nothing survives in the child but copies of descriptors.
//
// The child must not use the group (its threads are gone) and must not keep the control sockets
// open either: peers on other hosts see a rank's death by the end of its connection, and a data
// loader's worker that outlives its parent would hide it. A ForkGuard closes them in the child. Any
// thread may construct and destroy guards; the handlers run around fork().
#pragma once

#include <vector>

namespace pycomm {

class ForkGuard {
 public:
  // In every child forked during the guard's life `descriptors` refer to /dev/null.
  explicit ForkGuard(std::vector<int> descriptors);
  ~ForkGuard();
  ForkGuard(const ForkGuard&) = delete;
  ForkGuard& operator=(const ForkGuard&) = delete;

  // True in a child forked after the guard was made.
  bool forked() const;

 private:
  friend struct ForkHandlers;
  const std::vector<int> descriptors_;
  const int born_in_;
};

}  // namespace pycomm
