// SPDX-License-Identifier: MIT
// How long a wait of set-up may take, and what it looks at meanwhile: a rank that has failed says
// so in the store, and then nobody goes on waiting. Used by the set-up thread.
#pragma once

#include <functional>
#include <thread>
#include <utility>

#include "base/deadline.h"
#include "base/limits.h"

namespace pycomm {

class Patience {
 public:
  // `look` throws when somebody else has failed. Implicit: a deadline alone is patience enough.
  Patience(Deadline deadline, std::function<void()> look = {})
      : deadline_(deadline), look_(std::move(look)) {}

  Deadline deadline() const { return deadline_; }
  bool expired() const { return deadline_.expired(); }
  // For one poll() of a loop that calls glance() each time round.
  int slice_ms() const {
    return deadline_.remaining_ms_at_most(static_cast<int>(
        std::chrono::duration_cast<std::chrono::milliseconds>(kSetupSlice).count()));
  }
  // Looks, unless it did so within kSetupSlice.
  void glance() {
    if (!look_ || !next_.expired()) return;
    next_ = Deadline::after(kSetupSlice);
    look_();
  }
  // A connection broke or did not come: whoever is at fault may be about to say why.
  void ask_why() const {
    if (!look_) return;
    for (const auto until = Deadline::after(kSetupEchoPatience); !until.expired();) {
      look_();
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

 private:
  Deadline deadline_;
  std::function<void()> look_;
  Deadline next_ = Deadline::after(kSetupSlice);
};

}  // namespace pycomm
