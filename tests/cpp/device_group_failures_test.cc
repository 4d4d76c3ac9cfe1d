// SPDX-License-Identifier: MIT
// Ranks that share a fake GPU, or have one each, when something goes wrong: every rank is told
// what, and no stream is left waiting. Ranks as threads, and as processes where one has to die.
#include <sys/wait.h>
#include <unistd.h>

#include "device_ranks.h"

using namespace device_ranks;

namespace {

// Each rank a process: body(engine, rank) in it; what it returns is its exit status.
std::vector<int> statuses_of(int world_size, const std::function<int(Engine&, int)>& body) {
  FileStore store;
  std::vector<pid_t> children;
  for (int rank = 0; rank < world_size; ++rank) {
    const pid_t child = ::fork();
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    int status = 99;
    try {
      ::alarm(100);
      MeshOptions options;
      options.transports = "shm";
      Engine engine(Mesh::connect(store, rank, world_size, options), quick());
      status = body(engine, rank);
      engine.shutdown("the test is over", true);
    } catch (const std::exception& error) {
      std::printf("rank %d: %s\n", rank, error.what());
      std::fflush(stdout);
    }
    ::_exit(status);
  }
  std::vector<int> statuses;
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    statuses.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
  }
  return statuses;
}

// When it returns every rank has ended what it called before.
void meet(Engine& engine) {
  auto token = tensor(1, 0);
  engine.run(make(Collective::all_reduce, token));
}

// Of ranks that are threads: all have returned from what they called before, so that no failure of
// what comes next ends it.
class Together {
 public:
  void operator()(Engine& engine) {
    ++arrived_;
    while (arrived_ < engine.mesh().world_size() && !engine.failure()) std::this_thread::yield();
  }

 private:
  std::atomic<int> arrived_{0};
};

Tensors summed(size_t count, int rank, int world_size) {
  return Tensors({Collective::all_reduce, ReduceOp::sum, count, 0}, rank, world_size);
}

}  // namespace

TEST("processes get the right results, by descriptor and by IPC handle") {
  struct Processes {
    DeviceMode mode;
    bool descriptors;
    int world_size;
  };
  constexpr auto kS = DeviceMode::stream, kK = DeviceMode::kernel;
  for (const auto [mode, descriptors, world_size] : {Processes{kS, true, 1},
                                                     {kS, true, 2},
                                                     {kS, true, 4},
                                                     {kS, true, 8},
                                                     {kS, false, 2},
                                                     {kS, false, 4},
                                                     {kS, false, 8},
                                                     {kK, true, 2},
                                                     {kK, true, 7},
                                                     {kK, false, 3}}) {
    const auto statuses = statuses_of(world_size, [&](Engine& engine, int rank) {
      auto options = seeded(rank, 50, mode);
      options.descriptors = descriptors;
      Rank me(engine, options, small_pool());
      if (world_size == 1) return me.group().mode() == DeviceMode::host ? 0 : 1;
      const std::string by = descriptors ? "by file descriptor" : "by IPC handle";
      CHECK(me.group().describe().find(by) != std::string::npos, me.group().describe());
      for (const Collective collective : kServed) {
        for (const size_t count : {size_t{100}, size_t{40000}}) {
          Tensors tensors({collective, ReduceOp::sum, count, world_size - 1}, rank, world_size);
          me.finish(me.launch(tensors.wanted()));
          tensors.check(str("processes, ", world_size, " ranks"));
        }
      }
      return me.group().mode() == mode ? 0 : 2;
    });
    CHECK(statuses == std::vector<int>(static_cast<size_t>(world_size), 0), world_size,
          " ranks, rank 0 ended with ", statuses[0]);
  }
}

TEST("a rank that dies is named on the others, whose streams go on") {
  for (const DeviceMode mode : kBothModes) {
    const auto statuses = statuses_of(3, [mode](Engine& engine, int rank) {
      Rank me(engine, seeded(rank, 0, mode), small_pool());
      auto first = summed(1000, rank, 3), second = summed(50000, rank, 3);
      me.finish(me.launch(first.wanted()));
      meet(engine);
      if (rank == 1) ::_exit(7);
      const auto failure = failure_of([&] { engine.wait(*me.launch(second.wanted()), {}); });
      must(me.device().synchronize(me.stream()));
      const auto later = failure_of([&] { me.launch(first.wanted()); });
      const bool named = failure.kind == FailureKind::peer_failure &&
                         contains(failure, "rank 1 (pid") && contains(failure, "died");
      if (!named || !contains(later, "died")) std::printf("%s\n", failure.text.c_str());
      std::fflush(stdout);
      return named && contains(later, "died") ? 0 : 1;
    });
    CHECK(statuses == (std::vector<int>{0, 7, 0}), statuses[0], " ", statuses[2]);
  }
}

