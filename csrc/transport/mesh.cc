// SPDX-License-Identifier: MIT
#include "transport/mesh.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <sstream>

#include "base/error.h"
#include "base/limits.h"
#include "transport/shm.h"
#include "transport/tcp.h"
#include "transport/usable_cores.h"

namespace pycomm {
namespace {

// Rings of all ranks have one geometry. Large groups get smaller segments, see
// kRingBytesPerRankMax.
RingLayout layout_for(int world_size, size_t segment_bytes) {
  RingLayout layout;
  if (world_size >= kFewSlotsRanks) layout.slots = kFewSlots;
  if (segment_bytes != 0) {
    layout.segment_bytes = segment_bytes;
    return layout;
  }
  const auto rings = static_cast<size_t>(kLanes * std::max(1, world_size - 1));
  while (layout.segment_bytes > 16 * 1024 && rings * layout.bytes() > kRingBytesPerRankMax) {
    layout.segment_bytes /= 2;
  }
  return layout;
}

bool lists(const std::string& names, std::string_view wanted) {
  std::stringstream in(names);
  std::string name;
  while (std::getline(in, name, ',')) {
    if (name == wanted) return true;
  }
  return false;
}

}  // namespace

Mesh::Mesh() : Mesh(0, std::vector<Link>(1), kSegmentBytes) {}

Mesh::Mesh(int rank, std::vector<Link> links, size_t segment_bytes)
    : rank_(rank), links_(std::move(links)), segment_bytes_(segment_bytes) {
  for (int peer = 0; peer < world_size(); ++peer) {
    addresses_.push_back(local_address(peer, world_size()));
  }
  kept_.push_back(std::make_shared<Mapping>(-1, 0, kPageBytes));
  own_page_ = new (kept_[0]->data()) RankPage;
  make_waiter(&own_page_->bell, Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)));
}

Mesh::~Mesh() {
  const auto deadline = Deadline::after(kTcpLinger);
  for (auto& link : links_) {
    for (auto& lane : link.lanes) {
      if (lane) lane->close_by(deadline);
    }
  }
}

void Mesh::make_waiter(Doorbell* bell, Fd event_fd) {
  std::vector<int> sockets;
  for (const auto& link : links_) {
    sockets.insert(sockets.end(), link.sockets.begin(), link.sockets.end());
  }
  event_fd_ = std::move(event_fd);
  waiter_ = std::make_unique<Waiter>(bell, event_fd_.get(), std::move(sockets));
}

// The transports of a group while it is set up. They outlive a failure until the others were told:
// closed sockets would reach them first and explain nothing.
class Mesh::Building {
 public:
  Building(int rank, int world_size, const MeshOptions& options)
      : layout_(layout_for(world_size, options.segment_bytes)),
        mine_(local_address(rank, world_size, options.host_id)) {
    mine_.transports = options.transports;
    mine_.segment_bytes = layout_.segment_bytes;
    mine_.figures = options.figures;
    mine_.wire = options.wire;
    mine_.segment_exact = options.segment_bytes != 0;
    mine_.slots = layout_.slots;
    mine_.tcp_connections = options.tcp_connections;
  }

  const PeerAddress& mine() const { return mine_; }
  void listen(const MeshOptions& options);
  void connect(Mesh& mesh, Patience& patience);
  // What the finished mesh sleeps on.
  void hand_over(Mesh& mesh);

 private:
  size_t choose(const Mesh& mesh, const PeerAddress& theirs) const;

  RingLayout layout_;
  PeerAddress mine_;
  ShmTransport* shm_ = nullptr;
  std::vector<std::unique_ptr<Transport>> transports_;
};

void Mesh::Building::listen(const MeshOptions& options) {
  std::stringstream names(options.transports);
  std::string name;
  while (std::getline(names, name, ',')) {
    if (name == "shm") {
      auto shm = std::make_unique<ShmTransport>(mine_.world_size, layout_);
      shm_ = shm.get();
      transports_.push_back(std::move(shm));
    } else if (name == "tcp") {
      transports_.push_back(std::make_unique<TcpTransport>(
          choose_interface(options.socket_interface, options.store_host), options.ports,
          options.tcp_connections, layout_.segment_bytes));
    } else {
      throw UsageError("unknown transport '" + name + "'; choose among shm, tcp");
    }
  }
  for (auto& transport : transports_) transport->describe(mine_);
}

