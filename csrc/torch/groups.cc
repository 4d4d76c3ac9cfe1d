// SPDX-License-Identifier: MIT
// Groups made from a group: split, merge, shrink. Each connects the ranks of the new group anew
// through the store; nothing of the parent is shared, so a parent that has failed can be shrunk.
#include <algorithm>
#include <set>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "torch/backend.h"
#include "torch/store.h"

namespace pycomm {
namespace {

// torch's SHRINK_ABORT.
constexpr int kShrinkAbort = 1;

}  // namespace

Backend::BackendPtr Backend::make_child(const StorePtr& store, int rank, int world_size,
                                        const OptionsPtr& opts) {
  const auto* ours = dynamic_cast<const BackendOptions*>(opts.get());
  // A copy: torch hands one object to every child, and changes it in between.
  auto options = c10::make_intrusive<BackendOptions>(ours ? *ours : *options_);
  if (opts && !ours) {
    options->timeout = opts->timeout;
    options->group_name = opts->group_name;
    options->group_desc = opts->group_desc;
    options->global_ranks_in_group = opts->global_ranks_in_group;
  }
  return c10::make_intrusive<Backend>(store, rank, world_size, std::move(options));
}

Backend::BackendPtr Backend::split(const StorePtr& store, const std::vector<int>& ranks,
                                   const OptionsPtr& opts) {
  const std::set<int> distinct(ranks.begin(), ranks.end());
  PYCOMM_USAGE(!ranks.empty() && distinct.size() == ranks.size(), "split_group: got ", ranks.size(),
               " ranks, ", distinct.size(), " of them different, expected each rank once");
  PYCOMM_USAGE(*distinct.begin() >= 0 && *distinct.rbegin() < getSize(),
               "split_group: got ranks from ", *distinct.begin(), " to ", *distinct.rbegin(),
               ", expected ranks of the parent group, 0 to ", getSize() - 1);
  const auto at = std::find(ranks.begin(), ranks.end(), getRank());
  if (at == ranks.end()) return {};
  const std::lock_guard lock(groups_mutex_);
  // torch before 2.14 asks once for each device type that this object serves, with the same store.
  const auto last = last_split_ ? last_split_->lock() : BackendPtr();
  if (last && static_cast<const Backend&>(*last).store_ == store) return last;
  const auto rank = static_cast<int>(at - ranks.begin());
  auto child = make_child(store, rank, static_cast<int>(ranks.size()), opts);
  last_split_ = c10::weak_intrusive_ptr<c10d::Backend>(child);
  ++split_count_;
  return child;
}

Backend::BackendPtr Backend::merge(const StorePtr& store, const OptionsPtr& opts, const int& rank,
                                   const int& world_size) {
  return make_child(store, rank, world_size, opts);
}

Backend::BackendPtr Backend::shrink(const std::vector<int64_t>& ranks_to_exclude, int shrink_flags,
                                    const OptionsPtr& opts) {
  const std::set<int64_t> excluded(ranks_to_exclude.begin(), ranks_to_exclude.end());
  for (const auto rank : excluded) {
    PYCOMM_USAGE(rank >= 0 && rank < getSize(), "shrink_group: got rank ", rank,
                 " to exclude, expected ranks of the group, 0 to ", getSize() - 1);
  }
  PYCOMM_USAGE(!excluded.count(getRank()), "shrink_group: rank ", getRank(),
               " excludes itself; only the ranks that stay call shrink_group()");
  if (shrink_flags & kShrinkAbort) engine_->abort("shrink_group() was called with SHRINK_ABORT");
  const std::lock_guard lock(groups_mutex_);
  std::string prefix = str("shrink", ++shrink_count_, "/without");
  int rank = getRank();
  for (const auto gone : excluded) {
    prefix += str("_", gone);
    if (gone < getRank()) --rank;
  }
  return make_child(c10::make_intrusive<c10d::PrefixStore>(prefix, connection_of_own(store_)), rank,
                    getSize() - static_cast<int>(excluded.size()), opts);
}

}  // namespace pycomm
