// SPDX-License-Identifier: MIT
#include "transport/control_link.h"

#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace pycomm {

void Notice::set_text(const std::string& value) {
  size_t bytes = std::min(value.size(), sizeof(text) - 1);
  // Never half a character: Python will not take that for text.
  while (bytes > 0 && bytes < value.size() && (value[bytes] & 0xc0) == 0x80) --bytes;
  std::memcpy(text, value.data(), bytes);
  text[bytes] = 0;
}

std::string Notice::get_text() const { return std::string(text, ::strnlen(text, sizeof(text))); }

ControlLink::ControlLink(Fd socket, pid_t pid) : socket_(std::move(socket)) {
  if (pid > 0) process_ = Fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
}

bool ControlLink::send(const Notice& notice) {
  const std::lock_guard lock(sending_);
  // A notice follows the tail of the one before, or it is dropped: framing stays whole either way.
  if (unsent_.size() > 64 * sizeof(Notice)) return false;
  unsent_.append(reinterpret_cast<const char*>(&notice), sizeof(notice));
  while (!unsent_.empty()) {
    const auto sent = ::send(socket_.get(), unsent_.data(),
                             std::min(unsent_.size(), sizeof(notice)), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return errno == EAGAIN;
    unsent_.erase(0, static_cast<size_t>(sent));
  }
  return true;
}

ControlLink::Status ControlLink::receive(Notice& notice) {
  while (received_.size() < sizeof(Notice)) {
    char piece[sizeof(Notice)];
    const auto got = ::recv(socket_.get(), piece, sizeof(Notice) - received_.size(), MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return Status::none;
    // A peer that closed before it had read everything resets the connection. The kernel reports
    // that once, ahead of what the peer said last, and that explains its end.
    if (got < 0 && errno == ECONNRESET && !std::exchange(reset_, true)) continue;
    if (got <= 0) return Status::closed;
    received_.append(piece, static_cast<size_t>(got));
  }
  std::memcpy(&notice, received_.data(), sizeof(Notice));
  received_.clear();
  // A peer that speaks another language is as good as gone.
  return notice.magic == Notice::kMagic ? Status::notice : Status::closed;
}

bool ControlLink::at_end() const {
  char byte;
  const auto got = ::recv(socket_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
}

void ControlLink::close_writing() { ::shutdown(socket_.get(), SHUT_WR); }

}  // namespace pycomm
