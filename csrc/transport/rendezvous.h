// SPDX-License-Identifier: MIT
// What the ranks of a group tell each other through the store during set-up: their addresses, that
// one of them has failed, and that all are connected. Set-up thread only.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/error.h"
#include "transport/address.h"
#include "transport/patience.h"
#include "transport/store.h"

namespace pycomm {

class Rendezvous {
 public:
  Rendezvous(Store& store, PeerAddress mine, Deadline deadline);

  // Publishes `mine` and returns the addresses of all ranks. Throws CommError: timeout with the
  // ranks that did not come, or mismatch.
  std::vector<PeerAddress> exchange(const PeerAddress& mine);
  // Returns when every rank has called it; `look` is called while waiting. Throws
  // CommError(timeout), which is no cause to tell others of.
  void finish(const std::function<void()>& look, const Patience& patience);
  // Throws what another rank has told.
  void look();
  // All ranks are connected: whatever ends now is no failure of set-up.
  bool finished() { return store_.has(kFinished); }
  // Tells all others why this rank cannot go on, unless it was told itself. Never throws: a store
  // that is gone is what this rank fails of then.
  void tell(const Failure& failure) noexcept;

 private:
  // Returns when the key exists.
  void await(const std::string& key, const std::function<void()>& look);

  static constexpr const char* kFailed = "pycomm/failed";
  static constexpr const char* kConnected = "pycomm/connected";
  static constexpr const char* kFinished = "pycomm/finished";

  Store& store_;
  PeerAddress mine_;
  Deadline deadline_;
  bool told_ = false;
};

}  // namespace pycomm
