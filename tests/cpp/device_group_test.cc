// SPDX-License-Identifier: MIT
// Ranks that share a fake GPU, as threads: the choice of the mode, every collective of mode S, the
// order of operations, graphs. device_group_failures_test.cc has what goes wrong.
#include <random>

#include "device_ranks.h"

using namespace device_ranks;

namespace {

DeviceCard card(const std::string& uuid, char wanted = 0) {
  DeviceFacts facts;
  facts.uuid = uuid;
  facts.words = facts.host_memory = facts.descriptors = facts.ipc = true;
  return card_of(facts, wanted, true);
}

ModeChoice choose(std::vector<DeviceCard> cards) { return choose_mode(cards); }

}  // namespace

TEST("ranks that share a GPU work in mode S, and what stands against it is named") {
  CHECK(choose({card("A"), card("A")}).mode == DeviceMode::stream);
  CHECK(choose({card("A"), card("A")}).reason == "2 ranks share A");
  const auto apart = choose({card("A"), card("B"), card("A")});
  CHECK(apart.mode == DeviceMode::host && apart.reason == "the ranks are on 2 GPUs", apart.reason);
  CHECK(choose({card("A")}).mode == DeviceMode::host);
  const auto asked = choose({card("A", 'H'), card("A", 'H')});
  CHECK(asked.mode == DeviceMode::host && asked.reason == "asked for");
  auto without = card("A");
  without.words = false;
  CHECK(choose({card("A"), without}).reason == "rank 1 has no 64-bit stream memory operations");
  without = card("A");
  without.one_host = false;
  CHECK(
      choose({without, card("A")}).reason.starts_with("rank 0 does not share memory of one host"));
  without = card("A");
  without.descriptors = false;
  CHECK(choose({without, card("A")}).mode == DeviceMode::stream);
  without.ipc = false;
  CHECK(choose({without, card("A")}).mode == DeviceMode::host);
  bool refused = false;
  try {
    choose({card("A", 'H'), card("A")});
  } catch (const UsageError& error) {
    refused = std::string(error.what()).find("rank 1 asks for any mode") != std::string::npos;
  }
  CHECK(refused);
}

TEST("the pool of a group stays within its bytes, whatever the number of ranks") {
  for (int world_size = 2; world_size <= 24; ++world_size) {
    const size_t slot = DevicePool::slot_bytes_for(world_size, kDevicePoolBytes);
    const size_t step = kDevicePoolStep;
    const auto rounded = [&](size_t slots) { return (slots * slot + step - 1) / step * step; };
    const size_t all = static_cast<size_t>(world_size - 1) * rounded(3) + rounded(6);
    CHECK(all <= kDevicePoolBytes, world_size, " ranks use ", all);
    CHECK(slot >= size_t{512} * 1024, world_size, " ranks have slots of ", slot);
  }
}

TEST("every collective gives the right result, in one piece and in many") {
  for (const int world_size : {2, 3, 5, 8}) {
    with_group({"shm"}, world_size, [&](auto& engine, int rank) {
      Rank me(*engine, seeded(rank), small_pool());
      CHECK(me.group().mode() == DeviceMode::stream, me.group().describe());
      for (const Collective collective : kServed) {
        for (const size_t count : {size_t{0}, size_t{1}, size_t{7}, size_t{1000}, size_t{50001}}) {
          Tensors tensors({collective, ReduceOp::sum, count, world_size / 2}, rank, world_size);
          CHECK(me.group().serves(tensors.wanted()));
          me.finish(me.launch(tensors.wanted()));
          tensors.check(str(world_size, " ranks"));
        }
      }
    });
  }
}

TEST("every operation of a sum, and its average, comes out as on the CPU") {
  with_group({"shm"}, 4, [&](auto& engine, int rank) {
    Rank me(*engine, seeded(rank), small_pool());
    for (const ReduceOp op : {ReduceOp::max, ReduceOp::avg, ReduceOp::sum}) {
      for (const Collective collective : {Collective::all_reduce, Collective::reduce_scatter}) {
        Tensors tensors({collective, op, 30000, 0}, rank, 4);
        me.finish(me.launch(tensors.wanted()));
        tensors.check(std::string(name_of(op)));
      }
    }
    Operation wanted;
    wanted.op = ReduceOp::premul_sum;
    CHECK(!me.group().serves(wanted));
    wanted.collective = Collective::all_to_all;
    CHECK(!me.group().serves(wanted));
  });
}

