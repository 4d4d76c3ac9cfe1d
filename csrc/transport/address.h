// SPDX-License-Identifier: MIT
// What a rank publishes about itself through the store so that peers can reach it.
//
// A value. parse() takes text that came from elsewhere and refuses what it does not understand.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace pycomm {

inline constexpr int kWireVersion = 1;
using Token = std::array<uint8_t, 16>;

struct PeerAddress {
  int version = kWireVersion;
  int rank = 0;
  int world_size = 1;
  std::string host;        // host name, for messages
  std::string host_id;     // equal exactly where an abstract unix socket can be shared
  int pid = 0;             // in its own pid namespace, for messages
  std::string affinity;    // the cores it may run on, see usable_cores.h
  std::string transports;  // comma separated names, those this rank is willing to use
  std::string token;       // 32 hex digits; whoever connects must present it
  uint64_t segment_bytes = 0;
  int segment_exact = 0;  // 1: somebody asked for just this segment size
  int cores = 1;          // of its host; all ranks go by those of rank 0
  std::string figures;    // what messages and bytes cost; all ranks go by those of rank 0
  std::string wire;       // its setting; opaque here
  int slots = 0;
  int tcp_connections = 0;
  std::string unix_name;  // shm
  std::string ip;         // tcp
  int port = 0;
  std::string interface;  // tcp, for messages

  // "rank 2 (pid 4711 on node7)"
  std::string describe() const;
  std::string serialize() const;
  // Throws CommError(system) that quotes what could not be understood.
  static PeerAddress parse(const std::string& text);
};

// Host name, host identity and pid of this process. `host_id` takes the place of the identity that
// is found out, unless it is empty.
PeerAddress local_address(int rank, int world_size, const std::string& host_id = {});

Token random_token();
std::string to_hex(const Token& token);
bool from_hex(const std::string& text, Token& token);

}  // namespace pycomm
