// SPDX-License-Identifier: MIT
#include "transport/tcp_channel.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/crc32c.h"
#include "base/error.h"

namespace pycomm {
namespace {

uint32_t crc_of(const TcpFrameHeader& header) {
  constexpr size_t skipped = offsetof(TcpFrameHeader, number);
  const auto* covered = reinterpret_cast<const std::byte*>(&header) + skipped;
  return crc32c(0, covered, sizeof(header) - skipped);
}

}  // namespace

TcpChannel::TcpChannel(std::vector<Fd> sockets, int peer_rank, std::string peer,
                       size_t segment_bytes)
    : peer_rank_(peer_rank),
      peer_(std::move(peer)),
      segment_bytes_(segment_bytes),
      staging_(kSlots),
      staged_(kSlots) {
  for (Fd& socket : sockets) connections_.emplace_back(std::move(socket));
}

// Closing a socket that holds unread data resets the connection and throws away what the kernel has
// not delivered yet, though we called it sent; so that goes out first. What has reached the peer's
// kernel stays there for it to read.
TcpChannel::~TcpChannel() {
  const auto patience = close_by_.value_or(Deadline::after(kTcpLinger));
  for (const auto& connection : connections_) {
    while (!connection.delivered() && !patience.expired()) ::usleep(500);
  }
}

void TcpChannel::lost(const std::string& why) const {
  throw CommError(Failure{FailureKind::peer_failure,
                          str("the connection to ", peer_, " is lost: ", why),
                          {peer_rank_}});
}

void TcpChannel::lost(Outcome outcome) const {
  lost(outcome == Outcome::closed ? "the peer closed it" : std::strerror(errno));
}

// ---- sending

TcpChannel::Outgoing TcpChannel::outgoing(const FrameHeader& header,
                                          const std::byte* payload) const {
  Outgoing one;
  one.header.number = committed_;
  one.header.frame = header;
  one.header.crc = crc32c(crc_of(one.header), payload, header.payload_bytes);
  one.payload = payload;
  return one;
}

// True when the frame has gone whole.
bool TcpChannel::send(Outgoing& one, uint64_t number) {
  const auto outcome = connection_of(number).send(&one.header, sizeof(one.header), one.payload,
                                                  one.header.frame.payload_bytes, one.moved);
  if (outcome == Outcome::broken) lost(outcome);
  return outcome == Outcome::whole;
}

std::byte* TcpChannel::try_reserve(size_t payload_bytes) {
  PYCOMM_ASSERT(payload_bytes <= segment_bytes_, payload_bytes, " > ", segment_bytes_);
  PYCOMM_ASSERT(!direct_, "a frame that was begun must be sent first");
  if (committed_ - sent_ >= kSlots) {
    try_flush();
    if (committed_ - sent_ >= kSlots) return nullptr;
  }
  auto& room = staging_[committed_ % kSlots];
  if (!room) room.reset(new std::byte[segment_bytes_]);
  return room.get();
}

void TcpChannel::commit(const FrameHeader& header) {
  const size_t index = committed_ % kSlots;
  staged_[index] = outgoing(header, staging_[index].get());
  ++committed_;
  try_flush();
}

bool TcpChannel::try_flush() {
  // Each connection sends its own frames in order: a connection that is full holds up only itself.
  for (size_t c = 0; c < connections_.size() && sent_ < committed_; ++c) {
    for (uint64_t number = sent_; number < committed_; ++number) {
      if (number % connections_.size() != c) continue;
      if (!send(staged_[number % kSlots], number)) break;
    }
  }
  while (sent_ < committed_ && staged_[sent_ % kSlots].whole()) ++sent_;
  return sent_ == committed_;
}

bool TcpChannel::try_send(const FrameHeader& header, const std::byte* payload) {
  if (header.payload_bytes <= kStagedBytes) return Channel::try_send(header, payload);
  if (!direct_) {
    if (!try_flush()) return false;
    direct_ = outgoing(header, payload);
  }
  if (!send(*direct_, committed_)) return false;
  direct_.reset();
  sent_ = ++committed_;
  return true;
}

// ---- receiving

void TcpChannel::check_header() const {
  const auto& header = incoming_.header;
  if (header.magic != TcpFrameHeader::kMagic || header.number != consumed_ ||
      header.frame.payload_bytes > segment_bytes_) {
    lost(str("frame ", consumed_, " has a damaged header (number ", header.number, ", ",
             header.frame.payload_bytes, " bytes)"));
  }
}

// True when the oldest frame has come whole and is what was sent.
bool TcpChannel::receive(const FrameHeader& expected, std::byte* into) {
  auto& connection = connection_of(consumed_);
  auto& one = incoming_;
  const auto through = [&](Outcome outcome) {
    if (outcome == Outcome::closed || outcome == Outcome::broken) lost(outcome);
    return outcome == Outcome::whole;
  };
  if (!one.payload) {
    if (!through(connection.receive(&one.header, sizeof(one.header), one.header_moved))) {
      return false;
    }
    check_header();
    one.crc = crc_of(one.header);
    one.payload = into;
    if (!into || one.header.frame != expected) {
      if (!arriving_) arriving_.reset(new std::byte[segment_bytes_]);
      one.payload = arriving_.get();
    }
  }
  const size_t before = one.moved;
  const auto outcome = connection.receive(one.payload, one.header.frame.payload_bytes, one.moved);
  one.crc = crc32c(one.crc, one.payload + before, one.moved - before);
  if (!through(outcome)) return false;
  if (one.crc != one.header.crc) {
    lost(str("frame ", consumed_, " fails its CRC-32C; the network or its driver damages data"));
  }
  return true;
}

bool TcpChannel::try_peek_into(ReceivedFrame& frame, const FrameHeader& expected, std::byte* into) {
  if (!incoming_.whole) incoming_.whole = receive(expected, into);
  if (!incoming_.whole) return false;
  frame.header = incoming_.header.frame;
  frame.payload = incoming_.payload;
  frame.window = {};
  return true;
}

void TcpChannel::consume() {
  incoming_ = {};
  ++consumed_;
}

}  // namespace pycomm
