// SPDX-License-Identifier: MIT
// One TCP connection as a stream of bytes: gathers what it sends, and reads ahead while it
// receives, so that a small frame costs one system call at each end and a large one little more.
//
// Nothing blocks. The sending side may be used by one thread and the receiving side by another. The
// memory that is sent from or received into belongs to the caller; the connection owns its socket.
#pragma once

#include <array>
#include <cstddef>

#include "base/fd.h"
#include "base/limits.h"

namespace pycomm {

class TcpConnection {
 public:
  // broken: errno says why.
  enum class Outcome { whole, part, closed, broken };

  explicit TcpConnection(Fd socket) : socket_(std::move(socket)) {}

  int fd() const { return socket_.get(); }

  // Sends what is left of a header and the payload behind it; `moved` of their bytes have gone.
  Outcome send(const void* header, size_t header_bytes, const void* payload, size_t payload_bytes,
               size_t& moved);
  // Receives what is left of `bytes`; `moved` of them have come.
  Outcome receive(void* into, size_t bytes, size_t& moved);
  // Whether all that was sent has reached the peer's kernel, or never will.
  bool delivered() const;

 private:
  Fd socket_;
  // What came behind the bytes that were asked for.
  std::array<std::byte, kTcpReadAheadBytes> ahead_;
  size_t ahead_begin_ = 0;
  size_t ahead_end_ = 0;
};

}  // namespace pycomm
