// SPDX-License-Identifier: MIT
#include "engine/liveness.h"

#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <thread>

#include "base/deadline.h"
#include "base/limits.h"
#include "base/log.h"

namespace pycomm {
namespace {

int64_t now_ns() { return Liveness::Clock::now().time_since_epoch().count(); }

}  // namespace

Liveness::Liveness(Mesh& mesh, std::chrono::nanoseconds detect_timeout, OnFailure on_failure)
    : mesh_(mesh),
      detect_timeout_(detect_timeout),
      on_failure_(std::move(on_failure)),
      peers_(static_cast<size_t>(mesh.world_size())),
      wake_event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

void Liveness::stop() {
  stopping_ = true;
  ::eventfd_write(wake_event_.get(), 1);
}

bool Liveness::catch_up() {
  const uint64_t mine = asked_.fetch_add(1) + 1;
  ::eventfd_write(wake_event_.get(), 1);
  const auto patience = Deadline::after(kWatcherPatience);
  while (caught_up_ < mine && !stopping_ && !patience.expired()) {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return caught_up_ >= mine;
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
    const uint64_t asked = asked_;
    std::vector<pollfd> fds{{wake_event_.get(), POLLIN, 0}};
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
    if (eventfd_t count = 0; fds[0].revents) ::eventfd_read(wake_event_.get(), &count);
    for (size_t i = 1; i < fds.size() && !stopping_; ++i) {
      const auto peer = owner[i];
      auto& state = peers_[static_cast<size_t>(peer)];
      if (!fds[i].revents || state.closed) continue;
      // What it said last explains its end, so notices are read first.
      read_notices(peer);
      const bool process_ended = fds[i].fd == mesh_.link(peer).control->process_fd();
      if (process_ended && !state.closed) on_end(peer);
    }
    caught_up_ = asked;
    // Who asked since has rung a bell that may be silent again.
    if (asked_ != asked) ::eventfd_write(wake_event_.get(), 1);
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
  state.told_during = mesh_.progress().begun.load(std::memory_order_acquire);
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
      state.departure = Departure{notice.completed, notice.get_text(), Clock::now()};
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

// Shared memory shows it. Elsewhere there are the last notice and the fact that a collective
// completes only when every rank has begun it, which means that all earlier ones are behind it.
Liveness::Progress Liveness::progress_of(int peer) const {
  if (const auto& shown = mesh_.link(peer).progress) {
    return {shown->begun.load(std::memory_order_acquire),
            shown->completed.load(std::memory_order_acquire), true};
  }
  const auto& told = peers_[static_cast<size_t>(peer)];
  const uint64_t ours = mesh_.progress().completed.load(std::memory_order_acquire);
  Progress known{told.begun, told.completed, false};
  known.current = told.told_during == mesh_.progress().begun.load(std::memory_order_acquire) &&
                  told.heard_ns != 0;
  known.begun = std::max(known.begun, ours);
  known.completed = std::max(known.completed, ours > 0 ? ours - 1 : 0);
  return known;
}

std::string Liveness::how_far(int peer) const {
  const auto known = progress_of(peer);
  std::string text;
  if (known.completed > 0) {
    text = str("its last completed operation is #", known.completed);
    if (!known.current) text += " or later";
  } else if (known.current) {
    text = "it had completed no operation";
  } else {
    text = "its last completed operation is not known here";
    if (known.begun > 0) text += str(", it had begun #", known.begun);
  }
  const uint64_t ours = mesh_.progress().begun.load(std::memory_order_acquire);
  if (!known.current) return text;
  if (known.begun > known.completed) {
    text += str(", it was in operation #", known.begun);
  } else if (ours > known.begun) {
    text += str(", it never arrived at operation #", known.begun + 1);
  }
  return text;
}

std::vector<int> Liveness::not_arrived_at(uint64_t sequence) {
  const auto asked = now_ns();
  std::vector<int> silent;
  for (int peer = 0; peer < mesh_.world_size(); ++peer) {
    if (peer == mesh_.rank() || mesh_.link(peer).progress || departure(peer)) continue;
    if (mesh_.link(peer).control->send(make_notice(NoticeType::ping))) silent.push_back(peer);
  }
  const auto patience = Deadline::after(kAnswerPatience);
  while (!silent.empty() && !patience.expired()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::erase_if(silent, [&](int peer) {
      return peers_[static_cast<size_t>(peer)].heard_ns.load() >= asked;
    });
  }
  std::vector<int> absent, unknown;
  for (int peer = 0; peer < mesh_.world_size(); ++peer) {
    if (peer == mesh_.rank() || progress_of(peer).begun >= sequence) continue;
    const bool answers = std::find(silent.begin(), silent.end(), peer) == silent.end();
    (answers ? absent : unknown).push_back(peer);
  }
  return absent.empty() ? unknown : absent;
}

void Liveness::Vigil::wait_for(const std::vector<int>& peers, Clock::time_point now) {
  std::vector<Awaited> joined;
  for (const int peer : peers) {
    const auto known = std::find_if(awaited.begin(), awaited.end(),
                                    [peer](const Awaited& one) { return one.peer == peer; });
    joined.push_back({peer, known == awaited.end() ? now : known->since});
  }
  awaited = std::move(joined);
}

Failure Liveness::look(Vigil& vigil, const std::vector<int>& awaited) {
  const auto now = Clock::now();
  if (!vigil.began) vigil.began = now;
  vigil.wait_for(awaited, now);
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
  if (!vigil.reported && now - *vigil.began > kStragglerAfter) {
    vigil.reported = true;
    for (const int peer : awaited) {
      const double seconds = std::chrono::duration<double>(kStragglerAfter).count();
      log(LogLevel::warning, mesh_.rank(),
          str("has waited ", seconds, " s for ", mesh_.describe(peer),
              ", which is alive: ", how_far(peer)));
    }
  }
  if (detect_timeout_.count() == 0) return {};
  for (const auto& [peer, since] : vigil.awaited) {
    const Clock::time_point heard{
        Clock::duration(peers_[static_cast<size_t>(peer)].heard_ns.load())};
    const auto silent = now - std::max(heard, std::max(*vigil.began, since) + kPingAfter);
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
