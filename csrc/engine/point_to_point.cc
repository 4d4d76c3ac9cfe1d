// SPDX-License-Identifier: MIT
#include "engine/point_to_point.h"

#include <algorithm>
#include <cstring>

namespace pycomm {
namespace {

uint32_t segments_of(size_t bytes, size_t segment_bytes) {
  return static_cast<uint32_t>(std::max<size_t>(1, (bytes + segment_bytes - 1) / segment_bytes));
}

}  // namespace

PointToPoint::PointToPoint(Mesh& mesh)
    : mesh_(mesh), peers_(static_cast<size_t>(mesh.world_size())) {}

size_t PointToPoint::segment_bytes(DType dtype) const {
  return mesh_.segment_bytes() / size_of(dtype) * size_of(dtype);
}

void PointToPoint::post(OperationPtr operation) {
  const std::lock_guard lock(mutex_);
  pending_.fetch_add(1, std::memory_order_release);
  if (operation->collective == Collective::send) {
    Peer& peer = peers_[static_cast<size_t>(operation->peer)];
    operation->sequence = peer.sent;
    peer.outgoing.push_back({std::move(operation), peer.sent++, 0});
  } else {
    receives_.push_back(std::move(operation));
  }
}

bool PointToPoint::wanted_from(int peer) const {
  for (const auto& receive : receives_) {
    if (receive->peer == peer || receive->peer == kAnySource) return true;
  }
  return false;
}

bool PointToPoint::advance(std::vector<OperationPtr>& finished) {
  const std::lock_guard lock(mutex_);
  const size_t before = finished.size();
  bool moved = false;
  for (auto at = receives_.begin(); at != receives_.end();) {
    const auto here = at++;
    if (!take_set_aside(*here)) continue;
    finished.push_back(*here);
    receives_.erase(here);
  }
  for (int peer = 0; peer < mesh_.world_size(); ++peer) {
    if (peer == mesh_.rank()) continue;
    Peer& state = peers_[static_cast<size_t>(peer)];
    if (!state.outgoing.empty()) moved |= send_some(peer, finished);
    if (state.receiving || wanted_from(peer)) moved |= receive_if_open(peer, finished);
  }
  pending_.fetch_sub(finished.size() - before, std::memory_order_release);
  return moved || finished.size() != before;
}

// A rank that has left closes its lanes. That is no concern of a recv from any source: another rank
// may still send.
bool PointToPoint::receive_if_open(int peer, std::vector<OperationPtr>& finished) {
  Peer& state = peers_[static_cast<size_t>(peer)];
  const bool particular =
      state.receiving || std::any_of(receives_.begin(), receives_.end(),
                                     [peer](const OperationPtr& one) { return one->peer == peer; });
  if (state.closed && !particular) return false;
  try {
    return receive_some(peer, finished);
  } catch (const CommError& error) {
    if (error.failure().kind != FailureKind::peer_failure || particular || state.receiving) throw;
    state.closed = true;
    return false;
  }
}

bool PointToPoint::send_some(int peer, std::vector<OperationPtr>& finished) {
  Peer& state = peers_[static_cast<size_t>(peer)];
  Channel& channel = mesh_.channel(peer, Lane::point_to_point);
  bool moved = false;
  while (!state.outgoing.empty()) {
    Outgoing& out = state.outgoing.front();
    const Operation& operation = *out.operation;
    if (!operation.ready()) break;
    const size_t unit = segment_bytes(operation.dtype);
    const size_t total = operation.work[0].count * size_of(operation.dtype);
    const uint32_t segments = segments_of(total, unit);
    OpSignature signature;
    signature.sequence = out.number;
    signature.count = operation.work[0].count;
    signature.root = operation.root;
    signature.collective = Collective::send;
    signature.dtype = operation.dtype;
    for (; out.segment < segments; ++out.segment) {
      const size_t begin = out.segment * unit;
      const size_t bytes = std::min(unit, total - begin);
      const FrameHeader header{static_cast<uint32_t>(bytes), out.segment, signature.pack()};
      if (!channel.try_send(header, operation.work[0].data + begin)) break;
      moved = true;
    }
    // Finished only when nothing of it is left in this process: afterwards nobody might come to
    // push.
    if (out.segment < segments || !channel.try_flush()) break;
    finished.push_back(out.operation);
    state.outgoing.pop_front();
  }
  return moved;
}

std::list<PointToPoint::OperationPtr>::iterator PointToPoint::match(int peer, int tag) {
  return std::find_if(receives_.begin(), receives_.end(), [&](const OperationPtr& one) {
    return (one->peer == peer || one->peer == kAnySource) && one->root == tag;
  });
}

void PointToPoint::check_fits(int peer, const OpSignature& signature,
                              const Operation& operation) const {
  if (signature.dtype == operation.dtype && signature.count == operation.work[0].count) return;
  throw CommError(Failure{
      FailureKind::mismatch,
      str("rank ", peer, " sent ", name_of(signature.dtype), "[", signature.count, "] with tag ",
          operation.root, ", but rank ", mesh_.rank(), " expected ", name_of(operation.dtype), "[",
          operation.work[0].count,
          "]; check that send and recv use tensors of the same shape and dtype in the same order"),
      {peer}});
}

// Decides where the message whose first frame is at hand goes. False: nobody waits for it or for
// anything behind it.
bool PointToPoint::begin_message(int peer, const OpSignature& signature) {
  Peer& state = peers_[static_cast<size_t>(peer)];
  const auto receive = match(peer, signature.root);
  if (receive == receives_.end() && !wanted_from(peer)) return false;
  if (signature.collective != Collective::send || signature.sequence != state.received) {
    throw CommError(
        Failure{FailureKind::mismatch,
                str("message ", signature.sequence, " came from rank ", peer, " to rank ",
                    mesh_.rank(), " where message ", state.received, " was due; a frame was lost"),
                {peer}});
  }
  ++state.received;
  state.incoming = {signature, 0, nullptr, {}};
  if (receive != receives_.end()) {
    check_fits(peer, signature, **receive);
    state.incoming.into = *receive;
    receives_.erase(receive);
  } else {
    state.incoming.aside.resize(signature.count * size_of(signature.dtype));
  }
  state.receiving = true;
  return true;
}

// What continues a message may go straight to where the rest of it lies.
bool PointToPoint::peek(Channel& channel, Peer& state, ReceivedFrame& frame) const {
  if (!state.receiving) return channel.try_peek(frame);
  Incoming& in = state.incoming;
  const size_t unit = segment_bytes(in.signature.dtype);
  const size_t begin = in.segment * unit;
  const size_t left = in.signature.count * size_of(in.signature.dtype) - begin;
  const FrameHeader expected{static_cast<uint32_t>(std::min(unit, left)), in.segment,
                             in.signature.pack()};
  return channel.try_peek_into(frame, expected, in.data() + begin);
}

bool PointToPoint::receive_some(int peer, std::vector<OperationPtr>& finished) {
  Peer& state = peers_[static_cast<size_t>(peer)];
  Channel& channel = mesh_.channel(peer, Lane::point_to_point);
  bool moved = false;
  ReceivedFrame frame;
  while (peek(channel, state, frame)) {
    const auto signature = OpSignature::unpack(frame.header.tag);
    if (!state.receiving && !begin_message(peer, signature)) break;
    Incoming& in = state.incoming;
    const size_t unit = segment_bytes(in.signature.dtype);
    const size_t total = in.signature.count * size_of(in.signature.dtype);
    const size_t begin = in.segment * unit;
    if (signature != in.signature || frame.header.number != in.segment || begin > total ||
        frame.header.payload_bytes != std::min(unit, total - begin)) {
      throw CommError(Failure{FailureKind::mismatch,
                              str("a frame from rank ", peer, " to rank ", mesh_.rank(),
                                  " does not continue its message"),
                              {peer}});
    }
    if (frame.header.payload_bytes) {
      std::byte* target = in.data() + begin;
      if (frame.payload != target) std::memcpy(target, frame.payload, frame.header.payload_bytes);
    }
    channel.consume();
    moved = true;
    if (++in.segment < segments_of(total, unit)) continue;
    state.receiving = false;
    if (in.into) {
      in.into->source = peer;
      in.into->sequence = in.signature.sequence;
      finished.push_back(std::move(in.into));
    } else if (const auto receive = match(peer, in.signature.root); receive != receives_.end()) {
      // Posted while the message was being set aside: it must not be overtaken by the next one.
      check_fits(peer, in.signature, **receive);
      if (!in.aside.empty()) {
        std::memcpy((*receive)->work[0].data, in.aside.data(), in.aside.size());
      }
      (*receive)->source = peer;
      finished.push_back(*receive);
      receives_.erase(receive);
    } else {
      state.set_aside.push_back(std::move(in));
    }
    if (!wanted_from(peer)) break;
  }
  return moved;
}

bool PointToPoint::take_set_aside(const OperationPtr& operation) {
  for (int peer = 0; peer < mesh_.world_size(); ++peer) {
    if (operation->peer != kAnySource && operation->peer != peer) continue;
    auto& messages = peers_[static_cast<size_t>(peer)].set_aside;
    for (auto at = messages.begin(); at != messages.end(); ++at) {
      if (at->signature.root != operation->root) continue;
      check_fits(peer, at->signature, *operation);
      if (!at->aside.empty()) {
        std::memcpy(operation->work[0].data, at->aside.data(), at->aside.size());
      }
      operation->source = peer;
      messages.erase(at);
      return true;
    }
  }
  return false;
}

std::vector<PointToPoint::OperationPtr> PointToPoint::take_all() {
  const std::lock_guard lock(mutex_);
  std::vector<OperationPtr> all(receives_.begin(), receives_.end());
  receives_.clear();
  for (Peer& peer : peers_) {
    for (auto& out : peer.outgoing) all.push_back(std::move(out.operation));
    peer.outgoing.clear();
    if (peer.receiving && peer.incoming.into) all.push_back(std::move(peer.incoming.into));
    peer.receiving = false;
  }
  pending_.store(0, std::memory_order_release);
  return all;
}

std::shared_ptr<Operation> PointToPoint::needs(int peer) {
  const std::lock_guard lock(mutex_);
  Peer& state = peers_[static_cast<size_t>(peer)];
  if (!state.outgoing.empty()) return state.outgoing.front().operation;
  if (state.receiving) return state.incoming.into;
  for (const auto& receive : receives_) {
    if (receive->peer == peer) return receive;
  }
  return nullptr;
}

bool PointToPoint::waits_for_any() {
  const std::lock_guard lock(mutex_);
  return std::any_of(receives_.begin(), receives_.end(),
                     [](const OperationPtr& one) { return one->peer == kAnySource; });
}

bool PointToPoint::awaits_ready() {
  const std::lock_guard lock(mutex_);
  return std::any_of(peers_.begin(), peers_.end(), [](const Peer& peer) {
    return !peer.outgoing.empty() && !peer.outgoing.front().operation->ready();
  });
}

std::vector<int> PointToPoint::awaited() {
  std::vector<int> peers;
  for (int peer = 0; peer < mesh_.world_size(); ++peer) {
    if (peer != mesh_.rank() && needs(peer)) peers.push_back(peer);
  }
  return peers;
}

std::shared_ptr<Operation> PointToPoint::expired() {
  const std::lock_guard lock(mutex_);
  for (const auto& receive : receives_) {
    if (receive->deadline.expired()) return receive;
  }
  for (Peer& peer : peers_) {
    if (!peer.outgoing.empty() && peer.outgoing.front().operation->deadline.expired()) {
      return peer.outgoing.front().operation;
    }
    if (peer.receiving && peer.incoming.into && peer.incoming.into->deadline.expired()) {
      return peer.incoming.into;
    }
  }
  return nullptr;
}

}  // namespace pycomm
