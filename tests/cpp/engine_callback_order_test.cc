// SPDX-License-Identifier: MIT
// Collectives called from callbacks: they take the same place on every rank, whenever the callback
// runs there. Ranks are threads with whole engines; callbacks run on threads of their own, late by
// a random while.
#include <random>

#include "groups.h"

using namespace groups;

namespace {

constexpr uint64_t kSeed = 4711;

// An operation whose Future is asked for, at the latest when it is made, as torch/work.cc does it:
// `callback` runs behind a gate.
struct WithCallback {
  std::vector<float> memory;
  OperationPtr operation;
  std::thread thread;

  template <class Callback>
  WithCallback(Engine& engine, size_t count, float value, Callback callback)
      : memory(tensor(count, value)), operation(make(Collective::all_reduce, memory)) {
    engine.submit(operation);
    attach(engine, callback);
  }
  template <class Callback>
  void attach(Engine& engine, Callback callback) {
    thread =
        std::thread([this, order = engine.callback_order(), gate = engine.hold_back(), callback] {
          operation->wait_finished(Deadline::never());
          const CallbackOrder::Scope scope(order, gate);
          callback(gate);
        });
  }
  ~WithCallback() { thread.join(); }
};

// Sets a flag when a block is left, however it is left: a callback that spins on it is joined then.
struct SetAtEnd {
  std::atomic<bool>& flag;
  ~SetAtEnd() { flag = true; }
};

// Each count is called on every rank, so a pair out of order is a mismatch that fails the group.
void sum(Engine& engine, size_t count, int world_size) {
  auto memory = tensor(count, 1);
  engine.run(make(Collective::all_reduce, memory));
  check_all(memory, static_cast<float>(world_size), "in order");
}

void pause(std::mt19937_64& random) {
  std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
}

}  // namespace

TEST("a collective of a callback precedes those called after its operation, on every rank") {
  for (const auto& transport : kTransports) {
    with_group({transport}, 3, [&](auto& engine, int rank) {
      std::mt19937_64 random(kSeed + static_cast<uint64_t>(rank));  // other delays on each rank
      for (int round = 0; round < 15; ++round) {
        WithCallback first(*engine, 100, 1, [&, seed = random()](const GatePtr&) {
          std::mt19937_64 mine(seed);
          pause(mine);
          sum(*engine, 7, 3);
          pause(mine);
          sum(*engine, 8, 3);
        });
        sum(*engine, 200, 3);  // waits for the callback
        sum(*engine, 201, 3);
      }
    });
  }
}

TEST("callbacks of what callbacks called come before their later siblings") {
  with_group({"shm"}, 2, [&](auto& engine, int rank) {
    std::mt19937_64 random(kSeed + static_cast<uint64_t>(rank));
    for (int round = 0; round < 20; ++round) {
      WithCallback outer(*engine, 10, 1, [&, seed = random()](const GatePtr&) {
        std::mt19937_64 mine(seed);
        WithCallback inner(*engine, 20, 1, [&, seed = mine()](const GatePtr&) {
          std::mt19937_64 deepest(seed);
          pause(deepest);
          sum(*engine, 30, 2);
        });
        pause(mine);
        sum(*engine, 21, 2);
      });
      sum(*engine, 11, 2);
    }
  });
}

TEST("queued collectives give way, and numbers follow the order in which they run") {
  with_group({"shm"}, 2, [&](auto& engine, int) {
    std::vector<std::vector<float>> memory(5, tensor(50, 1));
    std::vector<OperationPtr> queued;
    std::atomic<uint64_t> child{0};
    {
      std::atomic<bool> may_call{false};
      WithCallback first(*engine, 10, 1, [&](const GatePtr&) {
        while (!may_call) std::this_thread::yield();
        auto mine = tensor(3, 1);
        const auto operation = make(Collective::all_reduce, mine);
        engine->run(operation);
        child = operation->sequence.load();
      });
      const SetAtEnd end{may_call};
      for (auto& one : memory) {
        queued.push_back(make(Collective::all_reduce, one));
        engine->submit(queued.back());
      }
    }
    for (size_t k = 0; k < queued.size(); ++k) {
      engine->wait(*queued[k], {});
      check_all(memory[k], 2, "queued");
      CHECK(queued[k]->sequence == 3 + k, queued[k]->sequence.load());
    }
    CHECK(child == 2, child.load());
    CHECK(engine->sequence() == 7);
  });
}

