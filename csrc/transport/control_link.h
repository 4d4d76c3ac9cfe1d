// SPDX-License-Identifier: MIT
// The side channel to one peer for everything that is not data: is it alive, has it left, what
// failed.
//
// Notices have a fixed size, so that framing cannot go wrong. The kernel closes the socket when the
// peer's process ends, and that is the signal of its death. send() may be called from any thread
// and never blocks; receive() belongs to the engine's watcher thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "base/fd.h"

namespace pycomm {

enum class NoticeType : uint8_t { ping = 1, pong, failure, goodbye };

struct Notice {
  uint32_t magic = kMagic;
  NoticeType type = NoticeType::ping;
  uint8_t failure_kind = 0;
  uint16_t reserved = 0;
  int32_t culprit = -1;
  uint32_t reserved2 = 0;
  uint64_t begun = 0;      // the sender's last collective begun
  uint64_t completed = 0;  // and completed
  char text[480] = {};

  static constexpr uint32_t kMagic = 0x4e637970;  // "pycN"
  void set_text(const std::string& value);
  std::string get_text() const;
};
static_assert(sizeof(Notice) == 512);

class ControlLink {
 public:
  enum class Status { none, notice, closed };

  // `pid` is the peer's process as this process sees it, 0 when it is on another host.
  ControlLink(Fd socket, pid_t pid);

  // False when the peer is gone or does not read; the notice is lost then.
  bool send(const Notice& notice);
  Status receive(Notice& notice);
  // Whether the other side has closed and everything it said was read. Reads nothing itself.
  bool at_end() const;
  int fd() const { return socket_.get(); }
  // Readable when the peer's process has ended, even if a child of it keeps the socket open; -1 if
  // not to be had.
  int process_fd() const { return process_.get(); }
  void close_writing();

 private:
  Fd socket_;
  Fd process_;
  std::mutex sending_;
  std::string unsent_;    // the tail of a notice the kernel took only part of
  std::string received_;  // the beginning of the next notice
  bool reset_ = false;
};

}  // namespace pycomm
