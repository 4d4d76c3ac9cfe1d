// SPDX-License-Identifier: MIT
// What a rank knows of the others, however late its watcher, or theirs, gets a core.
#include "engine/liveness.h"
#include "groups.h"

using namespace groups;

namespace {

// A watcher that begins to read late.
class LateWatcher {
 public:
  LateWatcher(Mesh& mesh, std::chrono::milliseconds late)
      : liveness(mesh, std::chrono::seconds(3),
                 [this](const Failure& failure, bool) {
                   const std::lock_guard lock(mutex_);
                   if (!heard_) heard_ = failure;
                 }),
        thread_([this, late] {
          std::this_thread::sleep_for(late);
          liveness.watch();
        }) {}
  ~LateWatcher() {
    liveness.stop();
    thread_.join();
  }
  Failure heard() {
    const std::lock_guard lock(mutex_);
    return heard_;
  }

 private:
  std::mutex mutex_;
  Failure heard_;

 public:
  Liveness liveness;

 private:
  std::thread thread_;
};

}  // namespace

TEST("who catches up knows what had arrived, also when the watcher was kept from running") {
  for (const auto& transport : kTransports) {
    auto meshes = connect_threads(3, {transport});
    LateWatcher speaker(*meshes[0], {});
    speaker.liveness.tell_failure({FailureKind::peer_failure, "rank 2 died", {2}});
    LateWatcher listener(*meshes[1], std::chrono::milliseconds(200));
    CHECK(listener.liveness.catch_up(), "the watcher has not run for 2 s");
    const auto heard = listener.heard();
    CHECK(heard.ranks == std::vector<int>{2} && contains(heard, "rank 2 died"), transport, ": ",
          heard.text);
  }
}

TEST("everybody who asks the watcher is answered, until it is stopped") {
  auto meshes = connect_threads(2, {"shm"});
  LateWatcher one(*meshes[0], {});
  on_threads(4, [&](int) {
    for (int k = 0; k < 500; ++k) CHECK(one.liveness.catch_up(), "call ", k, " had no answer");
  });
  one.liveness.stop();
  CHECK(!one.liveness.catch_up());
}

// Ranks 1 and 2 are on other hosts, so they are asked. Rank 1 answers that it has begun nothing;
// rank 2, which may have begun, does not get a core.
TEST("who does not answer is blamed only when everybody else has arrived") {
  auto meshes = connect_threads(3, {"tcp"});
  const auto absent = [&](bool first_has_begun) {
    LateWatcher asks(*meshes[0], {}), answers(*meshes[1], {});
    meshes[1]->progress().begun = first_has_begun ? 5 : 4;
    return asks.liveness.not_arrived_at(5);
  };
  meshes[0]->progress().begun = 5;
  CHECK(absent(false) == std::vector<int>{1});
  CHECK(absent(true) == std::vector<int>{2});
}

TEST("who is waited for only now is not blamed for a silence in which nobody asked it") {
  auto meshes = connect_threads(3, {"tcp"});
  LateWatcher one(*meshes[0], {});
  const auto now = Liveness::Clock::now(), before = now - std::chrono::seconds(10);
  const auto waits_for = [&](int peer) {
    Liveness::Vigil vigil{before, now, now, {{1, before}}, true};
    return one.liveness.look(vigil, {peer}).ranks;
  };
  CHECK(waits_for(1) == std::vector<int>{1}, "10 s of silence are too long");
  CHECK(waits_for(2).empty(), "rank 2 was not asked before");
}
