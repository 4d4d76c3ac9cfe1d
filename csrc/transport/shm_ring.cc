// SPDX-License-Identifier: MIT
#include "transport/shm_ring.h"

#include <cstring>

#include "base/error.h"

namespace pycomm {
namespace {

std::atomic<uint64_t>& consumed_of(std::byte* ring) {
  return *reinterpret_cast<std::atomic<uint64_t>*>(ring + RingLayout::kConsumedOffset);
}

// Set by the consumer once it has the producer's arena mapped.
std::atomic<uint32_t>& references_of(std::byte* ring) {
  return *reinterpret_cast<std::atomic<uint32_t>*>(ring + RingLayout::kReferencesOffset);
}

SlotHeader& header_of(std::byte* ring, const RingLayout& layout, uint64_t frame) {
  const auto index = frame % static_cast<uint64_t>(layout.slots);
  return reinterpret_cast<SlotHeader*>(ring + RingLayout::kHeadersOffset)[index];
}

std::byte* payload_of(std::byte* ring, const RingLayout& layout, uint64_t frame, size_t bytes) {
  if (bytes <= kInlinePayloadBytes) return header_of(ring, layout, frame).small_payload;
  const auto index = frame % static_cast<uint64_t>(layout.slots);
  return ring + layout.payload_offset() + index * layout.segment_bytes;
}

}  // namespace

RingProducer::RingProducer(std::byte* ring, RingLayout layout, Doorbell* peer, int peer_event_fd)
    : ring_(ring), layout_(layout), peer_(peer), peer_event_fd_(peer_event_fd) {}

std::byte* RingProducer::try_reserve(size_t payload_bytes) {
  const auto slots = static_cast<uint64_t>(layout_.slots);
  if (produced_ - consumed_seen_ >= slots) {
    consumed_seen_ = consumed_of(ring_).load(std::memory_order_acquire);
    if (produced_ - consumed_seen_ >= slots) return nullptr;
  }
  reserved_bytes_ = payload_bytes;
  return payload_of(ring_, layout_, produced_, payload_bytes);
}

void RingProducer::commit(const FrameHeader& header) {
  auto& slot = header_of(ring_, layout_, produced_);
  slot.frame = header;
  // The consumer looks for a small payload in the header's line, wherever it was written.
  if (header.payload_bytes <= kInlinePayloadBytes && reserved_bytes_ > kInlinePayloadBytes) {
    std::memcpy(slot.small_payload, payload_of(ring_, layout_, produced_, reserved_bytes_),
                header.payload_bytes);
  }
  slot.number.store(++produced_, std::memory_order_release);
  peer_->ring(peer_event_fd_);
}

bool RingProducer::takes_references() const {
  return references_of(ring_).load(std::memory_order_relaxed) != 0;
}

bool RingProducer::try_commit_reference(const FrameHeader& header,
                                        const ArenaReference& reference) {
  std::byte* const room = try_reserve(sizeof(reference));
  if (!room) return false;
  std::memcpy(room, &reference, sizeof(reference));
  FrameHeader marked = header;
  marked.payload_bytes = ArenaReference::kMark;
  commit(marked);
  last_reference_ = produced_;
  return true;
}

bool RingProducer::references_consumed() {
  if (consumed_seen_ < last_reference_) {
    consumed_seen_ = consumed_of(ring_).load(std::memory_order_acquire);
  }
  return consumed_seen_ >= last_reference_;
}

RingConsumer::RingConsumer(std::byte* ring, RingLayout layout, Doorbell* peer, int peer_event_fd,
                           PeerArena* arena)
    : ring_(ring), layout_(layout), peer_(peer), peer_event_fd_(peer_event_fd), arena_(arena) {
  // Mapped now, while it can still be refused without a failure.
  if (arena_ && !arena_->at(kPageBytes, 0)) arena_ = nullptr;
  if (arena_) references_of(ring_).store(1, std::memory_order_relaxed);
}

bool RingConsumer::try_peek(ReceivedFrame& frame) {
  // Peeked at once for each segment that is read: what was checked stays.
  if (resolved_ == consumed_ + 1) {
    frame = reference_;
    return true;
  }
  const auto& slot = header_of(ring_, layout_, consumed_);
  if (slot.number.load(std::memory_order_acquire) != consumed_ + 1) return false;
  frame.header = slot.frame;
  frame.window = {};
  if (arena_ && frame.header.payload_bytes == ArenaReference::kMark) {
    resolve(slot);
    frame = reference_;
    return true;
  }
  if (frame.header.payload_bytes > layout_.segment_bytes) {
    throw CommError(Failure{FailureKind::system,
                            str("a frame in shared memory claims ", frame.header.payload_bytes,
                                " bytes, more than a segment of ", layout_.segment_bytes),
                            {}});
  }
  frame.payload = payload_of(ring_, layout_, consumed_, frame.header.payload_bytes);
  return true;
}

void RingConsumer::resolve(const SlotHeader& slot) {
  ArenaReference reference;
  std::memcpy(&reference, slot.small_payload, sizeof(reference));
  const uint64_t bytes =
      reference.bytes & ~(ArenaReference::kAnswerHere | ArenaReference::kOneForEachPeer);
  std::byte* const data = arena_->at(reference.offset, bytes);
  if (data && bytes > 0) {
    reference_ = {slot.frame,
                  nullptr,
                  {data, bytes, (reference.bytes & ArenaReference::kAnswerHere) != 0,
                   (reference.bytes & ArenaReference::kOneForEachPeer) != 0}};
    reference_.header.payload_bytes = 0;
    resolved_ = consumed_ + 1;
    return;
  }
  throw CommError(Failure{FailureKind::system,
                          str("a frame in shared memory refers to ", bytes, " bytes at ",
                              reference.offset, " of an arena of ", arena_->capacity()),
                          {}});
}

void RingConsumer::consume() {
  consumed_of(ring_).store(++consumed_, std::memory_order_release);
  peer_->ring(peer_event_fd_);
}

ShmChannel::ShmChannel(std::shared_ptr<ShmPeer> peer, std::shared_ptr<Mapping> inbox,
                       std::byte* send_ring, std::byte* receive_ring, RingLayout layout)
    : peer_(std::move(peer)),
      inbox_(std::move(inbox)),
      layout_(layout),
      producer_(send_ring, layout, &reinterpret_cast<RankPage*>(peer_->bell_page.data())->bell,
                peer_->event_fd.get()),
      consumer_(receive_ring, layout, &reinterpret_cast<RankPage*>(peer_->bell_page.data())->bell,
                peer_->event_fd.get(), peer_->arena.get()) {}

bool ShmChannel::try_commit_reference(const FrameHeader& header, const Window& window) {
  const uint64_t marks = (window.answer_here ? ArenaReference::kAnswerHere : 0) |
                         (window.one_for_each_peer ? ArenaReference::kOneForEachPeer : 0);
  return producer_.try_commit_reference(
      header, {Arena::of_process().offset_of(window.data), window.bytes | marks});
}

std::byte* ShmChannel::try_reserve(size_t payload_bytes) {
  PYCOMM_ASSERT(payload_bytes <= layout_.segment_bytes, payload_bytes, " > ",
                layout_.segment_bytes);
  return producer_.try_reserve(payload_bytes);
}

}  // namespace pycomm
