// SPDX-License-Identifier: MIT
// Whole engines, ranks as threads of one process, over shared memory and TCP: collectives and
// messages from many threads. With engine_endings_test the target of the thread sanitizer.
#include <future>
#include <random>
#include <thread>

#include "collective_data.h"
#include "engine/callback_pool.h"
#include "groups.h"
#include "plan/algorithms.h"

using namespace groups;
using data::Case;
using data::RankData;

namespace {

constexpr uint64_t kSeed = 31337;

}  // namespace

TEST("synchronous collectives are right on 2 to 5 ranks over both transports") {
  for (const auto& transport : kTransports) {
    for (int p = 2; p <= 5; ++p) {
      with_group({transport}, p, [&](auto& engine, int rank) {
        std::mt19937_64 random(kSeed);
        for (int k = 0; k < 40; ++k) {
          const auto collective =
              static_cast<Collective>(random() % static_cast<uint64_t>(Collective::send));
          const auto choices = data::arithmetic_for(collective);
          const auto [op, dtype] = choices[random() % choices.size()];
          const int root = static_cast<int>(random() % static_cast<unsigned>(p));
          const size_t count = random() % (k % 8 == 0 ? 40000 : 500);
          RankData memory({collective, p, root, op, dtype, count, false, k}, rank);
          // The engine takes shared operations; this one dies with `memory`.
          engine->run({std::shared_ptr<void>(), &memory.operation});
          CHECK(memory.wrong().empty(), memory.wrong(), ", seed ", kSeed);
        }
      });
    }
  }
}

TEST("collectives cross hosts: two levels within and between, uneven hosts too") {
  for (const auto& hosts : {std::vector<int>{0, 0, 1, 1}, {0, 1, 1, 2, 0}}) {
    const int p = static_cast<int>(hosts.size());
    with_group({"shm,tcp", hosts}, p, [&](auto& engine, int) {
      for (const size_t count : {1, 100, 10000, 300000}) {
        CHECK(count < 10000 ||
              engine->algorithm_for(Collective::all_reduce, count * 4) == "hierarchical");
        auto memory = tensor(count, 3);
        engine->run(make(Collective::all_reduce, memory));
        check_all(memory, static_cast<float>(3 * p), "hosts");
      }
    });
  }
}

TEST("every collective is right across hosts, uneven ones and uneven blocks too") {
  for (const auto& hosts :
       {std::vector<int>{0, 0, 1, 1}, {0, 1, 1, 2, 0}, {1, 0, 0, 0}, {0, 1, 0, 1, 0, 2}}) {
    const int p = static_cast<int>(hosts.size());
    with_group({"shm,tcp", hosts}, p, [&](auto& engine, int rank) {
      std::mt19937_64 random(kSeed);
      for (int k = 0; k < 72; ++k) {
        const auto collective = static_cast<Collective>(k % static_cast<int>(Collective::send));
        CHECK(!has_hierarchical_plan(collective) ||
              engine->algorithm_for(collective, 1 << 20) == "hierarchical");
        const auto choices = data::arithmetic_for(collective);
        const auto [op, dtype] = choices[random() % choices.size()];
        const int root = static_cast<int>(random() % static_cast<unsigned>(p));
        const size_t count = random() % (k % 5 == 0 ? 100000 : 500);
        const bool uneven = data::may_be_uneven(collective) && random() % 2 == 0;
        RankData memory({collective, p, root, op, dtype, count, uneven, k}, rank);
        engine->run({std::shared_ptr<void>(), &memory.operation});
        CHECK(memory.wrong().empty(), memory.wrong(), ", seed ", kSeed);
      }
    });
  }
}

TEST("different roots are an error on every rank, with two levels too") {
  for (const auto collective : {Collective::broadcast, Collective::reduce}) {
    for (int odd = 0; odd < 4; ++odd) {
      for (const int root : {1, 2, 3}) {
        with_group({"shm,tcp", {0, 0, 1, 1}}, 4, [&](auto& engine, int rank) {
          auto memory = tensor(1000, 1);
          const auto operation = make(collective, memory);
          operation->root = rank == odd ? root : 0;
          const auto failure = failure_of([&] { engine->run(operation); });
          CHECK(failure.kind == FailureKind::mismatch, "rank ", rank, ", root ", root, " on rank ",
                odd, ": ", failure.text);
          CHECK(contains(failure, "root 0") && contains(failure, str("root ", root)), failure.text);
        });
      }
    }
  }
}

TEST("asynchronous collectives submitted by several threads of each rank are all carried out") {
  for (const auto& transport : kTransports) {
    with_group({transport}, 3, [&](auto& engine, int) {
      on_threads(3, [&](int) {
        std::vector<std::vector<float>> memory(20, tensor(300, 2));
        std::vector<OperationPtr> operations;
        for (auto& one : memory) {
          operations.push_back(make(Collective::all_reduce, one));
          engine->submit(operations.back());
        }
        for (size_t k = 0; k < memory.size(); ++k) {
          engine->wait(*operations[k], {});
          check_all(memory[k], 6, transport);
        }
      });
    });
  }
}

