// SPDX-License-Identifier: MIT
#include "transport/tcp_channel.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/crc32c.h"
#include "base/deadline.h"
#include "base/error.h"

namespace pycomm {
namespace {

uint32_t crc_of(const TcpFrameHeader& header, const std::byte* payload) {
  constexpr size_t skipped = offsetof(TcpFrameHeader, number);
  const auto* covered = reinterpret_cast<const std::byte*>(&header) + skipped;
  const uint32_t crc = crc32c(0, covered, sizeof(header) - skipped);
  return crc32c(crc, payload, header.frame.payload_bytes);
}

// After a reset nothing will be delivered, but what was queued goes on being counted.
bool is_closed(int socket) {
  tcp_info info{};
  socklen_t size = sizeof(info);
  return ::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
         info.tcpi_state == TCP_CLOSE;
}

}  // namespace

TcpChannel::TcpChannel(std::vector<Fd> sockets, int peer_rank, std::string peer,
                       size_t segment_bytes)
    : sockets_(std::move(sockets)),
      peer_rank_(peer_rank),
      peer_(std::move(peer)),
      segment_bytes_(segment_bytes),
      sending_(kSlots),
      receiving_(kSlots),
      received_(kSlots, false) {}

// Closing a socket that holds unread data resets the connection and throws away what the kernel has
// not delivered yet, though we called it sent; so that goes out first. What has reached the peer's
// kernel stays there for it to read.
TcpChannel::~TcpChannel() {
  const auto patience = Deadline::after(kTcpLinger);
  for (const Fd& socket : sockets_) {
    int queued = 0;
    while (!is_closed(socket.get()) && ::ioctl(socket.get(), SIOCOUTQ, &queued) == 0 &&
           queued > 0 && !patience.expired()) {
      ::usleep(500);
    }
  }
}

TcpChannel::Slot& TcpChannel::slot(std::vector<Slot>& slots, uint64_t number) {
  auto& one = slots[number % kSlots];
  if (!one.bytes) one.bytes.reset(new std::byte[sizeof(TcpFrameHeader) + segment_bytes_]);
  return one;
}

int TcpChannel::socket_of(uint64_t number) const {
  return sockets_[number % sockets_.size()].get();
}

void TcpChannel::lost(const std::string& why) const {
  throw CommError(Failure{FailureKind::peer_failure,
                          str("the connection to ", peer_, " is lost: ", why),
                          {peer_rank_}});
}

std::byte* TcpChannel::try_reserve(size_t payload_bytes) {
  PYCOMM_ASSERT(payload_bytes <= segment_bytes_, payload_bytes, " > ", segment_bytes_);
  if (committed_ - sent_ >= kSlots) {
    try_flush();
    if (committed_ - sent_ >= kSlots) return nullptr;
  }
  return slot(sending_, committed_).payload();
}

void TcpChannel::commit(const FrameHeader& header) {
  auto& one = slot(sending_, committed_);
  one.header() = TcpFrameHeader{};
  one.header().number = committed_;
  one.header().frame = header;
  one.header().crc = crc_of(one.header(), one.payload());
  one.moved = 0;
  ++committed_;
  try_flush();
}

// True when the frame has gone whole.
bool TcpChannel::send_frame(uint64_t number) {
  auto& one = slot(sending_, number);
  const size_t total = sizeof(TcpFrameHeader) + one.header().frame.payload_bytes;
  while (one.moved < total) {
    const auto sent = ::send(socket_of(number), one.bytes.get() + one.moved, total - one.moved,
                             MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) return false;
    if (sent < 0) lost(std::strerror(errno));
    one.moved += static_cast<size_t>(sent);
  }
  return true;
}

bool TcpChannel::try_flush() {
  // Each connection sends its own frames in order: a connection that is full holds up only itself.
  for (size_t c = 0; c < sockets_.size(); ++c) {
    for (uint64_t number = sent_; number < committed_; ++number) {
      if (number % sockets_.size() != c) continue;
      if (!send_frame(number)) break;
    }
  }
  while (sent_ < committed_) {
    auto& one = slot(sending_, sent_);
    if (one.moved < sizeof(TcpFrameHeader) + one.header().frame.payload_bytes) return false;
    ++sent_;
  }
  return true;
}

void TcpChannel::verify(Slot& one, uint64_t number) {
  const auto& header = one.header();
  if (header.magic != TcpFrameHeader::kMagic || header.number != number ||
      header.frame.payload_bytes > segment_bytes_) {
    lost(str("frame ", number, " has a damaged header (number ", header.number, ", ",
             header.frame.payload_bytes, " bytes)"));
  }
}

bool TcpChannel::receive_frame(uint64_t number) {
  auto& one = slot(receiving_, number);
  while (true) {
    const bool in_header = one.moved < sizeof(TcpFrameHeader);
    const size_t total = in_header ? sizeof(TcpFrameHeader)
                                   : sizeof(TcpFrameHeader) + one.header().frame.payload_bytes;
    if (one.moved == total) break;
    const auto got =
        ::recv(socket_of(number), one.bytes.get() + one.moved, total - one.moved, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return false;
    if (got < 0) lost(std::strerror(errno));
    if (got == 0) lost("the peer closed it");
    one.moved += static_cast<size_t>(got);
    if (one.moved == sizeof(TcpFrameHeader)) verify(one, number);
  }
  if (one.header().crc != crc_of(one.header(), one.payload())) {
    lost(str("frame ", number, " fails its CRC-32C; the network or its driver damages data"));
  }
  return true;
}

bool TcpChannel::try_peek(ReceivedFrame& frame) {
  const size_t index = consumed_ % kSlots;
  if (!received_[index]) received_[index] = receive_frame(consumed_);
  if (!received_[index]) return false;
  auto& one = slot(receiving_, consumed_);
  frame.header = one.header().frame;
  frame.payload = one.payload();
  return true;
}

void TcpChannel::consume() {
  const size_t index = consumed_ % kSlots;
  received_[index] = false;
  receiving_[index].moved = 0;
  ++consumed_;
}

}  // namespace pycomm
