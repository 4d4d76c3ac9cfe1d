// SPDX-License-Identifier: MIT
// The words by which the ranks that work together on devices keep step: in shared memory of the
// host that every rank maps and registers with its device, so that streams wait for them, streams
// and threads write them, and nobody needs a call of CUDA to see how far a peer is.
//
// Pieces of operations are numbered through the life of a group, alike on all ranks. Words that
// count hold such a number and only grow: what waits for 7 goes on at 9. Words of captured work
// hold 1 or 0, since a graph writes the same values at each replay; each has one writer and one
// reader, and the reader's stream sets it back.
// break_up() releases every stream for good: it must be repeated, because a stream that goes on may
// overwrite what was stored. Any thread; plain loads and stores only, but for the constructor and
// unregister().
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "base/limits.h"
#include "device/device.h"
#include "engine/signature.h"
#include "kernels/device_peers.h"
#include "transport/shared_memory.h"

namespace pycomm {

class DeviceWords {
 public:
  static size_t bytes_for(int world_size);
  // `memory`: bytes_for() of it, zero at first. Throws CommError(system) when the device cannot
  // register it.
  DeviceWords(Device& device, Mapping memory, int rank, int world_size);
  // When no stream of this rank uses them any more. Without it the memory stays registered, since
  // whoever lets go of the words last may outlive the device.
  void unregister();
  DeviceWords(const DeviceWords&) = delete;
  DeviceWords& operator=(const DeviceWords&) = delete;

  // Its place, for streams. Below `rank` is the writer.
  uint64_t* ready(int rank) { return on_device(line(rank)); }  // its input of the piece is there
  uint64_t* done() { return on_device(line(world_size_)); }    // the leader has the result
  uint64_t* ended(int rank) { return on_device(line(world_size_ + 1 + rank)); }
  // Of captured work: the first and the second hand-over from `writer` to `reader`.
  uint64_t* arrived(int reader, int writer) { return on_device(pair(0, reader, writer)); }
  uint64_t* passed(int reader, int writer) { return on_device(pair(1, reader, writer)); }

  // Of this rank's kernels that wait for peers, for its device: break_up() ends their waits.
  PeerControl* control() {
    return reinterpret_cast<PeerControl*>(on_device(line(3 * world_size_ + 2 + rank_)));
  }
  // Why one of them has not done its work; after break_up() it may be for no other reason.
  PeerFault fault() const;
  // What a kernel that waited for its peers has found out, as a failure of the group; none where a
  // wait ended by break_up(), which has a reason of its own.
  Failure explain_fault() const;

  uint64_t last_ready(int rank) const;
  bool is_done(uint64_t piece) const { return reached(line(world_size_), piece); }
  bool has_ended(int rank, uint64_t piece) const {
    return reached(line(world_size_ + 1 + rank), piece);
  }

  // Blocks until this rank's stream has written `ended`; false: not within `patience`, or it would
  // wait in vain, which is asked now and then.
  bool await_end(uint64_t piece, std::chrono::nanoseconds patience,
                 const std::function<bool()>& in_vain) const;

  // Tells peers what this rank's call number `ticket` is, from 1. Before that every peer must have
  // done with the call kDeviceTicketsMax before it: may_publish().
  bool may_publish(uint64_t ticket) const { return laggard(ticket) < 0; }
  int laggard(uint64_t ticket) const;  // who has not; -1: nobody
  void publish(uint64_t ticket, const OpSignature& signature);
  // What `peer` has said of that call; nothing while it has not made it. Of two ranks that publish
  // and then look, one at least sees the other. Before this rank publishes its next call.
  std::optional<OpSignature> published(int peer, uint64_t ticket) const;

  // This rank no longer maps what peers share with it.
  void close();
  bool all_closed() const;

  void break_up();
  // Somebody has broken up: what streams passed since may not have been there.
  bool broken() const;

 private:
  struct Ticket {
    std::atomic<uint64_t> number;
    std::atomic<uint64_t> signature[4];
  };
  static_assert(sizeof(Ticket) <= kCacheLineBytes);

  static bool reached(const uint64_t* word, uint64_t value);
  uint64_t* line(int index) const;
  uint64_t* pair(int phase, int reader, int writer) const;
  uint64_t* on_device(const uint64_t* word) const;
  Ticket& ticket_of(int rank, uint64_t number) const;

  Device& device_;
  const Mapping memory_;
  const int rank_, world_size_;
  HostAllocation registered_;
};

// Words that streams or graphs may still use stay to the end of the process.
void keep_for_ever(std::shared_ptr<DeviceWords> words);

}  // namespace pycomm
