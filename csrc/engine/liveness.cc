// SPDX-License-Identifier: MIT
#include "engine/liveness.h"

#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>

#include "base/limits.h"

namespace pycomm {
namespace {

int64_t now_ns() { return Liveness::Clock::now().time_since_epoch().count(); }

}  // namespace

Liveness::Liveness(Mesh& mesh, std::chrono::nanoseconds detect_timeout, OnFailure on_failure)
    : mesh_(mesh),
      detect_timeout_(detect_timeout),
      on_failure_(std::move(on_failure)),
      peers_(static_cast<size_t>(mesh.world_size())),
      stop_event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

void Liveness::stop() {
  stopping_ = true;
  ::eventfd_write(stop_event_.get(), 1);
}

Notice Liveness::make_notice(NoticeType type) const {
  Notice notice;
  notice.type = type;
  notice.begun = mesh_.progress().begun.load(std::memory_order_acquire);
  notice.completed = mesh_.progress().completed.load(std::memory_order_acquire);
  return notice;
}

void Liveness::watch() {
  while (!stopping_) {
    std::vector<pollfd> fds{{stop_event_.get(), POLLIN, 0}};
    std::vector<int> owner{-1};
    for (int peer = 0; peer < mesh_.world_size(); ++peer) {
      if (peer == mesh_.rank() || peers_[static_cast<size_t>(peer)].closed) continue;
      const auto& control = *mesh_.link(peer).control;
      fds.push_back({control.fd(), POLLIN, 0});
      owner.push_back(peer);
      if (control.process_fd() >= 0) {
        fds.push_back({control.process_fd(), POLLIN, 0});
        owner.push_back(peer);
      }
    }
    ::poll(fds.data(), fds.size(), -1);
    for (size_t i = 1; i < fds.size() && !stopping_; ++i) {
      const auto peer = owner[i];
      auto& state = peers_[static_cast<size_t>(peer)];
      if (!fds[i].revents || state.closed) continue;
      // What it said last explains its end, so notices are read first.
      read_notices(peer);
      const bool process_ended = fds[i].fd == mesh_.link(peer).control->process_fd();
      if (process_ended && !state.closed) on_end(peer);
    }
  }
}

void Liveness::read_notices(int peer) {
  Notice notice;
  while (true) {
    switch (mesh_.link(peer).control->receive(notice)) {
      case ControlLink::Status::none:
        return;
      case ControlLink::Status::closed:
        on_end(peer);
        return;
      case ControlLink::Status::notice:
        handle(peer, notice);
    }
  }
}

void Liveness::handle(int peer, const Notice& notice) {
  auto& state = peers_[static_cast<size_t>(peer)];
  state.heard_ns = now_ns();
  state.begun = notice.begun;
  state.completed = notice.completed;
  switch (notice.type) {
    case NoticeType::ping:
      mesh_.link(peer).control->send(make_notice(NoticeType::pong));
      break;
    case NoticeType::pong:
      break;
    case NoticeType::failure: {
      Failure failure{static_cast<FailureKind>(notice.failure_kind), notice.get_text(), {}};
      if (notice.culprit >= 0) failure.ranks.push_back(notice.culprit);
      if (notice.culprit == mesh_.rank() && failure.kind == FailureKind::peer_failure) {
        failure.text = str("rank ", peer, " declared this rank dead: ", failure.text);
      }
      on_failure_(failure, true);
      break;
    }
    case NoticeType::goodbye: {
      const std::lock_guard lock(mutex_);
      state.departure = Departure{notice.completed, notice.get_text()};
      break;
    }
  }
  if (notice.type == NoticeType::goodbye) mesh_.waiter().wake();
}

void Liveness::on_end(int peer) {
  peers_[static_cast<size_t>(peer)].closed = true;
  if (departure(peer) || stopping_) return;
  const bool local = mesh_.link(peer).control->process_fd() >= 0;
  on_failure_(
      {FailureKind::peer_failure,
       str(mesh_.describe(peer),
           local ? " died: its process ended without closing the group; "
                 : " is lost: its control connection broke, so its process or the network died; ",
           how_far(peer)),
       {peer}},
      false);
}

std::optional<Liveness::Departure> Liveness::departure(int peer) const {
  const std::lock_guard lock(mutex_);
  return peers_[static_cast<size_t>(peer)].departure;
}

std::string Liveness::how_far(int peer) const {
  uint64_t begun = peers_[static_cast<size_t>(peer)].begun;
  uint64_t completed = peers_[static_cast<size_t>(peer)].completed;
  if (const auto& shown = const_cast<Mesh&>(mesh_).link(peer).progress) {
    begun = shown->begun.load(std::memory_order_acquire);
    completed = shown->completed.load(std::memory_order_acquire);
  }
  std::string text = completed ? str("its last completed operation is #", completed)
                               : std::string("it had completed no operation");
  const uint64_t ours = mesh_.progress().begun.load(std::memory_order_acquire);
  if (begun > completed) {
    text += str(", it was in operation #", begun);
  } else if (ours > begun) {
    text += str(", it never arrived at operation #", begun + 1);
  }
  return text;
}

Failure Liveness::look(Vigil& vigil, const std::vector<int>& awaited) {
  const auto now = Clock::now();
  if (!vigil.began) vigil.began = now;
  // This very process was stopped, or starved: everybody's answer is old, and that is our own
  // fault.
  if (vigil.last_look && now - *vigil.last_look > kSelfStall) {
    vigil.began = now;
    vigil.last_ping.reset();
  }
  vigil.last_look = now;
  if (now - *vigil.began < kPingAfter) return {};
  if (!vigil.last_ping || now - *vigil.last_ping >= kPingEvery) {
    vigil.last_ping = now;
    for (const int peer : awaited) mesh_.link(peer).control->send(make_notice(NoticeType::ping));
  }
  if (detect_timeout_.count() == 0) return {};
  for (const int peer : awaited) {
    const Clock::time_point heard{
        Clock::duration(peers_[static_cast<size_t>(peer)].heard_ns.load())};
    const auto silent = now - std::max(heard, *vigil.began + kPingAfter);
    if (silent <= detect_timeout_ || departure(peer)) continue;
    const double seconds = std::chrono::duration<double>(detect_timeout_).count();
    return {FailureKind::peer_failure,
            str(mesh_.describe(peer), " does not answer: silent for ", seconds,
                " s, so it is stopped or its host or network hangs; ", how_far(peer),
                "; PYCOMM_DETECT_TIMEOUT sets how long to wait for a sign of life"),
            {peer}};
  }
  return {};
}

void Liveness::tell_failure(const Failure& failure) {
  auto notice = make_notice(NoticeType::failure);
  notice.failure_kind = static_cast<uint8_t>(failure.kind);
  notice.culprit = failure.ranks.empty() ? -1 : failure.ranks.front();
  notice.set_text(failure.text);
  for (int peer = 0; peer < mesh_.world_size(); ++peer) {
    if (peer != mesh_.rank()) mesh_.link(peer).control->send(notice);
  }
}

void Liveness::say_goodbye(const std::string& reason) {
  auto notice = make_notice(NoticeType::goodbye);
  notice.set_text(reason);
  for (int peer = 0; peer < mesh_.world_size(); ++peer) {
    if (peer == mesh_.rank()) continue;
    mesh_.link(peer).control->send(notice);
    mesh_.link(peer).control->close_writing();
  }
}

}  // namespace pycomm