TEST("synchronous and asynchronous collectives keep their order") {
  with_group({"shm"}, 4, [&](auto& engine, int rank) {
    for (int k = 0; k < 100; ++k) {
      auto first = tensor(64, 1), second = tensor(5000, static_cast<float>(rank));
      const auto queued = make(Collective::all_reduce, first);
      engine->submit(queued);
      engine->run(make(Collective::all_reduce, second));
      engine->wait(*queued, {});
      check_all(first, 4, "queued");
      check_all(second, 6, "synchronous");
    }
  });
}

TEST("who waits runs what he waits for when the progress thread is held up") {
  with_group({"shm"}, 2, [](auto& engine, int rank) {
    // Shared with the callback, which may run on when this frame is left.
    const auto entered = std::make_shared<std::promise<void>>();
    const auto released = std::make_shared<std::promise<void>>();
    auto note = tensor(1, 1), first = tensor(10, 2), second = tensor(10, 3);
    const auto holds_up = message(Collective::send, 1 - rank, 0, note);
    holds_up->on_finished = [entered, released](Operation&) {
      entered->set_value();
      CHECK(released->get_future().wait_for(std::chrono::seconds(30)) == std::future_status::ready,
            "nobody ran the operations behind");
    };
    engine->submit(holds_up);
    entered->get_future().wait();
    const auto before = make(Collective::all_reduce, first);
    const auto awaited = make(Collective::all_reduce, second);
    std::thread::id ran;
    awaited->before = [&ran] { ran = std::this_thread::get_id(); };
    engine->submit(before);
    engine->submit(awaited);
    engine->wait(*awaited, {});
    CHECK(before->finished(), "the queue's order");
    CHECK(ran == std::this_thread::get_id(), "another thread ran it");
    released->set_value();
    check_all(first, 4, "before");
    check_all(second, 6, "awaited");
    engine->run(message(Collective::recv, 1 - rank, 0, note));
  });
}

