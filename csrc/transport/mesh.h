// SPDX-License-Identifier: MIT
// All links of one rank of one group, and what it sleeps on. Built by rendezvous: every rank
// publishes its address, picks for each peer the first transport that reaches it, and all connect.
//
// Immutable once built. Channels are used under the engine's rules, control links from any
// thread, the waiter from any thread. Owns everything.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "transport/rendezvous.h"
#include "transport/shared_memory.h"
#include "transport/store.h"
#include "transport/tcp_endpoint.h"
#include "transport/transport.h"
#include "transport/waiter.h"

namespace pycomm {

struct MeshOptions {
  std::string transports = "shm,tcp";  // in order of preference
  std::string socket_interface;        // PYCOMM_SOCKET_IFNAME
  PortRange ports;                     // PYCOMM_PORT_RANGE, of tcp's listeners
  std::string host_id;                 // PYCOMM_HOST_ID; empty: found out
  std::string store_host;              // the route to it chooses the interface otherwise
  int tcp_connections = 2;
  std::string figures;       // rank 0's are what the group goes by, see engine/tuner.h; opaque here
  std::string wire;          // what float32 sums travel as, see engine/wire_choice.h; opaque here
  size_t segment_bytes = 0;  // 0: chosen from the world size; same on all ranks
  std::chrono::nanoseconds connect_timeout{0};  // 0: kConnectTimeout
};

class Mesh {
 public:
  // A group of one, which talks to nobody.
  Mesh();
  // From links made elsewhere (loopback); `links[rank]` stays empty.
  Mesh(int rank, std::vector<Link> links, size_t segment_bytes);
  // All channels together get kTcpLinger to deliver what they have sent.
  ~Mesh();

  // Collective over all ranks of the group. Throws CommError or UsageError.
  static std::unique_ptr<Mesh> connect(Store& store, int rank, int world_size,
                                       const MeshOptions& options);

  int rank() const { return rank_; }
  int world_size() const { return static_cast<int>(links_.size()); }
  size_t segment_bytes() const { return segment_bytes_; }
  const PeerAddress& address(int peer) const { return addresses_[static_cast<size_t>(peer)]; }
  Link& link(int peer) { return links_[static_cast<size_t>(peer)]; }
  Channel& channel(int peer, Lane lane) { return *link(peer).lanes[static_cast<int>(lane)]; }
  Waiter& waiter() { return *waiter_; }
  // Where this rank tells peers how far it is.
  RankProgress& progress() { return own_page_->progress; }
  // How a thread of this rank waits.
  WaitPolicy wait_policy(WaitRole role) const {
    return wait_policy_for(crowding_, role, waiter_->watches_sockets());
  }
  // Whether some ranks of this host share cores.
  bool crowded() const { return crowding_ == Crowding::crowded; }
  // "rank 2 (pid 4711 on node7)"
  std::string describe(int peer) const { return address(peer).describe(); }

 private:
  int rank_ = 0;
  std::vector<PeerAddress> addresses_;
  std::vector<Link> links_;
  size_t segment_bytes_;
  std::vector<std::shared_ptr<Mapping>> kept_;  // memory the waiter points into
  RankPage* own_page_ = nullptr;
  Fd event_fd_;
  std::unique_ptr<Waiter> waiter_;
  Crowding crowding_ = Crowding::even;

  class Building;
  // Throws if a peer is gone before all are connected.
  void check_alive(Rendezvous& rendezvous, const Patience& patience);
  void make_waiter(Doorbell* bell, Fd event_fd);
};

}  // namespace pycomm
