// SPDX-License-Identifier: MIT
#include "torch/store.h"

#include "base/error.h"

namespace pycomm {

C10dStore::C10dStore(c10::intrusive_ptr<c10d::Store> store, int rank) : store_(std::move(store)) {
  const auto generation = store_->add("pycomm/generation/" + std::to_string(rank), 1);
  prefix_ = "pycomm/" + std::to_string(generation) + "/";
}

void C10dStore::set(const std::string& key, const std::string& value) {
  store_->set(prefix_ + key, std::vector<uint8_t>(value.begin(), value.end()));
}

std::string C10dStore::get(const std::string& key, Deadline deadline) {
  const auto left = std::chrono::milliseconds(std::max(1, deadline.remaining_ms_at_most(1 << 30)));
  try {
    store_->wait({prefix_ + key}, left);
  } catch (const std::exception& error) {
    if (!deadline.expired()) throw;  // the store itself is gone: its own words say more
    throw CommError(
        Failure{FailureKind::timeout, "nobody set " + prefix_ + key + " in the store in time", {}});
  }
  const auto value = store_->get(prefix_ + key);
  return std::string(value.begin(), value.end());
}

}  // namespace pycomm
