// SPDX-License-Identifier: MIT
#include "transport/shm.h"

#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <new>

#include "base/error.h"
#include "base/log.h"
#include "transport/arena.h"
#include "transport/handshake.h"
#include "transport/unix_socket.h"

namespace pycomm {
namespace {

Fd connect_to(const PeerAddress& peer, const Patience& patience) {
  Fd socket = connect_unix(peer.unix_name);
  if (!socket) {
    const auto text =
        str("cannot reach ", peer.describe(), " through its unix socket @", peer.unix_name, ": ",
            std::strerror(errno),
            "; its process has ended, or, if it runs on another machine, both have one boot id, as "
            "clones of a running machine do: then give each its own PYCOMM_HOST_ID");
    patience.ask_why();
    throw CommError(Failure{FailureKind::peer_failure, text, {peer.rank}});
  }
  return socket;
}

pid_t pid_behind(int socket) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size);
  return credentials.pid;
}

}  // namespace

ShmTransport::ShmTransport(int world_size, RingLayout layout) : layout_(layout) {
  unix_name_ = random_unix_name();
  listener_ = listen_unix(unix_name_);
  const size_t bytes = rings_offset(world_size);
  segment_ = create_shared_memory(bytes);
  event_fd_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event_fd_) throw_system("eventfd failed");
  inbox_ = std::make_shared<Mapping>(segment_.get(), 0, bytes);
  new (inbox_->data()) RankPage;
}

size_t ShmTransport::rings_offset(int sender) const {
  return kPageBytes + static_cast<size_t>(sender) * kLanes * layout_.bytes();
}

void ShmTransport::describe(PeerAddress& mine) { mine.unix_name = unix_name_; }

bool ShmTransport::reaches(const PeerAddress& mine, const PeerAddress& theirs) const {
  return mine.host_id == theirs.host_id && !theirs.unix_name.empty();
}

Link ShmTransport::make_link(int rank, int peer, Fd socket, std::vector<Fd> passed) const {
  // Inbox, eventfd, and the arena where there is one.
  if (passed.size() != 2 && passed.size() != 3) {
    throw CommError(Failure{FailureKind::system,
                            str("rank ", peer, " passed ", passed.size(),
                                " descriptors during set-up, expected 2 or 3"),
                            {peer}});
  }
  auto shared = std::make_shared<ShmPeer>();
  shared->outbox = Mapping(passed[0].get(), rings_offset(rank), kLanes * layout_.bytes());
  shared->bell_page = Mapping(passed[0].get(), 0, kPageBytes);
  shared->event_fd = std::move(passed[1]);
  if (passed.size() == 3) shared->arena = PeerArena::open(std::move(passed[2]));
  Link link;
  for (int lane = 0; lane < kLanes; ++lane) {
    const size_t within = static_cast<size_t>(lane) * layout_.bytes();
    link.lanes[lane] =
        std::make_unique<ShmChannel>(shared, inbox_, shared->outbox.data() + within,
                                     inbox_->data() + rings_offset(peer) + within, layout_);
  }
  const pid_t pid = pid_behind(socket.get());
  link.control = std::make_unique<ControlLink>(std::move(socket), pid);
  link.progress = std::shared_ptr<const RankProgress>(
      shared, &reinterpret_cast<RankPage*>(shared->bell_page.data())->progress);
  link.arena = shared->arena;
  link.transport = name();
  return link;
}

std::vector<Link> ShmTransport::connect(const std::vector<PeerAddress>& addresses, int rank,
                                        const std::vector<int>& peers, Patience& patience) {
  std::vector<int> mine{segment_.get(), event_fd_.get()};
  if (const int arena = Arena::for_group().fd(); arena >= 0) mine.push_back(arena);
  const auto hello_to = [&](int peer) {
    Hello hello;
    hello.rank = rank;
    from_hex(addresses[static_cast<size_t>(peer)].token, hello.token);
    return hello;
  };
  std::map<int, Fd> opened;
  size_t expected = 0;
  std::vector<int> callers;
  for (const int peer : peers) {
    if (peer > rank) {
      ++expected;
      callers.push_back(peer);
      continue;
    }
    opened[peer] = connect_to(addresses[static_cast<size_t>(peer)], patience);
    send_hello(opened[peer].get(), hello_to(peer), mine);
  }
  Token token{};
  from_hex(addresses[static_cast<size_t>(rank)].token, token);
  std::map<int, Link> links;
  for (auto& greeting : accept_greetings(
           listener_.get(), token, expected, patience,
           [rank](const std::string& why) {
             log(LogLevel::warning, rank, "refused a connection during set-up: " + why);
           },
           callers)) {
    const int caller = greeting.hello.rank;
    if (caller <= rank || std::find(peers.begin(), peers.end(), caller) == peers.end()) {
      throw CommError(Failure{FailureKind::mismatch,
                              str("a caller with this group's token says it is rank ", caller,
                                  ", whom rank ", rank, " does not expect"),
                              {}});
    }
    send_hello(greeting.socket.get(), hello_to(greeting.hello.rank), mine);
    links[greeting.hello.rank] = make_link(rank, greeting.hello.rank, std::move(greeting.socket),
                                           std::move(greeting.passed));
  }
  for (auto& [peer, socket] : opened) {
    auto answer =
        receive_answer(std::move(socket), addresses[static_cast<size_t>(peer)], token, patience);
    links[peer] = make_link(rank, peer, std::move(answer.socket), std::move(answer.passed));
  }
  std::vector<Link> ordered;
  for (const int peer : peers) ordered.push_back(std::move(links[peer]));
  return ordered;
}

}  // namespace pycomm
