// SPDX-License-Identifier: MIT
#include "torch/monitored_barrier.h"

#include <algorithm>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "base/limits.h"
#include "base/log.h"

namespace pycomm {
namespace {

void publish(c10d::Store& store, const std::string& key, const std::string& value) {
  store.set(key, std::vector<uint8_t>(value.begin(), value.end()));
}

std::string list(const std::vector<int>& ranks) {
  std::string text;
  for (const int rank : ranks) text += str(text.empty() ? "" : ", ", rank);
  return text;
}

std::vector<int> ranks_of(const std::string& text) {
  std::vector<int> ranks;
  std::istringstream in(text);
  for (std::string one; std::getline(in, one, ',');) ranks.push_back(std::stoi(one));
  return ranks;
}

}  // namespace

std::string MonitoredBarrier::key(int rank) const { return round + std::to_string(rank); }

bool MonitoredBarrier::wait_for(const std::string& key, Deadline deadline) const {
  // Asked again and again rather than waited for: a client of the store that waits keeps the other
  // threads of this process from using it.
  for (std::chrono::milliseconds pause = kStorePollMin;;
       pause = std::min(pause * 2, kStorePollMax)) {
    if (store->check({key})) return true;
    if (deadline.expired()) return false;
    if (const auto failure = group_state()) throw CommError(failure);
    std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(pause, deadline.remaining()));
  }
}

void MonitoredBarrier::run() const {
  if (world_size == 1) return;
  publish(*store, key(rank), "here");
  if (rank == 0) {
    collect();
  } else {
    follow();
  }
}

void MonitoredBarrier::collect() const {
  const auto deadline = Deadline::after(timeout);
  std::vector<int> missing;
  for (int peer = 1; peer < world_size; ++peer) {
    if (!wait_for(key(peer), deadline)) missing.push_back(peer);
    if (!missing.empty() && !wait_all_ranks) break;
  }
  publish(*store, round + "verdict", list(missing));
  if (missing.empty()) return;
  const auto who = wait_all_ranks ? str("Ranks ", list(missing)) : str("Rank ", missing.front());
  std::string text = str("monitored_barrier: ", who, " failed to pass monitoredBarrier in ",
                         timeout.count(), " ms");
  if (timeout.count() == 0) {
    text =
        str("monitored_barrier: Rank 0 timed out in monitoredBarrier: with a timeout of 0 ms no "
            "rank has time to come (",
            who, " had not)");
  }
  throw CommError({FailureKind::timeout, text, missing});
}

void MonitoredBarrier::follow() const {
  const auto reached = str("monitored_barrier: Rank ", rank,
                           " successfully reached monitoredBarrier, but received errors while "
                           "waiting for send/recv from rank 0: ");
  if (!wait_for(key(0), Deadline::after(timeout))) {
    throw CommError({FailureKind::timeout,
                     str(reached, "rank 0 did not come in ", timeout.count(), " ms"),
                     {0}});
  }
  // Rank 0 may have begun to wait later than we did.
  if (!wait_for(round + "verdict", Deadline::after(timeout + kVerdictPatience))) {
    throw CommError({FailureKind::timeout,
                     str(reached, "rank 0 came, but gave no verdict in ", timeout.count(), " ms"),
                     {0}});
  }
  const auto value = store->get(round + "verdict");
  const std::string missing(value.begin(), value.end());
  if (missing.empty()) return;
  throw CommError({FailureKind::timeout, str(reached, "it waited in vain for rank ", missing),
                   ranks_of(missing)});
}

void MonitoredBarrier::clean() const {
  try {
    for (int peer = 0; peer < world_size; ++peer) store->deleteKey(key(peer));
    store->deleteKey(round + "verdict");
  } catch (const std::exception& error) {
    // Some stores cannot delete: their keys stay.
    log(LogLevel::debug, rank, str("monitored_barrier leaves keys in the store: ", error.what()));
  }
}

}  // namespace pycomm
