// SPDX-License-Identifier: MIT
// A channel carries frames, in order and both ways, between this rank and one peer.
//
// Reserve/commit on the sending side and peek/consume on the receiving side hand out the
// transport's own memory, so that a sender encodes straight into the ring and a reducer adds
// straight out of it. Nothing here blocks: `try_` calls return at once and say whether they could.
// The sending side may be used by one thread at a time, and so may the receiving side; the two may
// be different threads. Memory handed out belongs to the channel and is valid until commit or
// consume. A broken connection throws CommError(peer_failure).
//
// Where the peer maps memory of this process, a frame may carry a reference in place of payload:
// the receiver then works on the sender's memory itself, from peek until consume. Until then that
// memory belongs to the receiver, and references_consumed() says when it is the sender's again.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/deadline.h"

namespace pycomm {

// What travels in front of every payload. `number` and `tag` are opaque here; the engine counts an
// operation's frames in the one and puts the operation's signature into the other.
struct FrameHeader {
  uint32_t payload_bytes = 0;
  uint32_t number = 0;  // index on this lane within the operation or the message
  std::array<uint64_t, 4> tag{};

  bool operator==(const FrameHeader&) const = default;
};
static_assert(sizeof(FrameHeader) == 40);

// What a reference refers to: memory of the sender, at the address where the reader of this
// structure sees it.
struct Window {
  std::byte* data = nullptr;
  size_t bytes = 0;
  // The sender waits for an answer in this very memory and leaves it alone meanwhile: the receiver
  // may write the answer there. Without it the memory may only be read.
  bool answer_here = false;
  // In this operation the sender gives every one of its peers such a window.
  bool one_for_each_peer = false;
};

struct ReceivedFrame {
  FrameHeader header;  // a copy: what is checked cannot change under the check
  const std::byte* payload = nullptr;
  Window window;  // of a reference, whose header.payload_bytes is 0; otherwise data is null
};

class Channel {
 public:
  Channel() = default;
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  virtual ~Channel() = default;

  // Room for one frame's payload, or nullptr while there is none. Reserving again before commit
  // gives the same room. At most payload_bytes_max() bytes.
  virtual std::byte* try_reserve(size_t payload_bytes) = 0;
  // Sends the reserved frame; header.payload_bytes is at most what was reserved.
  virtual void commit(const FrameHeader& header) = 0;
  // The oldest frame not yet consumed; false while there is none. Peeking again gives the same
  // frame.
  virtual bool try_peek(ReceivedFrame& frame) = 0;
  virtual void consume() = 0;

  // Reserve, copy and commit in one. A transport that copies anyway takes the payload from where it
  // lies. False until the frame is through: then the next use of this side must be the same call,
  // with the same bytes still there.
  virtual bool try_send(const FrameHeader& header, const std::byte* payload) {
    std::byte* const room = try_reserve(header.payload_bytes);
    if (!room) return false;
    if (header.payload_bytes) std::memcpy(room, payload, header.payload_bytes);
    commit(header);
    return true;
  }
  // As try_peek. A transport that copies anyway may put the payload of a frame with exactly this
  // header at `into`, which then is frame.payload. Until it has come whole, or the channel is not
  // used any more, that memory must stay.
  virtual bool try_peek_into(ReceivedFrame& frame, const FrameHeader& /*expected*/,
                             std::byte* /*into*/) {
    return try_peek(frame);
  }

  // Whether the peer can reach this memory and a reference to it pays, which it does from
  // `bytes_min` on where it spares a copy that costs something.
  virtual bool peer_reaches(const std::byte* /*data*/, size_t /*bytes*/,
                            size_t /*bytes_min*/) const {
    return false;
  }
  // Sends a frame that refers to `window`, memory for which peer_reaches() holds; false while there
  // is no room.
  virtual bool try_commit_reference(const FrameHeader& /*header*/, const Window& /*window*/) {
    return false;
  }
  // Whether the peer has consumed every reference sent on this lane.
  virtual bool references_consumed() { return true; }

  // Pushes what is committed but still here; true when everything has left this process.
  virtual bool try_flush() = 0;
  virtual size_t payload_bytes_max() const = 0;
  // The destructor may wait until then for the kernel to deliver what it has taken.
  virtual void close_by(Deadline /*deadline*/) {}
};

}  // namespace pycomm
