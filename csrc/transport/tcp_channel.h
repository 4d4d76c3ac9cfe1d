// SPDX-License-Identifier: MIT
// Frames over several TCP connections to one peer.
//
// Frame number k travels on connection k mod n, so the receiver knows where the next one will
// arrive and order needs no reassembly. Every frame carries its number and a CRC-32C of header and
// payload. Both sides keep kSlots frames in private memory; sockets never block. One thread per
// side, as Channel says. The channel owns its sockets.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/limits.h"
#include "transport/channel.h"

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
  bool try_peek(ReceivedFrame& frame) override;
  void consume() override;
  bool try_flush() override;
  size_t payload_bytes_max() const override { return segment_bytes_; }

 private:
  // One frame in memory: wire header, then payload.
  struct Slot {
    std::unique_ptr<std::byte[]> bytes;
    size_t moved = 0;  // bytes sent or received so far
    TcpFrameHeader& header() { return *reinterpret_cast<TcpFrameHeader*>(bytes.get()); }
    std::byte* payload() { return bytes.get() + sizeof(TcpFrameHeader); }
  };
  Slot& slot(std::vector<Slot>& slots, uint64_t number);
  int socket_of(uint64_t number) const;
  bool send_frame(uint64_t number);
  bool receive_frame(uint64_t number);
  void verify(Slot& slot, uint64_t number);
  [[noreturn]] void lost(const std::string& why) const;

  std::vector<Fd> sockets_;
  int peer_rank_;
  std::string peer_;
  size_t segment_bytes_;
  std::vector<Slot> sending_;
  std::vector<Slot> receiving_;
  std::vector<bool> received_;  // by slot: whole and verified
  uint64_t committed_ = 0;      // frames handed over by the engine
  uint64_t sent_ = 0;           // frames the kernel has taken whole, in order
  uint64_t consumed_ = 0;
};

}  // namespace pycomm
