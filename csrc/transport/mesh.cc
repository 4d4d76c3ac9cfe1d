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

namespace pycomm {
namespace {

// Rings of all ranks have one geometry. Large groups get smaller segments, see
// kRingBytesPerRankMax.
RingLayout layout_for(int world_size, size_t segment_bytes) {
  RingLayout layout;
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

std::string address_key(int rank) { return "pycomm/address/" + std::to_string(rank); }

std::vector<PeerAddress> exchange(Store& store, const PeerAddress& mine, Deadline deadline) {
  store.set(address_key(mine.rank), mine.serialize());
  std::vector<PeerAddress> all;
  for (int peer = 0; peer < mine.world_size; ++peer) {
    try {
      all.push_back(PeerAddress::parse(store.get(address_key(peer), deadline)));
    } catch (const CommError& error) {
      if (error.failure().kind != FailureKind::timeout) throw;
      throw CommError(Failure{FailureKind::timeout,
                              str("set-up on rank ", mine.rank, " of ", mine.world_size, ": rank ",
                                  peer, " did not publish its address in time; did it start?"),
                              {peer}});
    }
    const auto& theirs = all.back();
    const auto expect_same = [&](const char* what, auto here, auto there) {
      if (here == there) return;
      throw CommError(Failure{
          FailureKind::mismatch,
          str("set-up on rank ", mine.rank, ": rank ", peer, " has ", what, " ", there,
              ", this rank has ", here, "; all ranks need the same pycomm version and settings"),
          {peer}});
    };
    expect_same("protocol version", mine.version, theirs.version);
    expect_same("rank", peer, theirs.rank);
    expect_same("world size", mine.world_size, theirs.world_size);
    expect_same("segment bytes", mine.segment_bytes, theirs.segment_bytes);
    expect_same("slots", mine.slots, theirs.slots);
    expect_same("tcp connections", mine.tcp_connections, theirs.tcp_connections);
    expect_same("transports", mine.transports, theirs.transports);
  }
  return all;
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

void Mesh::make_waiter(Doorbell* bell, Fd event_fd) {
  std::vector<int> sockets;
  for (const auto& link : links_) {
    sockets.insert(sockets.end(), link.sockets.begin(), link.sockets.end());
  }
  event_fd_ = std::move(event_fd);
  waiter_ = std::make_unique<Waiter>(bell, event_fd_.get(), std::move(sockets));
}

std::string Mesh::describe(int peer) const {
  const auto& there = address(peer);
  return str("rank ", peer, " (pid ", there.pid, " on ", there.host, ")");
}

std::unique_ptr<Mesh> Mesh::connect(Store& store, int rank, int world_size,
                                    const MeshOptions& options) {
  const auto timeout = options.connect_timeout.count() > 0
                           ? options.connect_timeout
                           : std::chrono::nanoseconds(kConnectTimeout);
  const auto deadline = Deadline::after(timeout);
  const auto layout = layout_for(world_size, options.segment_bytes);

  std::unique_ptr<ShmTransport> shm;
  std::vector<Transport*> transports;
  std::vector<std::unique_ptr<Transport>> owned;
  std::stringstream names(options.transports);
  std::string name;
  while (std::getline(names, name, ',')) {
    if (name == "shm") {
      shm = std::make_unique<ShmTransport>(world_size, layout);
      transports.push_back(shm.get());
    } else if (name == "tcp") {
      owned.push_back(std::make_unique<TcpTransport>(
          choose_interface(options.socket_interface, options.store_host), options.tcp_connections,
          layout.segment_bytes));
      transports.push_back(owned.back().get());
    } else {
      throw UsageError("unknown transport '" + name + "'; choose among shm, tcp");
    }
  }

  auto mine = local_address(rank, world_size);
  mine.transports = options.transports;
  mine.segment_bytes = layout.segment_bytes;
  mine.slots = layout.slots;
  mine.tcp_connections = options.tcp_connections;
  for (auto* transport : transports) transport->describe(mine);

  auto mesh = std::make_unique<Mesh>();
  mesh->rank_ = rank;
  mesh->segment_bytes_ = layout.segment_bytes;
  mesh->addresses_ = exchange(store, mine, deadline);
  mesh->links_ = std::vector<Link>(static_cast<size_t>(world_size));
  std::vector<std::vector<int>> served(transports.size());
  int local = 1;
  for (int peer = 0; peer < world_size; ++peer) {
    if (peer == rank) continue;
    const auto& theirs = mesh->address(peer);
    local += theirs.host_id == mine.host_id;
    size_t choice = 0;
    while (choice < transports.size() && !(lists(theirs.transports, transports[choice]->name()) &&
                                           transports[choice]->reaches(mine, theirs))) {
      ++choice;
    }
    if (choice == transports.size()) {
      throw CommError(Failure{FailureKind::system,
                              str("no transport joins rank ", rank, " (", mine.transports,
                                  ", host ", mine.host, ") and ", mesh->describe(peer), " (",
                                  theirs.transports, "); allow tcp in PYCOMM_TRANSPORT"),
                              {peer}});
    }
    served[choice].push_back(peer);
  }
  for (size_t i = 0; i < transports.size(); ++i) {
    auto links = transports[i]->connect(mesh->addresses_, rank, served[i], deadline);
    for (size_t k = 0; k < links.size(); ++k) mesh->link(served[i][k]) = std::move(links[k]);
  }
  mesh->oversubscribed_ = local > ::sysconf(_SC_NPROCESSORS_ONLN);
  if (shm) {
    mesh->kept_.push_back(shm->inbox());
    mesh->own_page_ = shm->page();
    mesh->make_waiter(&shm->page()->bell, Fd(::dup(shm->event_fd())));
  } else {
    mesh->make_waiter(&mesh->own_page_->bell, std::move(mesh->event_fd_));
  }
  return mesh;
}

}  // namespace pycomm