TEST("the place is where the Future was asked for, whether the operation was over by then or not") {
  with_group({"shm"}, 2, [&](auto& engine, int rank) {
    for (int round = 0; round < 10; ++round) {
      auto a = tensor(10, 1), b = tensor(20, 1);
      const auto first = make(Collective::all_reduce, a), second = make(Collective::all_reduce, b);
      engine->submit(first);
      engine->submit(second);
      if (rank == 1) {
        // Over: torch runs the callback on the spot.
        engine->wait(*first, {});
        sum(*engine, 30, 2);
        sum(*engine, 40, 2);
        continue;
      }
      const auto gate = engine->hold_back();
      std::thread callback([&, order = engine->callback_order()] {
        first->wait_finished(Deadline::never());
        const CallbackOrder::Scope scope(order, gate);
        sum(*engine, 30, 2);
      });
      sum(*engine, 40, 2);
      callback.join();
    }
  });
}

TEST("a refused call keeps its number when a callback's collective comes before it") {
  with_group({"shm"}, 2, [&](auto& engine, int rank) {
    auto a = tensor(10, 1), b = tensor(20, 1);
    const auto first = make(Collective::all_reduce, a), last = make(Collective::all_reduce, b);
    engine->submit(first);
    if (rank == 1) {
      engine->wait(*first, {});
      sum(*engine, 30, 2);
      engine->skip();
      engine->submit(last);
    } else {
      std::atomic<bool> called{false};
      std::thread callback([&, order = engine->callback_order(), gate = engine->hold_back()] {
        while (!called) std::this_thread::yield();
        const CallbackOrder::Scope scope(order, gate);
        sum(*engine, 30, 2);
      });
      engine->skip();
      engine->submit(last);
      called = true;
      callback.join();
    }
    engine->wait(*last, {});
    CHECK(last->sequence == 4, last->sequence.load());
  });
}

TEST("a callback that waits for what it holds back gets it") {
  with_group({"shm"}, 2, [&](auto& engine, int) {
    auto b = tensor(20, 1);
    const auto later = make(Collective::all_reduce, b);
    std::atomic<bool> called{false};
    {
      WithCallback first(*engine, 10, 1, [&](const GatePtr& gate) {
        while (!called) std::this_thread::yield();
        engine->give_way(gate, *later);
        engine->wait(*later, std::chrono::seconds(30));
      });
      const SetAtEnd end{called};
      engine->submit(later);
    }
    check_all(b, 2, "later");
  });
}

TEST("a callback that never returns is a timeout, not a hang") {
  with_group({"shm"}, 2, [&](auto& engine, int) {
    std::atomic<bool> over{false};
    auto b = tensor(20, 1);
    const auto later = make(Collective::all_reduce, b);
    Failure failure;
    {
      WithCallback first(*engine, 10, 1, [&](const GatePtr&) {
        while (!over) std::this_thread::yield();
      });
      const SetAtEnd end{over};
      first.operation->wait_finished(Deadline::never());
      engine->set_timeout(std::chrono::seconds(1));
      failure = failure_of([&] { engine->run(later); });
    }
    CHECK(failure.kind == FailureKind::timeout, failure.text);
    CHECK(contains(failure, "callback"), failure.text);
  });
}

TEST("a failure frees what a callback holds back") {
  with_group({"shm"}, 2, [&](auto& engine, int rank) {
    std::atomic<bool> over{false};
    auto memory = tensor(5, 1);
    const auto held = make(Collective::all_reduce, memory);
    Failure failure;
    {
      WithCallback first(*engine, 10, 1, [&](const GatePtr&) {
        while (!over) std::this_thread::yield();
      });
      const SetAtEnd end{over};
      std::thread aborts([&] {
        if (rank != 0) return;
        first.operation->wait_finished(Deadline::never());  // so rank 1 has called it
        engine->abort("the test says so");
      });
      failure = failure_of([&] { engine->run(held); });
      aborts.join();
    }
    CHECK(failure.kind == FailureKind::aborted, failure.text);
  });
}

TEST("another group's callback holds back nobody") {
  with_group({"shm"}, 2, [&](auto& engine, int) {
    const auto other = std::make_shared<CallbackOrder>([] {});
    const auto gate = std::make_shared<CallbackGate>();
    {
      const CallbackOrder::Scope scope(other, gate);
      CHECK(!engine->callback_order()->here() && other->here() == gate);
      sum(*engine, 5, 2);
    }
    CHECK(gate->open);
  });
}
