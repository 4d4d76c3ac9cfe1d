// SPDX-License-Identifier: MIT
// A transport makes channels to those peers it reaches. Which one serves a pair is data: the first
// in the group's list for which reaches(mine, theirs) holds on both sides.
//
// Used by one thread during set-up. A transport owns its listener; the links it returns own
// everything else and outlive it.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "transport/address.h"
#include "transport/channel.h"
#include "transport/control_link.h"
#include "transport/doorbell.h"
#include "transport/patience.h"
#include "transport/peer_arena.h"

namespace pycomm {

// Frames of collectives and of point-to-point messages never wait for each other: one channel each.
enum class Lane : int { collective, point_to_point };
inline constexpr int kLanes = 2;

// Everything that joins this rank to one peer.
struct Link {
  std::unique_ptr<Channel> lanes[kLanes];
  std::unique_ptr<ControlLink> control;
  std::string_view transport = "self";
  std::shared_ptr<const RankProgress> progress;  // null where it cannot be seen (tcp)
  std::shared_ptr<PeerArena> arena;              // null where the peer has none or cannot share it
  std::vector<int> sockets;                      // to watch for data; owned by the channels
};

class Transport {
 public:
  virtual ~Transport() = default;
  virtual std::string_view name() const = 0;
  // Adds to `mine` what peers need to reach this rank.
  virtual void describe(PeerAddress& mine) = 0;
  virtual bool reaches(const PeerAddress& mine, const PeerAddress& theirs) const = 0;
  // Connects to all `peers` (ranks, indices of `addresses`) and returns their links in that order.
  // Collective among the peers. Throws CommError that names the peer and its address.
  virtual std::vector<Link> connect(const std::vector<PeerAddress>& addresses, int rank,
                                    const std::vector<int>& peers, Patience& patience) = 0;
};

}  // namespace pycomm
