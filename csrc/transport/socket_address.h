// SPDX-License-Identifier: MIT
// An IP address with its port, as the kernel takes it and as people read it. A value.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <string>

namespace pycomm {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;

  // `scope` is the interface of a link-local address; others ignore it. Throws CommError(system)
  // when `ip` is not numeric.
  static SocketAddress make(const std::string& ip, int port, unsigned scope);
  static SocketAddress from(const sockaddr* address);

  int family() const { return storage.ss_family; }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
  std::string ip() const;  // numeric, without scope; empty when there is none
  int port() const;
  unsigned scope() const;  // 0 unless the address is link-local
  bool is_loopback() const;
  bool is_unspecified() const;  // 0.0.0.0, ::, or nothing
};

// The address of this side of a socket.
SocketAddress local_end(int socket);

// "10.0.0.7:4000", "[fd00::7]:4000"
std::string endpoint(const std::string& ip, int port);
// "IPv4", "IPv6"
const char* family_name(const std::string& ip);

}  // namespace pycomm
