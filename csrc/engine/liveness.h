// SPDX-License-Identifier: MIT
// Who is alive, who has left, who is silent; and how this rank tells the others.
//
// A watcher thread sleeps on all control links and process descriptors. It answers pings, hears of
// failures and farewells, and sees at once when a peer's process ends. A thread that waits for
// peers calls look() now and then: it pings those it waits for, and a peer that does not answer for
// detect_timeout is declared silent. Since the watcher answers without Python and without the
// thread that computes, a rank that is merely slow answers.
// watch() belongs to one thread; everything else may be called from any thread. The mesh must
// outlive it.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "transport/mesh.h"

namespace pycomm {

class Liveness {
 public:
  using Clock = std::chrono::steady_clock;
  // `heard`: another rank has decided already and told everybody.
  using OnFailure = std::function<void(const Failure&, bool heard)>;

  // detect_timeout zero: never declare a living process silent.
  Liveness(Mesh& mesh, std::chrono::nanoseconds detect_timeout, OnFailure on_failure);

  void watch();  // returns after stop()
  void stop();
  // Returns when the watcher has read all that had arrived by now; false when it did not get a core
  // within kWatcherPatience, or is stopped. Not for the watcher.
  bool catch_up();

  // One wait, from its first look on.
  struct Vigil {
    struct Awaited {
      int peer = 0;
      Clock::time_point since;
    };
    std::optional<Clock::time_point> began, last_look, last_ping;
    // Whom the last look was for. Who joins later has not been pinged before.
    std::vector<Awaited> awaited;
    bool reported = false;

    void wait_for(const std::vector<int>& peers, Clock::time_point now);
  };
  // Pings the awaited peers when it is time; a failure when one of them has been silent too long.
  Failure look(Vigil& vigil, const std::vector<int>& awaited);

  struct Departure {
    uint64_t completed = 0;  // its last collective
    std::string reason;
    Clock::time_point at{};  // when we heard
  };
  std::optional<Departure> departure(int peer) const;

  // The ranks that have not begun collective `sequence`. Asks those whose progress cannot be seen,
  // which takes up to kAnswerPatience; who does not answer is among them only if nobody else is.
  std::vector<int> not_arrived_at(uint64_t sequence);

  void tell_failure(const Failure& failure);
  void say_goodbye(const std::string& reason);
  // "its last completed operation is #40, it began #41"
  std::string how_far(int peer) const;

 private:
  struct Peer {
    std::atomic<int64_t> heard_ns{0};
    std::atomic<uint64_t> begun{0}, completed{0};  // as told in notices
    std::atomic<uint64_t> told_during{0};          // our own collective at that time
    std::optional<Departure> departure;            // under mutex_
    bool closed = false;                           // watcher thread only
  };
  // What is known about how far a peer is. Never more than it has done.
  struct Progress {
    uint64_t begun = 0;
    uint64_t completed = 0;
    bool current = false;  // it has done no more, as far as anybody can tell
  };
  Progress progress_of(int peer) const;
  Notice make_notice(NoticeType type) const;
  void read_notices(int peer);
  void handle(int peer, const Notice& notice);
  void on_end(int peer);

  Mesh& mesh_;
  const std::chrono::nanoseconds detect_timeout_;
  const OnFailure on_failure_;
  std::vector<Peer> peers_;
  mutable std::mutex mutex_;
  Fd wake_event_;
  std::atomic<uint64_t> asked_{0}, caught_up_{0};  // calls of catch_up(), and which are answered
  std::atomic<bool> stopping_{false};
};

}  // namespace pycomm
