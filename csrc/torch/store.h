// SPDX-License-Identifier: MIT
// c10d's Store as ours. Every instance counts up a generation for its rank, so that a group made
// anew over the same store and prefix does not read the addresses of the one before. Set-up thread
// only, without the GIL.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include "transport/store.h"

namespace pycomm {

// A client for calls that must not wait for those of other threads, where the store can be cloned;
// stores written in Python cannot.
c10::intrusive_ptr<c10d::Store> connection_of_own(const c10::intrusive_ptr<c10d::Store>& store);

class C10dStore final : public Store {
 public:
  C10dStore(c10::intrusive_ptr<c10d::Store> store, int rank);
  void set(const std::string& key, const std::string& value) override;
  std::string get(const std::string& key, Deadline deadline) override;
  bool has(const std::string& key) override;
  int64_t add(const std::string& key, int64_t amount) override;

 private:
  c10::intrusive_ptr<c10d::Store> store_;
  std::string prefix_;
};

}  // namespace pycomm
