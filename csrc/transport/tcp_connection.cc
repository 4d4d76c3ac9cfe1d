// SPDX-License-Identifier: MIT
#include "transport/tcp_connection.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace pycomm {
namespace {

// After a reset nothing will be delivered, but what was queued goes on being counted.
bool is_closed(int socket) {
  tcp_info info{};
  socklen_t size = sizeof(info);
  return ::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
         info.tcpi_state == TCP_CLOSE;
}

iovec piece(const void* data, size_t bytes) { return {const_cast<void*>(data), bytes}; }

}  // namespace

TcpConnection::Outcome TcpConnection::send(const void* header, size_t header_bytes,
                                           const void* payload, size_t payload_bytes,
                                           size_t& moved) {
  const size_t total = header_bytes + payload_bytes;
  while (moved < total) {
    iovec pieces[2];
    msghdr message{};
    message.msg_iov = pieces;
    if (moved < header_bytes) {
      const auto* rest = static_cast<const std::byte*>(header) + moved;
      pieces[message.msg_iovlen++] = piece(rest, header_bytes - moved);
    }
    const size_t gone = moved - std::min(moved, header_bytes);
    if (gone < payload_bytes) {
      const auto* rest = static_cast<const std::byte*>(payload) + gone;
      pieces[message.msg_iovlen++] = piece(rest, payload_bytes - gone);
    }
    const auto sent = ::sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return errno == EAGAIN ? Outcome::part : Outcome::broken;
    moved += static_cast<size_t>(sent);
    // The kernel took all it has room for; to ask again would cost a call that says so.
    if (moved < total) return Outcome::part;
  }
  return Outcome::whole;
}

TcpConnection::Outcome TcpConnection::receive(void* into, size_t bytes, size_t& moved) {
  auto* const target = static_cast<std::byte*>(into);
  while (moved < bytes) {
    if (ahead_begin_ < ahead_end_) {
      const size_t taken = std::min(bytes - moved, ahead_end_ - ahead_begin_);
      std::memcpy(target + moved, ahead_.data() + ahead_begin_, taken);
      ahead_begin_ += taken;
      moved += taken;
      continue;
    }
    const size_t wanted = bytes - moved;
    iovec pieces[2] = {piece(target + moved, wanted), piece(ahead_.data(), ahead_.size())};
    msghdr message{};
    message.msg_iov = pieces;
    message.msg_iovlen = 2;
    const auto got = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno == EAGAIN ? Outcome::part : Outcome::broken;
    if (got == 0) return Outcome::closed;
    const size_t direct = std::min(wanted, static_cast<size_t>(got));
    moved += direct;
    ahead_begin_ = 0;
    ahead_end_ = static_cast<size_t>(got) - direct;
    // The socket is empty; what comes now is told anew.
    if (moved < bytes) return Outcome::part;
  }
  return Outcome::whole;
}

bool TcpConnection::delivered() const {
  int queued = 0;
  return is_closed(socket_.get()) || ::ioctl(socket_.get(), SIOCOUTQ, &queued) != 0 || queued <= 0;
}

}  // namespace pycomm
