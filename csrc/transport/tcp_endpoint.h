// SPDX-License-Identifier: MIT
// Opening TCP sockets: where this rank listens, and how it reaches a peer's listener. What fails
// names the address, the interface, the kernel's reason and what to do. Set-up thread only.
#pragma once

#include "base/fd.h"
#include "transport/address.h"
#include "transport/interface.h"
#include "transport/patience.h"

namespace pycomm {

// Both ends included; 0-0: whatever port the kernel picks.
struct PortRange {
  int low = 0;
  int high = 0;
};

struct Listening {
  Fd socket;
  int port = 0;
};

// Starts at a random port of the range, so that the ranks of a host meet seldom. Throws
// CommError(system).
Listening listen_on(const LocalInterface& interface, PortRange ports);

// A connected socket to where `peer` listens. A refusal is final: every listener was there before
// its address was published. Throws CommError(peer_failure).
Fd connect_to(const PeerAddress& peer, const LocalInterface& from, Patience& patience);

// Throws CommError(mismatch) when the two addresses cannot be of one network: IPv4 and IPv6, or
// loopback of one host only.
void require_one_network(const PeerAddress& mine, const PeerAddress& theirs);

}  // namespace pycomm
