// SPDX-License-Identifier: MIT
// Single-producer single-consumer ring of frames in shared memory, and the channel made of two
// rings.
//
// Every slot has a header of one cache line at a fixed place and a payload area elsewhere. The
// producer publishes by storing the frame's number into the header; the consumer polls that very
// line, so that a small frame costs one cache-line transfer: number, header and up to 16 bytes of
// payload come together. The consumer gives slots back through `consumed`, which the producer reads
// only when it believes the ring to be full. One thread per side. The ring's memory belongs to the
// receiving rank's inbox; the channel only points into it.
//
// A reference is a frame whose small payload says where in the sender's arena the memory lies. The
// receiver resolves it in its own mapping of that arena and refuses whatever is not inside; that it
// has such a mapping it says in the ring, and until it does the sender sends payload.
#pragma once

#include <atomic>
#include <memory>

#include "base/fd.h"
#include "base/limits.h"
#include "transport/arena.h"
#include "transport/channel.h"
#include "transport/doorbell.h"
#include "transport/peer_arena.h"
#include "transport/shared_memory.h"

namespace pycomm {

struct alignas(kCacheLineBytes) SlotHeader {
  std::atomic<uint64_t> number{0};  // 1 + index of the frame it holds; 0: never used
  FrameHeader frame;
  std::byte small_payload[kInlinePayloadBytes];
};
static_assert(sizeof(SlotHeader) == kCacheLineBytes);

// The small payload of a reference.
struct ArenaReference {
  // In place of payload_bytes, and larger than any payload.
  static constexpr uint32_t kMark = 0xffffffff;
  static constexpr uint64_t kAnswerHere = uint64_t{1} << 63;
  static constexpr uint64_t kOneForEachPeer = uint64_t{1} << 62;
  uint64_t offset = 0;
  uint64_t bytes = 0;  // and the marks
};
static_assert(sizeof(ArenaReference) <= kInlinePayloadBytes);

// Where things lie in a ring: one page for `consumed`, whether references are welcome, and the
// headers; then the payload areas.
struct RingLayout {
  size_t segment_bytes = kSegmentBytes;
  int slots = kSlots;

  static constexpr size_t kConsumedOffset = 0;
  static constexpr size_t kReferencesOffset = kCacheLineBytes;
  static constexpr size_t kHeadersOffset = 2 * kCacheLineBytes;
  size_t payload_offset() const { return kPageBytes; }
  // Whole pages: rings are mapped one by one.
  size_t bytes() const {
    const size_t used = payload_offset() + segment_bytes * static_cast<size_t>(slots);
    return (used + kPageBytes - 1) / kPageBytes * kPageBytes;
  }
};

class RingProducer {
 public:
  RingProducer(std::byte* ring, RingLayout layout, Doorbell* peer, int peer_event_fd);
  std::byte* try_reserve(size_t payload_bytes);
  void commit(const FrameHeader& header);
  bool takes_references() const;
  bool try_commit_reference(const FrameHeader& header, const ArenaReference& reference);
  bool references_consumed();

 private:
  std::byte* ring_;
  RingLayout layout_;
  Doorbell* peer_;
  int peer_event_fd_;
  uint64_t produced_ = 0;
  uint64_t consumed_seen_ = 0;
  uint64_t last_reference_ = 0;  // frames produced when it was
  size_t reserved_bytes_ = 0;
};

class RingConsumer {
 public:
  // `arena` is the sender's; nullptr where there is none.
  RingConsumer(std::byte* ring, RingLayout layout, Doorbell* peer, int peer_event_fd,
               PeerArena* arena);
  bool try_peek(ReceivedFrame& frame);
  void consume();

 private:
  void resolve(const SlotHeader& slot);
  std::byte* ring_;
  RingLayout layout_;
  Doorbell* peer_;
  int peer_event_fd_;
  PeerArena* arena_;  // mapped
  uint64_t consumed_ = 0;
  ReceivedFrame reference_;  // the last one that was resolved
  uint64_t resolved_ = 0;    // frames up to and with it
};

// What two channels to the same peer share: the peer's doorbell, ring memory and arena.
struct ShmPeer {
  Mapping outbox;     // our rings in the peer's inbox
  Mapping bell_page;  // the first page of the peer's inbox
  Fd event_fd;
  std::shared_ptr<PeerArena> arena;  // null where the peer has none
};

class ShmChannel final : public Channel {
 public:
  ShmChannel(std::shared_ptr<ShmPeer> peer, std::shared_ptr<Mapping> inbox, std::byte* send_ring,
             std::byte* receive_ring, RingLayout layout);

  std::byte* try_reserve(size_t payload_bytes) override;
  void commit(const FrameHeader& header) override { producer_.commit(header); }
  bool try_peek(ReceivedFrame& frame) override { return consumer_.try_peek(frame); }
  void consume() override { consumer_.consume(); }
  bool peer_reaches(const std::byte* data, size_t bytes, size_t bytes_min) const override {
    return bytes >= bytes_min && Arena::of_process().holds(data, bytes) &&
           producer_.takes_references();
  }
  bool try_commit_reference(const FrameHeader& header, const Window& window) override;
  bool references_consumed() override { return producer_.references_consumed(); }
  bool try_flush() override { return true; }
  size_t payload_bytes_max() const override { return layout_.segment_bytes; }

 private:
  std::shared_ptr<ShmPeer> peer_;
  std::shared_ptr<Mapping> inbox_;
  RingLayout layout_;
  RingProducer producer_;
  RingConsumer consumer_;
};

}  // namespace pycomm
