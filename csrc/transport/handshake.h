// SPDX-License-Identifier: MIT
// How two ranks that have just opened a socket make sure of each other.
//
// The lower rank listens, the higher one connects and says hello with the listener's token from the
// store; the listener checks and answers. Whoever sends anything else is dropped without disturbing
// the group. On unix sockets a hello may carry descriptors. Set-up thread only.
#pragma once

#include <functional>
#include <vector>

#include "base/fd.h"
#include "transport/address.h"
#include "transport/patience.h"

namespace pycomm {

struct Hello {
  uint32_t magic = kMagic;
  uint32_t version = kWireVersion;
  int32_t rank = -1;
  uint32_t purpose = 0;  // which of the sockets of this pair; the transport's business
  Token token{};

  static constexpr uint32_t kMagic = 0x48637970;  // "pycH"
};
static_assert(sizeof(Hello) == 32);

struct Greeting {
  Hello hello;
  Fd socket;
  std::vector<Fd> passed;  // descriptors that came along
};

void send_hello(int socket, const Hello& hello, const std::vector<int>& descriptors);

// Accepts until `count` good hellos have come. `refused` is told why anybody was turned away.
// Throws CommError(timeout) with how many came, naming those of `expected_ranks`, each of which
// sends an equal share of the hellos, that did not.
std::vector<Greeting> accept_greetings(int listener, const Token& token, size_t count,
                                       Patience patience,
                                       const std::function<void(const std::string&)>& refused,
                                       const std::vector<int>& expected_ranks = {});

// Waits for the answer on a socket we opened to `peer`; it must present our own token. Throws
// CommError(timeout or peer_failure).
Greeting receive_answer(Fd socket, const PeerAddress& peer, const Token& token, Patience patience);

}  // namespace pycomm
