// SPDX-License-Identifier: MIT
#include "transport/tcp.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <map>

#include "base/error.h"
#include "base/limits.h"
#include "base/log.h"
#include "transport/handshake.h"
#include "transport/socket_address.h"
#include "transport/tcp_channel.h"

namespace pycomm {

namespace {

// By what the handshake took; a busy machine may answer late, then the buffer stays the kernel's.
void bound_send_buffer(int socket) {
  tcp_info info{};
  socklen_t size = sizeof(info);
  if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return;
  if (std::chrono::microseconds(info.tcpi_rtt) > kTcpNear) return;
  ::setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &kTcpSendBytesNear, sizeof(kTcpSendBytesNear));
}

}  // namespace

TcpTransport::TcpTransport(LocalInterface interface, PortRange ports, int connections,
                           size_t segment_bytes)
    : interface_(std::move(interface)),
      connections_(connections),
      segment_bytes_(segment_bytes),
      listening_(listen_on(interface_, ports)) {}

void TcpTransport::describe(PeerAddress& mine) {
  mine.ip = interface_.ip;
  mine.port = listening_.port;
  mine.interface = interface_.name;
}

bool TcpTransport::reaches(const PeerAddress&, const PeerAddress& theirs) const {
  return theirs.port > 0;
}

Link TcpTransport::make_link(const PeerAddress& peer, std::vector<Fd> sockets) const {
  Link link;
  const auto who = str(peer.describe(), " at ", peer.ip, " (", peer.interface, ")");
  for (int lane = 0; lane < kLanes; ++lane) {
    std::vector<Fd> own;
    for (int c = 0; c < connections_; ++c) {
      own.push_back(std::move(sockets[static_cast<size_t>(1 + lane * connections_ + c)]));
      if (lane == static_cast<int>(Lane::collective)) bound_send_buffer(own.back().get());
      link.sockets.push_back(own.back().get());
    }
    link.lanes[lane] = std::make_unique<TcpChannel>(std::move(own), peer.rank, who, segment_bytes_);
  }
  link.control = std::make_unique<ControlLink>(std::move(sockets[0]), 0);
  link.transport = name();
  return link;
}

Hello TcpTransport::hello_to(const PeerAddress& peer, int rank, uint32_t purpose) const {
  Hello hello;
  hello.rank = rank;
  hello.purpose = purpose;
  from_hex(peer.token, hello.token);
  return hello;
}

std::vector<Link> TcpTransport::connect(const std::vector<PeerAddress>& addresses, int rank,
                                        const std::vector<int>& peers, Patience& patience) {
  const auto& mine = addresses[static_cast<size_t>(rank)];
  const auto address_of = [&](int peer) -> const PeerAddress& {
    return addresses[static_cast<size_t>(peer)];
  };
  const uint32_t per_peer = sockets_per_peer();
  Token token{};
  from_hex(mine.token, token);
  std::map<int, std::vector<Fd>> sockets;
  std::vector<int> callers;
  for (const int peer : peers) require_one_network(mine, address_of(peer));
  for (const int peer : peers) {
    sockets[peer].resize(per_peer);
    if (peer > rank) {
      callers.push_back(peer);
      continue;
    }
    for (uint32_t purpose = 0; purpose < per_peer; ++purpose) {
      auto& socket = sockets[peer][purpose];
      socket = connect_to(address_of(peer), interface_, patience);
      send_hello(socket.get(), hello_to(address_of(peer), rank, purpose), {});
    }
  }
  for (auto& greeting : accept_greetings(
           listening_.socket.get(), token, callers.size() * per_peer, patience,
           [rank](const std::string& why) {
             log(LogLevel::warning, rank, "refused a connection during set-up: " + why);
           },
           callers)) {
    const int peer = greeting.hello.rank;
    const uint32_t purpose = greeting.hello.purpose;
    if (peer <= rank || !sockets.count(peer) || purpose >= per_peer) {
      throw CommError(
          Failure{FailureKind::mismatch,
                  str("a caller with this group's token says it is rank ", peer, ", connection ",
                      purpose, ", which rank ", rank, " does not expect"),
                  {}});
    }
    const int one = 1;
    ::setsockopt(greeting.socket.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    send_hello(greeting.socket.get(), hello_to(address_of(peer), rank, purpose), {});
    sockets[peer][purpose] = std::move(greeting.socket);
  }
  for (const int peer : peers) {
    if (peer > rank) continue;
    for (auto& socket : sockets[peer]) {
      auto answer = receive_answer(std::move(socket), address_of(peer), token, patience);
      socket = std::move(answer.socket);
    }
  }
  std::vector<Link> links;
  for (const int peer : peers) {
    links.push_back(make_link(address_of(peer), std::move(sockets[peer])));
  }
  return links;
}

}  // namespace pycomm
