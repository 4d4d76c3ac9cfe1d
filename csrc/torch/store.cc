// SPDX-License-Identifier: MIT
#include "torch/store.h"

#include "base/error.h"

namespace pycomm {

c10::intrusive_ptr<c10d::Store> connection_of_own(const c10::intrusive_ptr<c10d::Store>& store) {
  try {
    return store->clone();
  } catch (const std::exception&) {
    return store;
  }
}
namespace {

// What the store says when it is gone names neither the store nor what that means for the group.
template <class Ask>
auto ask(Ask ask_it) {
  try {
    return ask_it();
  } catch (const std::exception& error) {
    const std::string words = error.what();
    throw CommError(
        Failure{FailureKind::system,
                "the store failed, perhaps because the process that serves it (rank 0 or "
                "the launcher) has ended: " +
                    words.substr(0, words.find('\n')),
                {}});
  }
}

}  // namespace

C10dStore::C10dStore(c10::intrusive_ptr<c10d::Store> store, int rank) : store_(std::move(store)) {
  const auto generation = store_->add("pycomm/generation/" + std::to_string(rank), 1);
  prefix_ = "pycomm/" + std::to_string(generation) + "/";
}

void C10dStore::set(const std::string& key, const std::string& value) {
  ask([&] { store_->set(prefix_ + key, std::vector<uint8_t>(value.begin(), value.end())); });
}

std::string C10dStore::get(const std::string& key, Deadline deadline) {
  const auto left = std::chrono::milliseconds(std::max(1, deadline.remaining_ms_at_most(1 << 30)));
  const auto value = ask([&]() -> std::vector<uint8_t> {
    try {
      store_->wait({prefix_ + key}, left);
    } catch (const std::exception&) {
      if (!deadline.expired()) throw;
      return {};
    }
    return store_->get(prefix_ + key);
  });
  if (!value.empty()) return std::string(value.begin(), value.end());
  throw CommError(
      Failure{FailureKind::timeout, "nobody set " + prefix_ + key + " in the store in time", {}});
}

bool C10dStore::has(const std::string& key) {
  return ask([&] { return store_->check({prefix_ + key}); });
}

int64_t C10dStore::add(const std::string& key, int64_t amount) {
  return ask([&] { return store_->add(prefix_ + key, amount); });
}

}  // namespace pycomm
