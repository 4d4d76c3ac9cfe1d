// SPDX-License-Identifier: MIT
// Ranks that share a fake GPU or have one each, as threads: the choice of the mode, every
// collective of modes S and K, the order of operations, graphs. device_group_failures_test.cc has
// what goes wrong, device_group_peers_test.cc what only mode K does.
#include <random>

#include "device_ranks.h"

using namespace device_ranks;

namespace {

DeviceCard card(const std::string& uuid, char wanted = 0) {
  DeviceFacts facts;
  facts.uuid = uuid;
  facts.words = facts.host_memory = facts.descriptors = facts.ipc = true;
  facts.processors = 100;
  return card_of(facts, wanted, true);
}

ModeChoice choose(std::vector<DeviceCard> cards) { return choose_mode(cards); }

}  // namespace

TEST("ranks that share a GPU work in mode S, and what stands against it is named") {
  CHECK(choose({card("A"), card("A")}).mode == DeviceMode::stream);
  CHECK(choose({card("A"), card("A")}).reason == "2 ranks share A");
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
  auto other = card("B");
  std::strcpy(other.all_reduce, "ring");
  try {
    choose({card("A"), other});
    refused = false;
  } catch (const UsageError& error) {
    const std::string said = error.what();
    CHECK(said.find("rank 1 asks for all_reduce by ring, rank 0 by") != std::string::npos, said);
  }
  CHECK(refused);
}

TEST("ranks with a GPU each work in mode K where every GPU reaches every other") {
  const auto says = [](const ModeChoice& choice, DeviceMode mode, const std::string& end) {
    CHECK(choice.mode == mode && choice.reason.ends_with(end), static_cast<char>(choice.mode), ": ",
          choice.reason);
  };
  const auto two = "2 ranks on 2 GPUs that reach each other";
  says(choose({card("A"), card("B")}), DeviceMode::kernel, two);
  says(choose({card("A", 'K'), card("B", 'K')}), DeviceMode::kernel, two);
  says(choose({card("A", 'S'), card("B", 'S')}), DeviceMode::stream, "asked for");
  says(choose({card("A"), card("B"), card("A")}), DeviceMode::stream,
       "3 ranks on 2 GPUs that reach each other; ranks 0 and 2 share A, where no kernel may wait "
       "for another's");
  says(choose({card("A", 'K'), card("B", 'K'), card("A", 'K')}), DeviceMode::host,
       "asked for K, but ranks 0 and 2 share A, where no kernel may wait for another's");
  auto without = card("B");
  without.unreached = 0;
  says(choose({card("A"), without}), DeviceMode::host,
       "rank 1 has no access from its GPU to that of rank 0");
  without = card("B");
  without.processors = kPeerBlocksMax - 1;
  says(choose({card("A"), without}), DeviceMode::stream,
       "fewer than the 32 blocks that wait at once");
  std::vector<DeviceCard> many;
  for (int rank = 0; rank < 9; ++rank) many.push_back(card(str("GPU-", rank)));
  says(choose(many), DeviceMode::stream, "in groups of up to 8 ranks");
}

TEST("the pool of a group stays within its bytes, whatever the number of ranks") {
  for (int world_size = 2; world_size <= 24; ++world_size) {
    const std::vector<DeviceCard> cards(static_cast<size_t>(world_size), card("A"));
    const size_t slot =
        PoolLayout::choose(cards, kDevicePoolBytes, [](size_t) { return size_t{0}; }).slot_bytes;
    const size_t step = kDevicePoolStep;
    const auto rounded = [&](size_t slots) { return (slots * slot + step - 1) / step * step; };
    const size_t all = static_cast<size_t>(world_size - 1) * rounded(3) + rounded(6);
    CHECK(all <= kDevicePoolBytes, world_size, " ranks use ", all);
    CHECK(slot >= size_t{512} * 1024, world_size, " ranks have slots of ", slot);
  }
  for (int world_size = 2; world_size <= kPeersMax; ++world_size) {
    std::vector<DeviceCard> cards;
    for (int rank = 0; rank < world_size; ++rank) cards.push_back(card(str("GPU-", rank)));
    for (const char* algorithm : {"", "ring"}) {
      std::string why;
      const PeerPlan chosen = make_peer_plan(algorithm, 0, world_size, &why);
      const auto layout = PoolLayout::choose(cards, kDevicePoolBytes, [&](size_t slot_bytes) {
        return PeerKernels::bytes_for(world_size, slot_bytes, chosen);
      });
      for (int rank = 0; rank < world_size; ++rank) {
        CHECK(layout.bytes_of(rank) <= kDevicePoolBytes, world_size, ": ", layout.bytes_of(rank));
      }
      CHECK(layout.slot_bytes >= size_t{4} << 20, world_size, " ranks: ", layout.slot_bytes);
    }
  }
}

