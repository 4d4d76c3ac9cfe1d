// SPDX-License-Identifier: MIT
// TCP between ranks, on one chosen interface.
//
// Per pair: one control connection and, for each lane, `connections` data connections. The listener
// is bound to the chosen address only, closed when set-up ends, and refuses whoever has no token.
#pragma once

#include <string>

#include "base/fd.h"
#include "transport/handshake.h"
#include "transport/tcp_endpoint.h"
#include "transport/transport.h"

namespace pycomm {

class TcpTransport final : public Transport {
 public:
  TcpTransport(LocalInterface interface, PortRange ports, int connections, size_t segment_bytes);

  std::string_view name() const override { return "tcp"; }
  void describe(PeerAddress& mine) override;
  bool reaches(const PeerAddress& mine, const PeerAddress& theirs) const override;
  std::vector<Link> connect(const std::vector<PeerAddress>& addresses, int rank,
                            const std::vector<int>& peers, Patience& patience) override;

 private:
  Hello hello_to(const PeerAddress& peer, int rank, uint32_t purpose) const;
  Link make_link(const PeerAddress& peer, std::vector<Fd> sockets) const;
  uint32_t sockets_per_peer() const { return 1 + kLanes * static_cast<uint32_t>(connections_); }

  LocalInterface interface_;
  int connections_;
  size_t segment_bytes_;
  Listening listening_;
};

}  // namespace pycomm
