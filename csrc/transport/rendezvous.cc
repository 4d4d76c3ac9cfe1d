// SPDX-License-Identifier: MIT
#include "transport/rendezvous.h"

#include <algorithm>
#include <sstream>
#include <thread>

#include "base/limits.h"
#include "base/log.h"

namespace pycomm {
namespace {

std::string address_key(int rank) { return "pycomm/address/" + std::to_string(rank); }

void expect_same_settings(const PeerAddress& mine, const PeerAddress& theirs, int peer) {
  const auto expect_same = [&](const char* what, auto here, auto there) {
    if (here == there) return;
    throw CommError(
        Failure{FailureKind::mismatch,
                str("rank ", peer, " has ", what, " ", there, ", rank ", mine.rank, " has ", here,
                    "; all ranks need the same pycomm version and settings"),
                {peer}});
  };
  expect_same("protocol version", mine.version, theirs.version);
  expect_same("rank", peer, theirs.rank);
  expect_same("world size", mine.world_size, theirs.world_size);
  expect_same("segment bytes", mine.segment_bytes, theirs.segment_bytes);
  expect_same("PYCOMM_SEGMENT_BYTES given", mine.segment_exact, theirs.segment_exact);
  expect_same("slots", mine.slots, theirs.slots);
  expect_same("tcp connections", mine.tcp_connections, theirs.tcp_connections);
  expect_same("transports", mine.transports, theirs.transports);
}

// One line for each part; the text may have several and comes last.
std::string serialize(const Failure& failure, const std::string& who) {
  std::string ranks;
  for (const int rank : failure.ranks) ranks += std::to_string(rank) + " ";
  return str(static_cast<int>(failure.kind), "\n", ranks, "\n", who, "\n", failure.text);
}

Failure parse_failure(const std::string& value) {
  std::istringstream in(value);
  std::string ranks, who, text;
  int kind = 0;
  in >> kind;
  in.ignore();
  std::getline(in, ranks);
  std::getline(in, who);
  std::getline(in, text, '\0');
  Failure failure;
  failure.kind = kind >= 1 && kind <= static_cast<int>(FailureKind::system)
                     ? static_cast<FailureKind>(kind)
                     : FailureKind::system;
  std::istringstream numbers(ranks);
  for (int rank = 0; numbers >> rank;) failure.ranks.push_back(rank);
  failure.text = who + " cannot join: " + text;
  return failure;
}

}  // namespace

Rendezvous::Rendezvous(Store& store, PeerAddress mine, Deadline deadline)
    : store_(store), mine_(std::move(mine)), deadline_(deadline) {}

// Asks again and again instead of blocking in the store, because a rank that never comes may have
// said why, and because c10d's TCPStore logs every wait that times out. The pauses grow with the
// wait, so they lengthen it by half at most; they are longer in large groups, which share a store.
void Rendezvous::await(const std::string& key, const std::function<void()>& look) {
  const auto pause_max = std::max<std::chrono::nanoseconds>(
      kSetupPause, kSetupPausePerRank * static_cast<int64_t>(mine_.world_size));
  auto pause = std::chrono::nanoseconds(kSetupPauseFirst);
  for (auto next_look = Deadline::after(kSetupSlice); !store_.has(key);) {
    if (next_look.expired()) {
      look();
      next_look = Deadline::after(kSetupSlice);
    }
    if (deadline_.expired()) {
      look();
      throw CommError(Failure{FailureKind::timeout, str("nobody set ", key, " in time"), {}});
    }
    std::this_thread::sleep_for(std::min(pause, deadline_.remaining()));
    pause = std::min(pause + pause / 2, pause_max);
  }
}

std::vector<PeerAddress> Rendezvous::exchange(const PeerAddress& mine) {
  mine_ = mine;
  store_.set(address_key(mine_.rank), mine_.serialize());
  std::vector<PeerAddress> all;
  for (int peer = 0; peer < mine_.world_size; ++peer) {
    try {
      await(address_key(peer), [this] { look(); });
      all.push_back(PeerAddress::parse(store_.get(address_key(peer), deadline_)));
    } catch (const CommError& error) {
      if (told_ || error.failure().kind != FailureKind::timeout) throw;
      throw CommError(
          Failure{FailureKind::timeout,
                  str("rank ", peer, " did not publish its address in time; did it start?"),
                  {peer}});
    }
    expect_same_settings(mine_, all.back(), peer);
  }
  return all;
}

void Rendezvous::finish(const std::function<void()>& look, const Patience& patience) {
  if (store_.add(kConnected, 1) == mine_.world_size) {
    store_.set(kFinished, "1");
    return;
  }
  try {
    // Not read: whoever serves the store may end as soon as all have it.
    await(kFinished, look);
  } catch (const CommError& error) {
    if (told_ || error.failure().kind != FailureKind::timeout) throw;
    patience.ask_why();
    throw CommError(Failure{FailureKind::timeout,
                            "this rank is connected, but others are not in time, and none of them "
                            "has said why",
                            {}});
  }
}

void Rendezvous::look() {
  if (!store_.has(kFailed)) return;
  const auto value = store_.get(kFailed, Deadline::after(kReachTimeout));
  told_ = true;
  throw CommError(parse_failure(value));
}

void Rendezvous::tell(const Failure& failure) noexcept {
  // A rank that only waited has nothing to tell.
  if (told_ || (failure.kind == FailureKind::timeout && failure.ranks.empty())) return;
  try {
    auto told = failure;
    if (told.ranks.empty()) told.ranks.push_back(mine_.rank);
    if (!store_.has(kFailed)) store_.set(kFailed, serialize(told, mine_.describe()));
  } catch (const std::exception& error) {
    log(LogLevel::debug, mine_.rank, str("could not tell the others: ", error.what()));
  }
}

}  // namespace pycomm
