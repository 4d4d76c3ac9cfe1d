// SPDX-License-Identifier: MIT
#include "transport/tcp.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <map>

#include "base/error.h"
#include "base/log.h"
#include "transport/handshake.h"
#include "transport/tcp_channel.h"

namespace pycomm {
namespace {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  int family() const { return storage.ss_family; }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

SocketAddress numeric_address(const std::string& ip, int port) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(ip.c_str(), std::to_string(port).c_str(), &hints, &found) != 0 || !found) {
    throw CommError(Failure{FailureKind::system, "not a numeric address: '" + ip + "'", {}});
  }
  SocketAddress address;
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.length = found->ai_addrlen;
  ::freeaddrinfo(found);
  return address;
}

void tune(int socket) {
  const int one = 1;
  ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

Fd connect_to(const PeerAddress& peer, const LocalInterface& from, Deadline deadline) {
  auto target = numeric_address(peer.ip, peer.port);
  Fd socket(::socket(target.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) throw_system("cannot open a TCP socket");
  int error = ::connect(socket.get(), target.get(), target.length) == 0 ? 0 : errno;
  if (error == EINPROGRESS) {
    pollfd fd{socket.get(), POLLOUT, 0};
    socklen_t size = sizeof(error);
    if (::poll(&fd, 1, deadline.remaining_ms_at_most(1 << 30)) == 0)
      error = ETIMEDOUT;
    else
      ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size);
  }
  if (error != 0) {
    throw CommError(
        Failure{FailureKind::peer_failure,
                str("cannot connect to rank ", peer.rank, " on host ", peer.host, " at ", peer.ip,
                    ":", peer.port, " (its interface ", peer.interface, ") from ", from.ip,
                    " (interface ", from.name, "): ", std::strerror(error),
                    "; set PYCOMM_SOCKET_IFNAME to an interface that reaches the other hosts"),
                {peer.rank}});
  }
  tune(socket.get());
  return socket;
}

}  // namespace

TcpTransport::TcpTransport(LocalInterface interface, int connections, size_t segment_bytes)
    : interface_(std::move(interface)), connections_(connections), segment_bytes_(segment_bytes) {
  auto address = numeric_address(interface_.ip, 0);
  listener_ = Fd(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener_ || ::bind(listener_.get(), address.get(), address.length) != 0 ||
      ::listen(listener_.get(), 4096) != 0 ||
      ::getsockname(listener_.get(), address.get(), &address.length) != 0) {
    throw_system("cannot listen on " + interface_.ip + " (interface " + interface_.name + ")");
  }
  port_ = ntohs(address.family() == AF_INET
                    ? reinterpret_cast<sockaddr_in*>(address.get())->sin_port
                    : reinterpret_cast<sockaddr_in6*>(address.get())->sin6_port);
}

void TcpTransport::describe(PeerAddress& mine) {
  mine.ip = interface_.ip;
  mine.port = port_;
  mine.interface = interface_.name;
}

bool TcpTransport::reaches(const PeerAddress&, const PeerAddress& theirs) const {
  return theirs.port > 0;
}

Link TcpTransport::make_link(const PeerAddress& peer, std::vector<Fd> sockets) const {
  Link link;
  const auto who = str("rank ", peer.rank, " at ", peer.ip, " (", peer.interface, ")");
  for (int lane = 0; lane < kLanes; ++lane) {
    std::vector<Fd> own;
    for (int c = 0; c < connections_; ++c) {
      own.push_back(std::move(sockets[static_cast<size_t>(1 + lane * connections_ + c)]));
      link.sockets.push_back(own.back().get());
    }
    link.lanes[lane] = std::make_unique<TcpChannel>(std::move(own), peer.rank, who, segment_bytes_);
  }
  link.control = std::make_unique<ControlLink>(std::move(sockets[0]), 0);
  link.transport = name();
  return link;
}

std::vector<Link> TcpTransport::connect(const std::vector<PeerAddress>& addresses, int rank,
                                        const std::vector<int>& peers, Deadline deadline) {
  const uint32_t per_peer = sockets_per_peer();
  std::map<int, std::vector<Fd>> sockets;
  const auto hello_to = [&](int peer, uint32_t purpose) {
    Hello hello;
    hello.rank = rank;
    hello.purpose = purpose;
    from_hex(addresses[static_cast<size_t>(peer)].token, hello.token);
    return hello;
  };
  size_t expected = 0;
  std::vector<int> callers;
  for (const int peer : peers) {
    sockets[peer].resize(per_peer);
    if (peer > rank) {
      expected += per_peer;
      callers.push_back(peer);
      continue;
    }
    for (uint32_t purpose = 0; purpose < per_peer; ++purpose) {
      auto& socket = sockets[peer][purpose];
      socket = connect_to(addresses[static_cast<size_t>(peer)], interface_, deadline);
      send_hello(socket.get(), hello_to(peer, purpose), {});
    }
  }
  Token token{};
  from_hex(addresses[static_cast<size_t>(rank)].token, token);
  for (auto& greeting : accept_greetings(
           listener_.get(), token, expected, deadline,
           [rank](const std::string& why) {
             log(LogLevel::warning, rank, "refused a connection during set-up: " + why);
           },
           callers)) {
    const int peer = greeting.hello.rank;
    const uint32_t purpose = greeting.hello.purpose;
    if (peer <= rank || !sockets.count(peer) || purpose >= per_peer) {
      throw CommError(Failure{FailureKind::mismatch,
                              str("set-up on rank ", rank,
                                  ": a caller with this group's token says it "
                                  "is rank ",
                                  peer, ", connection ", purpose, ", which nobody expects"),
                              {}});
    }
    tune(greeting.socket.get());
    send_hello(greeting.socket.get(), hello_to(peer, purpose), {});
    sockets[peer][purpose] = std::move(greeting.socket);
  }
  for (const int peer : peers) {
    if (peer > rank) continue;
    for (auto& socket : sockets[peer]) {
      const auto& there = addresses[static_cast<size_t>(peer)];
      auto answer =
          receive_answer(std::move(socket), str("rank ", peer, " at ", there.ip, ":", there.port),
                         token, deadline);
      socket = std::move(answer.socket);
    }
  }
  std::vector<Link> links;
  for (const int peer : peers) {
    links.push_back(make_link(addresses[static_cast<size_t>(peer)], std::move(sockets[peer])));
  }
  return links;
}

}  // namespace pycomm
