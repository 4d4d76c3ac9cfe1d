// SPDX-License-Identifier: MIT
// send and recv: messages between two ranks, matched by tag, on a lane of their own so that they
// never wait for collectives.
//
// Messages to one peer leave in the order of the calls. A message that arrives for a recv that was
// not the first posted is matched by tag; one that stands in the way of a posted recv is set aside
// in memory, never more than is needed to reach the message that somebody waits for. Any thread:
// every call takes the object's own lock and none blocks on the network. Operations belong to their
// callers and are finished by whichever thread advances them.
#pragma once

#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/operation.h"
#include "engine/signature.h"
#include "transport/mesh.h"

namespace pycomm {

class PointToPoint {
 public:
  explicit PointToPoint(Mesh& mesh);

  void post(std::shared_ptr<Operation> operation);
  // Moves what can move. Finished operations are added to `finished`; the caller finishes them once
  // no lock is held. Returns whether anything moved. Throws CommError when a lane is broken or a
  // message does not fit its recv.
  bool advance(std::vector<std::shared_ptr<Operation>>& finished);
  // Everything still pending, removed: after a failure.
  std::vector<std::shared_ptr<Operation>> take_all();
  size_t pending() const { return pending_.load(std::memory_order_acquire); }
  // Peers that pending operations wait for (any-source: none), and the earliest that has expired.
  std::vector<int> awaited();
  std::shared_ptr<Operation> expired();
  bool waits_for_any();
  // Whether a message that is the next to leave is not ready yet, see Operation.
  bool awaits_ready();
  // A pending operation that needs `peer`, or null.
  std::shared_ptr<Operation> needs(int peer);

 private:
  using OperationPtr = std::shared_ptr<Operation>;
  struct Outgoing {
    OperationPtr operation;
    uint64_t number = 0;
    uint32_t segment = 0;
  };
  // A message whose first frame has been seen: it goes into a recv's memory or is set aside.
  struct Incoming {
    OpSignature signature;
    uint32_t segment = 0;
    OperationPtr into;  // null: set aside
    std::vector<std::byte> aside;
    std::byte* data() { return into ? into->work[0].data : aside.data(); }
  };
  struct Peer {
    std::deque<Outgoing> outgoing;
    uint64_t sent = 0;      // messages begun
    uint64_t received = 0;  // messages begun
    bool closed = false;    // its lane broke while nobody wanted anything of it in particular
    bool receiving = false;
    Incoming incoming;
    std::list<Incoming> set_aside;  // whole messages, oldest first
  };

  bool send_some(int peer, std::vector<OperationPtr>& finished);
  bool receive_some(int peer, std::vector<OperationPtr>& finished);
  bool peek(Channel& channel, Peer& state, ReceivedFrame& frame) const;
  bool begin_message(int peer, const OpSignature& signature);
  std::list<OperationPtr>::iterator match(int peer, int tag);
  bool take_set_aside(const OperationPtr& operation);
  void check_fits(int peer, const OpSignature& signature, const Operation& operation) const;
  bool wanted_from(int peer) const;
  bool receive_if_open(int peer, std::vector<OperationPtr>& finished);
  size_t segment_bytes(DType dtype) const;

  Mesh& mesh_;
  std::mutex mutex_;
  std::vector<Peer> peers_;
  std::list<OperationPtr> receives_;  // posted and not yet matched, in order
  std::atomic<size_t> pending_{0};
};

}  // namespace pycomm