// The first in the list that both ranks are willing to use and that reaches.
size_t Mesh::Building::choose(const Mesh& mesh, const PeerAddress& theirs) const {
  for (size_t i = 0; i < transports_.size(); ++i) {
    const auto& one = *transports_[i];
    if (lists(theirs.transports, one.name()) && one.reaches(mine_, theirs)) return i;
  }
  throw CommError(Failure{
      FailureKind::system,
      str("no transport joins ", mine_.describe(), " (", mine_.transports, ") and ",
          mesh.describe(theirs.rank), " (", theirs.transports, "); allow tcp in PYCOMM_TRANSPORT"),
      {theirs.rank}});
}

void Mesh::Building::connect(Mesh& mesh, Patience& patience) {
  mesh.links_ = std::vector<Link>(static_cast<size_t>(mine_.world_size));
  std::vector<std::vector<int>> served(transports_.size());
  std::vector<std::string> cores{mine_.affinity};
  for (int peer = 0; peer < mine_.world_size; ++peer) {
    if (peer == mine_.rank) continue;
    if (mesh.address(peer).host_id == mine_.host_id) cores.push_back(mesh.address(peer).affinity);
    served[choose(mesh, mesh.address(peer))].push_back(peer);
  }
  for (size_t i = 0; i < transports_.size(); ++i) {
    auto links = transports_[i]->connect(mesh.addresses_, mine_.rank, served[i], patience);
    for (size_t k = 0; k < links.size(); ++k) mesh.link(served[i][k]) = std::move(links[k]);
  }
  mesh.crowding_ = crowding_of(cores, core_quota());
}

void Mesh::Building::hand_over(Mesh& mesh) {
  mesh.rank_ = mine_.rank;
  mesh.segment_bytes_ = layout_.segment_bytes;
  if (!shm_) {
    mesh.make_waiter(&mesh.own_page_->bell, std::move(mesh.event_fd_));
    return;
  }
  mesh.kept_.push_back(shm_->inbox());
  mesh.own_page_ = shm_->page();
  mesh.make_waiter(&shm_->page()->bell, Fd(::dup(shm_->event_fd())));
}

// Nobody answers pings yet, but the end of a process shows. One that has read that all are
// connected may have gone on and ended since.
void Mesh::check_alive(Rendezvous& rendezvous, const Patience& patience) {
  for (int peer = 0; peer < world_size(); ++peer) {
    const auto& control = link(peer).control;
    if (!control || !control->at_end() || rendezvous.finished()) continue;
    patience.ask_why();
    throw CommError(Failure{FailureKind::peer_failure,
                            describe(peer) + " closed its connections before all ranks were "
                                             "connected: its process or the network died",
                            {peer}});
  }
}

std::unique_ptr<Mesh> Mesh::connect(Store& store, int rank, int world_size,
                                    const MeshOptions& options) {
  const auto timeout = options.connect_timeout.count() > 0
                           ? options.connect_timeout
                           : std::chrono::nanoseconds(kConnectTimeout);
  Building building(rank, world_size, options);
  Rendezvous rendezvous(store, building.mine(), Deadline::after(timeout));
  Patience patience(Deadline::after(timeout), [&] { rendezvous.look(); });
  auto mesh = std::make_unique<Mesh>();
  try {
    building.listen(options);
    mesh->addresses_ = rendezvous.exchange(building.mine());
    building.connect(*mesh, patience);
    const auto look = [&] {
      rendezvous.look();
      mesh->check_alive(rendezvous, patience);
    };
    rendezvous.finish(look, patience);
  } catch (const CommError& error) {
    auto failure = error.failure();
    rendezvous.tell(failure);
    failure.text = str("set-up on rank ", rank, " of ", world_size, ": ", failure.text);
    throw CommError(failure);
  } catch (const std::exception& error) {
    rendezvous.tell({FailureKind::system, error.what(), {rank}});
    throw;
  }
  building.hand_over(*mesh);
  return mesh;
}

}  // namespace pycomm