TEST("ranks that disagree about a collective are all told how, and no stream waits") {
  for (const DeviceMode mode : kBothModes) {
    struct Disagreement {
      Case wrong;  // rank 2's
      const char* said;
    };
    const Disagreement all[] = {
        {{Collective::all_reduce, ReduceOp::sum, 2000, 0}, "all_reduce(float32[2000], sum)"},
        {{Collective::all_reduce, ReduceOp::max, 1000, 0}, "all_reduce(float32[1000], max)"},
        {{Collective::broadcast, ReduceOp::sum, 1000, 1}, "broadcast(float32[1000], root 1)"},
    };
    for (const auto& one : all) {
      Together meet;
      with_group({"shm"}, 3, [&](auto& engine, int rank) {
        Rank me(*engine, seeded(rank, 0, mode), small_pool());
        auto before = summed(30000, rank, 3);
        me.finish(me.launch(before.wanted()));
        meet(*engine);
        Tensors tensors(
            rank == 2 ? one.wrong : Case{Collective::all_reduce, ReduceOp::sum, 1000, 0}, rank, 3);
        // Whoever calls last is told at the call, the others when they wait.
        const auto failure = failure_of([&] { engine->wait(*me.launch(tensors.wanted()), {}); });
        CHECK(failure.kind == FailureKind::mismatch, failure.text);
        CHECK(contains(failure, one.said) && contains(failure, "rank 2"), failure.text);
        CHECK(contains(failure, "check that all ranks call the same"), failure.text);
        must(me.device().synchronize(me.stream()));
      });
    }
  }
}

TEST("a capture that is none on another rank is a mismatch") {
  for (const DeviceMode mode : kBothModes) {
    with_group({"shm"}, 2, [&](auto& engine, int rank) {
      auto tensors = summed(100, rank, 2);  // streams go on with it when they are released
      Rank me(*engine, seeded(rank, 0, mode), small_pool());
      if (rank == 0) must(me.device().begin_capture(me.stream()));
      const auto failure = failure_of([&] {
        const auto operation = me.launch(tensors.wanted());
        if (operation) engine->wait(*operation, {});
        while (true) {  // a capture has nothing to wait for: the next call is told
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
          if (engine->failure()) (void)me.launch(tensors.wanted());
        }
      });
      CHECK(
          failure.kind == FailureKind::mismatch && contains(failure, "rank 0 captures all_reduce"),
          failure.text);
    });
  }
}

TEST("an abort releases the streams of all ranks, a replayed graph's too") {
  for (const DeviceMode mode : kBothModes) {
    Together meet;
    with_group({"shm"}, 2, [&](auto& engine, int rank) {
      Rank me(*engine, seeded(rank, 0, mode), small_pool());
      auto captured = summed(50000, rank, 2), direct = summed(50000, rank, 2);
      must(me.device().begin_capture(me.stream()));
      (void)me.launch(captured.wanted());
      std::shared_ptr<const FakeGraph> graph;
      must(me.device().end_capture(me.stream(), &graph));
      meet(*engine);
      if (rank == 0) {  // rank 1 never comes to either
        const auto operation = me.launch(direct.wanted());
        for (int k = 0; k < 2; ++k) must(me.device().replay(*graph, me.stream()));
        engine->abort("the test wants it");
        const auto failure = failure_of([&] { engine->wait(*operation, {}); });
        CHECK(failure.kind == FailureKind::aborted && contains(failure, "aborted by rank 0"),
              failure.text);
        must(me.device().synchronize(me.stream()));
        // Also what is replayed after the failure.
        must(me.device().replay(*graph, me.stream()));
        must(me.device().synchronize(me.stream()));
      }
      while (!engine->failure()) std::this_thread::yield();
      const auto later = failure_of([&] { me.launch(direct.wanted()); });
      CHECK(contains(later, "aborted by rank 0"), later.text);
    });
  }
}

TEST("a rank that never calls, or whose stream never comes there, is named after the timeout") {
  struct Absence {
    DeviceMode mode;
    bool calls;
  };
  for (const auto [mode, calls] : {Absence{DeviceMode::stream, false},
                                   {DeviceMode::stream, true},
                                   {DeviceMode::kernel, true}}) {
    with_group({"shm"}, 3, [&](auto& engine, int rank) {
      Rank me(*engine, seeded(rank, 0, mode), small_pool());
      engine->set_timeout(std::chrono::milliseconds(1500));
      auto tensors = summed(1000, rank, 3);
      uint64_t never = 0;
      Failure failure;
      if (rank == 1 && calls) must(me.device().wait_value(me.stream(), &never, 1));
      if (rank == 1 && !calls) {
        while (!engine->failure()) std::this_thread::yield();
        failure = engine->failure();
      } else {
        failure = failure_of([&] { engine->wait(*me.launch(tensors.wanted()), {}); });
      }
      CHECK(failure.kind == FailureKind::timeout, failure.text);
      CHECK(failure.ranks == std::vector<int>{1}, calls, ": ", failure.text);
      std::atomic_ref(never).store(1);
      must(me.device().synchronize(me.stream()));
    });
  }
}

TEST("an error of the device at any call is an error here, and the others hear of it") {
  for (const DeviceMode mode : kBothModes) {
    for (const int calls : {0, 1, 2, 3, 4, 5}) {
      Together meet;
      with_group({"shm"}, 2, [&](auto& engine, int rank) {
        Rank me(*engine, seeded(rank, 0, mode), small_pool());
        auto tensors = summed(1000, rank, 2);
        meet(*engine);
        const auto failure = failure_of([&] {
          const auto call = me.group().prepare(tensors.wanted(), false);
          engine->submit(call.operation);
          if (rank == 1) me.device().fail_after(calls, "an illegal memory access");
          std::string error;
          try {
            error = me.group().enqueue(call, me.stream()).text;
          } catch (const check::Failed& from_a_kernel) {
            error = from_a_kernel.what();
          }
          if (!error.empty()) engine->abort(error);
          engine->wait(*call.operation, {});
        });
        me.device().fail_after(-1, "");
        must(me.device().synchronize(me.stream()));
        // Fewer calls than that: nothing happened.
        if (calls < (mode == DeviceMode::stream ? 4 : 3))
          CHECK(contains(failure, "an illegal memory access"), calls, failure.text);
      });
    }
  }
}