TEST("every collective gives the right result, in one piece and in many") {
  for (const DeviceMode mode : kBothModes) {
    for (const int world_size : {2, 3, 5, 8}) {
      with_group({"shm"}, world_size, [&](auto& engine, int rank) {
        Rank me(*engine, seeded(rank, 0, mode), small_pool());
        CHECK(me.group().mode() == mode, me.group().describe());
        for (const Collective collective : kServed) {
          for (const size_t count : {0, 1, 7, 1000, 50001}) {
            Tensors tensors({collective, ReduceOp::sum, count, world_size / 2}, rank, world_size);
            CHECK(me.group().serves(tensors.wanted()));
            me.finish(me.launch(tensors.wanted()));
            tensors.check(str(world_size, " ranks, mode ", static_cast<char>(mode)));
          }
        }
      });
    }
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
  for (const auto& [mode, world_size] :
       {std::pair(DeviceMode::stream, 2), std::pair(DeviceMode::stream, 3),
        std::pair(DeviceMode::stream, 4), std::pair(DeviceMode::kernel, 3),
        std::pair(DeviceMode::kernel, 4)}) {
    with_group({"shm"}, world_size,
               [&, mode = mode, world_size = world_size](auto& engine, int rank) {
                 Rank me(*engine, seeded(rank, 150, mode), small_pool());
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
                   all.push_back(std::make_unique<Tensors>(
                       Case{collective, ReduceOp::sum, count, root}, rank, world_size));
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
                 for (size_t k = 0; k < all.size(); ++k)
                   all[k]->check(str("seed ", seed, ", operation ", k));
               });
  }
}

TEST("a host that runs far ahead waits for its peers' hosts and loses nothing") {
  for (const DeviceMode mode : kBothModes) {
    with_group({"shm"}, 2, [&](auto& engine, int rank) {
      Rank me(*engine, seeded(rank, 0, mode), small_pool());
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
  for (const auto& [mode, world_size] :
       {std::pair(DeviceMode::stream, 2), std::pair(DeviceMode::stream, 3),
        std::pair(DeviceMode::stream, 4), std::pair(DeviceMode::kernel, 3)}) {
    with_group({"shm"}, world_size,
               [&, mode = mode, world_size = world_size](auto& engine, int rank) {
                 Rank me(*engine, seeded(rank, 60, mode), small_pool());
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
                     if (k == static_cast<size_t>(round))
                       must(me.device().replay(*graph, me.stream()));
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
  for (const DeviceMode mode : kBothModes) {
    with_group({"shm"}, 3, [mode](auto& engine, int rank) {
      Rank me(*engine, seeded(rank, 60, mode), small_pool());
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
}

TEST("ranks are told how they work together, and what they lack if it is through the host") {
  const auto mode_of = [](const std::function<void(FakeOptions&, int)>& change) {
    std::string said;
    with_group({"shm"}, 2, [&](auto& engine, int rank) {
      auto options = seeded(rank);
      change(options, rank);
      Rank me(*engine, options);
      Operation wanted;
      CHECK(me.group().serves(wanted) == (me.group().mode() != DeviceMode::host));
      if (me.group().mode() == DeviceMode::host) CHECK(me.group().device_bytes() == 0);
      if (rank == 0) said = me.group().describe();
    });
    return said;
  };
  const auto starts = [](const std::string& text, const std::string& begin) {
    CHECK(text.rfind(begin, 0) == 0, text);
  };
  starts(mode_of([](auto&, int) {}), "S: 2 ranks share GPU-one; slots of 7 MiB by file descriptor");
  starts(mode_of([](auto& o, int rank) { o.uuid = str("GPU-", rank); }),
         "K: 2 ranks on 2 GPUs that reach each other; slots of 5.5625 MiB by file descriptor");
  starts(mode_of([](auto& o, int rank) {
           o.uuid = str("GPU-", rank);
           o.peer_access = rank == 0;
         }),
         "H: rank 1 has no access from its GPU to that of rank 0");
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
  for (const DeviceMode mode : kBothModes) {
    with_group({"shm"}, 3, [&](auto& engine, int rank) {
      FakeDevice device(seeded(rank, 0, mode));
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