TEST("what nobody waits for is carried out, however often others were waited for at once before") {
  with_group({"shm"}, 2, [](auto& engine, int rank) {
    for (const size_t count : {size_t{2}, size_t{50'000}}) {
      for (int k = 0; k < 300; ++k) {
        auto values = tensor(2, 1);
        const auto awaited = make(Collective::all_reduce, values);
        engine->submit(awaited);
        engine->wait(*awaited, {});
        check_all(values, 2, str("call ", k, " of rank ", rank));
      }
      auto values = tensor(count, 1);
      const auto alone = make(Collective::all_reduce, values);
      engine->submit(alone);
      const auto patience = Deadline::after(std::chrono::seconds(30));
      while (!alone->finished() && !patience.expired()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      CHECK(alone->finished(), count, " elements");
      check_all(values, 2, str(count, " elements"));
    }
  });
}

TEST("waiting threads and the progress thread share the queue without losing its order") {
  for (const auto& transport : kTransports) {
    with_group({transport}, 3, [](auto& engine, int rank) {
      std::mt19937_64 random(kSeed + static_cast<unsigned>(rank));
      for (int round = 0; round < 150; ++round) {
        std::vector<std::vector<float>> memory;
        std::vector<OperationPtr> operations;
        for (int k = 0; k < 4; ++k) memory.push_back(tensor(20, static_cast<float>(k)));
        for (auto& one : memory) {
          operations.push_back(make(Collective::all_reduce, one));
          engine->submit(operations.back());
          if (random() % 3 == 0) engine->wait(*operations[random() % operations.size()], {});
        }
        auto last = tensor(20, 7);
        engine->run(make(Collective::all_reduce, last));
        check_all(last, 21, str("synchronous, seed ", kSeed));
        for (int k = 0; k < 4; ++k) {
          const auto each = static_cast<size_t>(k);
          engine->wait(*operations[each], {});
          check_all(memory[each], static_cast<float>(3 * k), str("round ", round));
        }
      }
    });
  }
}

TEST("messages are matched by tag, whatever the order of the receives") {
  for (const auto& transport : kTransports) {
    with_group(
        {transport}, 2,
        [&](auto& engine, int rank) {
          constexpr int kTags = 12;
          if (rank == 0) {
            for (int tag = 0; tag < kTags; ++tag) {
              auto memory = tensor(static_cast<size_t>(tag) * 200, static_cast<float>(tag));
              engine->run(message(Collective::send, 1, tag, memory));
            }
          } else {
            for (int tag = kTags - 1; tag >= 0; --tag) {
              auto memory = tensor(static_cast<size_t>(tag) * 200, -1);
              engine->run(message(Collective::recv, 0, tag, memory));
              check_all(memory, static_cast<float>(tag), transport);
            }
          }
        },
        1024);
  }
}

TEST("messages of one tag arrive in the order of their sends, many outstanding both ways") {
  for (const auto& transport : kTransports) {
    with_group(
        {transport}, 3,
        [&](auto& engine, int rank) {
          constexpr int kMessages = 60;
          std::vector<std::vector<float>> memory;
          memory.reserve(4 * kMessages);
          std::vector<OperationPtr> receives, sends;
          for (int k = 0; k < kMessages; ++k) {
            for (int peer = 0; peer < 3; ++peer) {
              if (peer == rank) continue;
              const auto count = static_cast<size_t>(k * 37 % 900);
              memory.push_back(tensor(count, static_cast<float>(1000 * rank + k)));
              sends.push_back(message(Collective::send, peer, 0, memory.back()));
              engine->submit(sends.back());
              memory.push_back(tensor(count, -1));
              receives.push_back(message(Collective::recv, peer, 0, memory.back()));
              engine->submit(receives.back());
            }
          }
          for (const auto& one : sends) engine->wait(*one, {});
          for (size_t k = 0; k < receives.size(); ++k) {
            engine->wait(*receives[k], {});
            check_all(memory[2 * k + 1],
                      static_cast<float>(1000 * receives[k]->peer + static_cast<int>(k) / 2),
                      transport);
          }
        },
        1024);
  }
}

TEST("a receive from any source takes each message once and says whose it was") {
  for (const auto& transport : kTransports) {
    with_group({transport}, 4, [&](auto& engine, int rank) {
      if (rank != 0) {
        for (int k = 0; k < 30; ++k) {
          auto memory = tensor(10, static_cast<float>(rank));
          engine->run(message(Collective::send, 0, 5, memory));
        }
        return;
      }
      std::vector<int> seen(4);
      for (int k = 0; k < 90; ++k) {
        auto memory = tensor(10, 0);
        const auto operation = message(Collective::recv, kAnySource, 5, memory);
        engine->run(operation);
        ++seen[static_cast<size_t>(operation->source)];
        check_all(memory, static_cast<float>(operation->source), transport);
      }
      CHECK((seen == std::vector<int>{0, 30, 30, 30}));
    });
  }
}

TEST("messages and collectives of several threads do not wait for each other") {
  // Ranks 0 and 1 share memory and reach rank 2 by TCP, so they sleep on sockets.
  for (const Layout& layout : {Layout{"shm"}, {"tcp"}, {"shm,tcp", {0, 0, 1}}}) {
    with_group(layout, 3, [&](auto& engine, int rank) {
      const int next = (rank + 1) % 3, previous = (rank + 2) % 3;
      on_threads(3, [&](int thread) {
        for (int k = 0; k < 60; ++k) {
          if (thread == 0) {
            auto memory = tensor(static_cast<size_t>(k) * 50, 1);
            engine->run(make(Collective::all_reduce, memory));
            check_all(memory, 3, "collective");
          } else if (thread == 1) {
            auto sent = tensor(500, static_cast<float>(rank)), got = tensor(500, -1);
            const auto receive = message(Collective::recv, previous, 1, got);
            engine->submit(receive);
            engine->run(message(Collective::send, next, 1, sent));
            engine->wait(*receive, {});
            check_all(got, static_cast<float>(previous), "message");
          } else {
            auto sent = tensor(20, static_cast<float>(k)), got = tensor(20, -1);
            const auto send = message(Collective::send, previous, 2, sent);
            engine->submit(send);
            engine->run(message(Collective::recv, next, 2, got));
            engine->wait(*send, {});
            check_all(got, static_cast<float>(k), "message back");
          }
        }
      });
    });
  }
}

TEST("callbacks run once, and before() and after() enclose the operation") {
  with_group({"shm"}, 2, [&](auto& engine, int) {
    std::vector<float> memory(8);
    std::atomic<int> calls{0};
    const auto operation = make(Collective::all_reduce, memory);
    operation->before = [&] { memory.assign(8, 1); };
    operation->after = [&] { memory[0] *= 10; };
    operation->on_finished = [&](Operation& one) { calls += one.finished() ? 1 : 100; };
    engine->submit(operation);
    engine->wait(*operation, {});
    CHECK(memory[0] == 20 && memory[1] == 2);
    const auto deadline = Deadline::after(std::chrono::seconds(10));
    while (calls == 0 && !deadline.expired()) std::this_thread::yield();
    CHECK(calls == 1, calls.load());
  });
}

TEST("a callback may hold the last reference to the pool that runs it") {
  // Shared with the callbacks: a worker that never ends would outlive this frame.
  const auto ended = std::make_shared<std::promise<void>>();
  const auto released = std::make_shared<std::promise<void>>();
  std::shared_ptr<CallbackPool> pool(new CallbackPool, [ended](CallbackPool* gone) {
    delete gone;
    ended->set_value();
  });
  pool->run([pool, released] { released->get_future().wait(); });
  pool.reset();
  released->set_value();
  CHECK(ended->get_future().wait_for(std::chrono::seconds(10)) == std::future_status::ready);
}
