// SPDX-License-Identifier: MIT
// Frames over several TCP connections to one peer.
//
// Frame number k travels on connection k mod n, so the receiver knows where the next one will
// arrive and order needs no reassembly. Every frame carries its number and a CRC-32C of header and
// payload. Large payloads go from the sender's memory into the kernel and, where the receiver knows
// what comes next, from the kernel into its memory; what is reserved and committed, small or of
// unknown kind is staged here. Sockets never block. One thread per side, as Channel says. The
// channel owns its sockets.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/fd.h"
#include "base/limits.h"
#include "transport/channel.h"
#include "transport/tcp_connection.h"

namespace pycomm {

struct TcpFrameHeader {
  uint32_t magic = kMagic;
  uint32_t crc = 0;  // over everything below and the payload
  uint64_t number = 0;
  FrameHeader frame;

  static constexpr uint32_t kMagic = 0x46637970;  // "pycF"
};
static_assert(sizeof(TcpFrameHeader) == 56);

class TcpChannel final : public Channel {
 public:
  // `peer` names the other end in errors, for example "rank 2 at 10.0.0.7 (eth0)".
  TcpChannel(std::vector<Fd> sockets, int peer_rank, std::string peer, size_t segment_bytes);
  ~TcpChannel() override;

  std::byte* try_reserve(size_t payload_bytes) override;
  void commit(const FrameHeader& header) override;
  bool try_send(const FrameHeader& header, const std::byte* payload) override;
  bool try_peek(ReceivedFrame& frame) override { return try_peek_into(frame, {}, nullptr); }
  bool try_peek_into(ReceivedFrame& frame, const FrameHeader& expected, std::byte* into) override;
  void consume() override;
  bool try_flush() override;
  size_t payload_bytes_max() const override { return segment_bytes_; }
  void close_by(Deadline deadline) override { close_by_ = deadline; }

 private:
  struct Outgoing {
    TcpFrameHeader header;
    const std::byte* payload = nullptr;
    size_t moved = 0;  // bytes of both that the kernel has taken
    bool whole() const { return moved == sizeof(header) + header.frame.payload_bytes; }
  };
  struct Incoming {
    TcpFrameHeader header;
    size_t header_moved = 0;
    std::byte* payload = nullptr;
    size_t moved = 0;  // bytes of the payload
    uint32_t crc = 0;  // of what has come
    bool whole = false;
  };
  using Outcome = TcpConnection::Outcome;

  TcpConnection& connection_of(uint64_t number) {
    return connections_[number % connections_.size()];
  }
  Outgoing outgoing(const FrameHeader& header, const std::byte* payload) const;
  bool send(Outgoing& one, uint64_t number);
  bool receive(const FrameHeader& expected, std::byte* into);
  void check_header() const;
  [[noreturn]] void lost(Outcome outcome) const;
  [[noreturn]] void lost(const std::string& why) const;

  std::deque<TcpConnection> connections_;
  int peer_rank_;
  std::string peer_;
  size_t segment_bytes_;
  std::optional<Deadline> close_by_;

  std::vector<std::unique_ptr<std::byte[]>> staging_;  // kSlots payloads on their way out
  std::vector<Outgoing> staged_;                       // frames in them
  std::optional<Outgoing> direct_;                     // a try_send() that is not through yet
  uint64_t committed_ = 0;                             // frames handed over by the engine
  uint64_t sent_ = 0;                                  // frames the kernel has taken whole

  std::unique_ptr<std::byte[]> arriving_;  // a payload that goes nowhere else
  Incoming incoming_;
  uint64_t consumed_ = 0;
};

}  // namespace pycomm