TEST("hundreds of operations of all kinds run ahead of the streams, in order, with delays") {
  const unsigned seed = 20261121;
  for (const int world_size : {2, 3, 4}) {
    with_group({"shm"}, world_size, [&](auto& engine, int rank) {
      Rank me(*engine, seeded(rank, 150), small_pool());
      void* other = nullptr;
      void* event = nullptr;
      must(me.device().create_stream(false, &other));
      must(me.device().create_event(false, &event));
      std::mt19937 random(seed);  // alike on all ranks
      std::vector<std::unique_ptr<Tensors>> all;
      OperationPtr last;
      void* before = me.stream();
      for (int k = 0; k < 120; ++k) {
        const Collective collective = kServed[random() % std::size(kServed)];
        const size_t count = random() % 4 ? random() % 3000 : random() % 60000;
        const auto root = static_cast<int>(random() % static_cast<unsigned>(world_size));
        all.push_back(std::make_unique<Tensors>(Case{collective, ReduceOp::sum, count, root}, rank,
                                                world_size));
        void* const stream = random() % 2 ? me.stream() : other;
        if (stream != before) {
          must(me.device().record(event, before));
          must(me.device().wait_event(stream, event));
        }
        before = stream;
        last = me.launch(all.back()->wanted(), stream);
      }
      me.finish(last);
      must(me.device().synchronize(other));
      for (size_t k = 0; k < all.size(); ++k) all[k]->check(str("seed ", seed, ", operation ", k));
    });
  }
}

TEST("a host that runs far ahead waits for its peers' hosts and loses nothing") {
  with_group({"shm"}, 2, [&](auto& engine, int rank) {
    Rank me(*engine, seeded(rank), small_pool());
    if (rank == 1) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    std::vector<float> memory(16, 1);
    Operation wanted;
    wanted.work = {{reinterpret_cast<std::byte*>(memory.data()), memory.size()}};
    wanted.op = ReduceOp::avg;
    OperationPtr last;
    for (uint64_t k = 0; k < 2 * kDeviceTicketsMax + 10; ++k) last = me.launch(wanted);
    me.finish(last);
    check_all(memory, 1, "the average of ones");
  });
}

TEST("collectives on the CPU and on the device of one group keep the order of the calls") {
  with_group({"shm"}, 3, [&](auto& engine, int rank) {
    Rank me(*engine, seeded(rank, 100), small_pool());
    for (int round = 0; round < 10; ++round) {
      Tensors tensors({Collective::all_reduce, ReduceOp::sum, 20000, 0}, rank, 3);
      const auto on_device = me.launch(tensors.wanted());
      auto on_host = tensor(100, static_cast<float>(rank));
      engine->run(make(Collective::all_reduce, on_host));
      // So a barrier on the CPU covers the device.
      CHECK(on_device->finished());
      must(me.device().synchronize(me.stream()));
      tensors.check("beside the CPU");
      check_all(on_host, 3, "the CPU's");
    }
  });
}

TEST("a captured collective works at every replay, between others that are not captured") {
  for (const int world_size : {2, 3, 4}) {
    with_group({"shm"}, world_size, [&](auto& engine, int rank) {
      Rank me(*engine, seeded(rank, 60), small_pool());
      std::vector<std::unique_ptr<Tensors>> captured, direct;
      for (const Collective collective : kServed) {
        const Case one{collective, ReduceOp::sum, 40000, world_size - 1};
        captured.push_back(std::make_unique<Tensors>(one, rank, world_size));
        direct.push_back(std::make_unique<Tensors>(one, rank, world_size));
      }
      must(me.device().begin_capture(me.stream()));
      for (const auto& one : captured) CHECK(!me.launch(one->wanted()));
      std::shared_ptr<const FakeGraph> graph;
      must(me.device().end_capture(me.stream(), &graph));
      for (int round = 0; round < 4; ++round) {
        OperationPtr last;
        for (const auto& one : captured) one->fill();
        for (const auto& one : direct) one->fill();
        for (size_t k = 0; k < direct.size(); ++k) {
          if (k == static_cast<size_t>(round)) must(me.device().replay(*graph, me.stream()));
          last = me.launch(direct[k]->wanted());
        }
        me.finish(last);
        for (const auto& one : captured) one->check(str("captured, replay ", round));
        for (const auto& one : direct) one->check(str("direct, round ", round));
      }
    });
  }
}

