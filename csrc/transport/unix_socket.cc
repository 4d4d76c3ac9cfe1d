// SPDX-License-Identifier: MIT
#include "transport/unix_socket.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/error.h"
#include "base/limits.h"
#include "transport/address.h"

namespace pycomm {
namespace {

// An abstract address: a leading zero byte, no file.
socklen_t fill_abstract(const std::string& name, sockaddr_un& address) {
  address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(),
              std::min(name.size(), sizeof(address.sun_path) - 1));
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

Fd open_socket(int flags) {
  Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0));
  if (!socket) throw_system("cannot open a unix socket");
  return socket;
}

}  // namespace

std::string random_unix_name() { return "pycomm-" + to_hex(random_token()); }

Fd listen_unix(const std::string& name) {
  Fd socket = open_socket(SOCK_NONBLOCK);
  sockaddr_un address;
  const auto length = fill_abstract(name, address);
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      ::listen(socket.get(), kWorldSizeMax) != 0) {
    throw_system("cannot listen on unix socket @" + name);
  }
  return socket;
}

Fd connect_unix(const std::string& name) {
  Fd socket = open_socket(0);
  sockaddr_un address;
  const auto length = fill_abstract(name, address);
  if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), length) == 0) return socket;
  const int error = errno;
  socket.reset();
  errno = error;
  return socket;
}

}  // namespace pycomm