TEST("a graph may be replayed while operations that were not captured are under way") {
  with_group({"shm"}, 3, [](auto& engine, int rank) {
    Rank me(*engine, seeded(rank, 60), small_pool());
    void* beside = nullptr;
    must(me.device().create_stream(false, &beside));
    const Case one{Collective::all_reduce, ReduceOp::sum, 40000, 0};
    const Case other{Collective::all_reduce, ReduceOp::max, 40000, 1};
    Tensors captured(one, rank, 3), direct(other, rank, 3);
    must(me.device().begin_capture(beside));
    CHECK(!me.launch(captured.wanted(), beside));
    std::shared_ptr<const FakeGraph> graph;
    must(me.device().end_capture(beside, &graph));
    for (int round = 0; round < 8; ++round) {
      captured.fill();
      direct.fill();
      const auto last = me.launch(direct.wanted());
      must(me.device().replay(*graph, beside));
      me.finish(last);
      must(me.device().synchronize(beside));
      captured.check(str("captured, round ", round));
      direct.check(str("direct, round ", round));
    }
    must(me.device().destroy_stream(beside));
  });
}

TEST("ranks on two GPUs, or without what mode S needs, are told to go through the host") {
  const auto mode_of = [](const std::function<void(FakeOptions&, int)>& change) {
    std::string said;
    with_group({"shm"}, 2, [&](auto& engine, int rank) {
      auto options = seeded(rank);
      change(options, rank);
      Rank me(*engine, options);
      Operation wanted;
      CHECK(me.group().serves(wanted) == (me.group().mode() == DeviceMode::stream));
      if (me.group().mode() == DeviceMode::host) CHECK(me.group().device_bytes() == 0);
      if (rank == 0) said = me.group().describe();
    });
    return said;
  };
  const auto starts = [](const std::string& text, const std::string& begin) {
    CHECK(text.rfind(begin, 0) == 0, text);
  };
  starts(mode_of([](auto&, int) {}), "S: 2 ranks share GPU-one; slots of 7 MiB by file descriptor");
  starts(mode_of([](auto& o, int rank) { o.uuid = str("GPU-", rank); }), "H: the ranks are on 2");
  starts(mode_of([](auto& o, int rank) { o.words = rank == 0; }), "H: rank 1 has no 64-bit");
  starts(mode_of([](auto& o, int rank) { o.memory_bytes = rank ? 1 << 20 : 1 << 30; }),
         "H: rank 1: allocate_shared failed");
  // Threads cannot open the IPC handles of their own process.
  starts(mode_of([](auto& o, int) { o.descriptors = false; }), "H: rank 0: import_shared failed");
}

TEST("over tcp there is no shared memory, and the ranks are told so") {
  with_group({"tcp"}, 2, [&](auto& engine, int rank) {
    Rank me(*engine, seeded(rank));
    CHECK(me.group().describe().find("does not share memory of one host") != std::string::npos,
          me.group().describe());
  });
}

TEST("a group gives back all that it took of the device") {
  with_group({"shm"}, 3, [&](auto& engine, int rank) {
    FakeDevice device(seeded(rank));
    const auto kernels = host_kernels([&](void* stream, std::function<void()> work) {
      must(device.enqueue_host(stream, std::move(work)));
    });
    auto group = DeviceGroup::connect(*engine, device, *kernels, {});
    CHECK(group->device_bytes() > 0 && group->host_bytes() > 0);
    Tensors tensors({Collective::all_reduce, ReduceOp::sum, 1000, 0}, rank, 3);
    const auto call = group->prepare(tensors.wanted(), false);
    engine->submit(call.operation);
    must(group->enqueue(call, nullptr));
    engine->wait(*call.operation, {});
    group.reset();
    CHECK(device.live() == 0 && device.used_bytes() == 0, device.live());
    tensors.check("at the end");
  });
}

TEST("the engine may come to the end of operations when their group and device are gone") {
  with_group({"shm"}, 2, [&](auto& engine, int rank) {
    OperationPtr last;
    {
      Rank me(*engine, seeded(rank), small_pool());
      Tensors tensors({Collective::broadcast, ReduceOp::sum, 1, 0}, rank, 2);
      for (int k = 0; k < 200; ++k) last = me.launch(tensors.wanted());
      must(me.device().synchronize(me.stream()));
    }
    engine->wait(*last, {});
  });
}
