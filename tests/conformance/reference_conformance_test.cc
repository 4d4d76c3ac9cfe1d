// SPDX-License-Identifier: MIT
// Frames that refer to memory which the peer maps: what channel.h promises of them, and that no
// reference leads outside the sender's arena, whatever a peer claims.
#include <sys/mman.h>
#include <sys/wait.h>

#include <csignal>
#include <cstring>

#include "check.h"
#include "connections.h"
#include "transport/arena.h"
#include "transport/shm_ring.h"

using namespace pycomm;
using namespace connections;

namespace {

constexpr auto kPatience = std::chrono::seconds(30);
constexpr size_t kBytes = 3 * kReferenceBytesMin + 40;

FrameHeader header_of(uint64_t number) {
  return {0, static_cast<uint32_t>(number * 3), {number, ~number, 0, 7}};
}

template <class Ready>
void wait_until(const Ready& ready, const std::string& what) {
  const auto deadline = Deadline::after(kPatience);
  while (!ready()) {
    CHECK(!deadline.expired(), what);
    std::this_thread::yield();
  }
}

ReceivedFrame peek(Channel& channel) {
  ReceivedFrame frame;
  wait_until([&] { return channel.try_peek(frame); }, "no frame came");
  return frame;
}

void refer(Channel& channel, uint64_t number, const Window& window) {
  CHECK(channel.peer_reaches(window.data, window.bytes, kReferenceBytesMin));
  wait_until([&] { return channel.try_commit_reference(header_of(number), window); }, "no room");
}

void send(Channel& channel, uint64_t number, size_t bytes) {
  std::byte* room = nullptr;
  wait_until([&] { return (room = channel.try_reserve(bytes)) != nullptr; }, "no room");
  if (bytes) std::memcpy(room, noise_of(number, bytes), bytes);
  FrameHeader header = header_of(number);
  header.payload_bytes = static_cast<uint32_t>(bytes);
  channel.commit(header);
}

// A block of the arena that holds noise; freed with this object.
struct Block {
  explicit Block(uint64_t number, size_t bytes = kBytes)
      : size(bytes), data(Arena::of_process().allocate(bytes)) {
    CHECK(data, "the arena has no block");
    std::memcpy(data, noise_of(number, bytes), bytes);
  }
  ~Block() { Arena::of_process().free(data); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  size_t size;
  std::byte* data;
};

// One rank of two processes: shows the other its memory, and answers in the other's.
int answer_each_other(FileStore& store, int rank) {
  try {
    MeshOptions options;
    options.transports = "shm";
    const auto mesh = Mesh::connect(store, rank, 2, options);
    Channel& channel = mesh->channel(1 - rank, Lane::collective);
    Block mine(static_cast<uint64_t>(rank));
    for (uint64_t round = 0; round < 200; ++round) {
      const uint64_t theirs = 2 * round + 1 - static_cast<uint64_t>(rank);
      const size_t skip = round % 61;  // odd addresses and sizes
      refer(channel, round, {mine.data + skip, kBytes - skip, true});
      const auto frame = peek(channel);
      CHECK(frame.header.tag == header_of(round).tag && frame.window.bytes == kBytes - skip);
      CHECK(std::memcmp(frame.window.data, noise_of(theirs, kBytes) + skip, kBytes - skip) == 0,
            "rank ", rank, ", round ", round, ": not what the peer has");
      std::memcpy(frame.window.data, noise_of(theirs + 1000, kBytes), kBytes - skip);
      channel.consume();
      wait_until([&] { return channel.references_consumed(); }, "a reference was not consumed");
      const uint64_t answer = 2 * round + static_cast<uint64_t>(rank) + 1000;
      CHECK(std::memcmp(mine.data + skip, noise_of(answer, kBytes), kBytes - skip) == 0, "rank ",
            rank, ", round ", round, ": not what the peer answered");
      std::memcpy(mine.data, noise_of(2 * round + 2 + static_cast<uint64_t>(rank), kBytes), kBytes);
    }
    // Rank 1 dies while a reference of its own is out: its memory stays readable.
    if (rank == 1) {
      refer(channel, 1000, {mine.data, kBytes, true});
      ::raise(SIGKILL);
    }
    const auto last = peek(channel);
    Notice notice;
    wait_until(
        [&] { return mesh->link(1).control->receive(notice) == ControlLink::Status::closed; },
        "the end of rank 1 was not noticed");
    CHECK(std::memcmp(last.window.data, noise_of(401, kBytes), kBytes) == 0);
    std::memset(last.window.data, 0, last.window.bytes);
    return 0;
  } catch (const std::exception& error) {
    std::printf("rank %d: %s\n", rank, error.what());
    std::fflush(stdout);
    return 1;
  }
}

}  // namespace

// First, before this process has an arena: a forked child of one that has gets none.
TEST("processes read and answer in each other's memory, and the memory outlives its owner") {
  FileStore store;
  pid_t ranks[2];
  for (int rank = 0; rank < 2; ++rank) {
    ranks[rank] = ::fork();
    CHECK(ranks[rank] >= 0);
    if (ranks[rank] == 0) ::_exit(answer_each_other(store, rank));
  }
  int ends[2] = {-1, -1};
  for (int rank = 0; rank < 2; ++rank) ::waitpid(ranks[rank], &ends[rank], 0);
  CHECK(ends[0] == 0, ends[0]);
  CHECK(WIFSIGNALED(ends[1]) && WTERMSIG(ends[1]) == SIGKILL, ends[1]);
}

TEST("references and payload arrive in order, and a reference is out until it is consumed") {
  const auto c = make_connected("shm", 1000, 1);
  Block block(5);
  for (const auto lane : {Lane::collective, Lane::point_to_point}) {
    Channel &there = c.end(0, lane), &here = c.end(1, lane);
    for (uint64_t round = 0; round < 50; ++round) {
      CHECK(there.references_consumed());
      send(there, 1, 500);
      refer(there, 2, {block.data, kBytes, round % 2 == 0, round % 3 == 0});
      send(there, 3, 16);
      auto frame = peek(here);
      CHECK(!frame.window.data && frame.header.payload_bytes == 500);
      here.consume();
      CHECK(!there.references_consumed());
      frame = peek(here);
      CHECK(frame.window.data == block.data && frame.window.bytes == kBytes);
      CHECK(frame.window.answer_here == (round % 2 == 0) && frame.header.payload_bytes == 0);
      CHECK(frame.window.one_for_each_peer == (round % 3 == 0));
      CHECK(frame.header.number == 6 && frame.header.tag == header_of(2).tag);
      CHECK(!there.references_consumed());
      here.consume();
      CHECK(there.references_consumed());
      frame = peek(here);
      CHECK(!frame.window.data && frame.header.payload_bytes == 16 &&
            std::memcmp(frame.payload, noise_of(3, 16), 16) == 0);
      here.consume();
    }
  }
}

TEST("a full ring refuses references as it refuses payload") {
  const auto c = make_connected("shm", 1000, 1);
  Block block(6);
  for (int k = 0; k < kSlots; ++k) refer(c.end(0), static_cast<uint64_t>(k), {block.data, kBytes});
  CHECK(!c.end(0).try_commit_reference(header_of(9), {block.data, kBytes}));
  for (int k = 0; k < kSlots; ++k) {
    CHECK(!c.end(0).references_consumed());
    CHECK(peek(c.end(1)).header.number == static_cast<uint32_t>(3 * k));
    c.end(1).consume();
  }
  CHECK(c.end(0).references_consumed());
}

TEST("only memory of the arena is in reach, only in shared memory, and only where it pays") {
  const auto shm = make_connected("shm", 0, 1), tcp = make_connected("tcp", 0, 1);
  Block block(7);
  std::vector<std::byte> own(kBytes);
  CHECK(shm.end(0).peer_reaches(block.data, kBytes, kReferenceBytesMin));
  CHECK(!shm.end(0).peer_reaches(own.data(), kBytes, kReferenceBytesMin));
  CHECK(!shm.end(0).peer_reaches(block.data, kReferenceBytesMin - 1, kReferenceBytesMin));
  CHECK(!shm.end(0).peer_reaches(nullptr, kBytes, kReferenceBytesMin));
  CHECK(!tcp.end(0).peer_reaches(block.data, kBytes, kReferenceBytesMin));
}

TEST("whatever a reference claims, it leads into the sender's arena or it is refused") {
  auto& arena = Arena::of_process();
  Block block(8);
  const auto capacity = static_cast<uint64_t>(arena.statistics().capacity_bytes);
  const RingLayout layout{256, 2};
  Doorbell bell;
  const auto try_reference = [&](ArenaReference reference, bool with_arena) -> std::string {
    const auto theirs = PeerArena::open(Fd(::dup(arena.fd())));
    Mapping memory(-1, 0, layout.bytes());
    RingProducer producer(memory.data(), layout, &bell, -1);
    RingConsumer consumer(memory.data(), layout, &bell, -1, with_arena ? theirs.get() : nullptr);
    CHECK(producer.takes_references() == with_arena);
    CHECK(producer.try_commit_reference(header_of(1), reference));
    ReceivedFrame frame;
    try {
      CHECK(consumer.try_peek(frame));
    } catch (const CommError& error) {
      return error.what();
    }
    CHECK(frame.window.data >= arena.base() + kPageBytes);
    CHECK(frame.window.data + frame.window.bytes <= arena.base() + capacity);
    return "taken";
  };
  const uint64_t here = arena.offset_of(block.data), huge = ~uint64_t{0} >> 1;
  CHECK(try_reference({here, kBytes}, true) == "taken");
  CHECK(try_reference({here, kBytes | ArenaReference::kAnswerHere}, true) == "taken");
  CHECK(try_reference({here, kBytes | ArenaReference::kOneForEachPeer}, true) == "taken");
  CHECK(try_reference({capacity - 1, 1}, true) == "taken");
  const std::vector<ArenaReference> forged{
      {0, kBytes},      {kPageBytes - 1, 1}, {capacity, 1},     {capacity - 1, 2},
      {here, capacity}, {here, huge},        {~uint64_t{0}, 2}, {~uint64_t{0} - 4, kBytes},
      {here, 0},        {huge, huge},        {capacity + 1, 0}, {uint64_t{1} << 63, kBytes}};
  for (const auto& one : forged) {
    const auto told = try_reference(one, true);
    CHECK(told.find("refers to ") != std::string::npos, one.offset, " ", one.bytes, ": ", told);
  }
  CHECK(try_reference({here, kBytes}, false).find("more than a segment") != std::string::npos);
}

TEST("a reference that was checked stays as it was, whatever the sender writes later") {
  auto& arena = Arena::of_process();
  Block block(9);
  const auto theirs = PeerArena::open(Fd(::dup(arena.fd())));
  const RingLayout layout{256, 1};
  Doorbell bell;
  Mapping memory(-1, 0, layout.bytes());
  RingProducer producer(memory.data(), layout, &bell, -1);
  RingConsumer consumer(memory.data(), layout, &bell, -1, theirs.get());
  auto& slot = *reinterpret_cast<SlotHeader*>(memory.data() + RingLayout::kHeadersOffset);
  for (const size_t bytes : {kBytes, kBytes / 2}) {
    CHECK(producer.try_commit_reference(header_of(1), {arena.offset_of(block.data), bytes}));
    ReceivedFrame frame, again;
    CHECK(consumer.try_peek(frame) && frame.window.bytes == bytes && !frame.window.answer_here);
    const ArenaReference later{0, kBytes | ArenaReference::kAnswerHere};
    std::memcpy(slot.small_payload, &later, sizeof(later));
    slot.frame = {};
    CHECK(consumer.try_peek(again) && again.header == frame.header);
    CHECK(again.window.data == frame.window.data && again.window.bytes == bytes);
    CHECK(!again.window.answer_here);
    consumer.consume();
    CHECK(!consumer.try_peek(again));
  }
}

TEST("references over loopback: only to what the test says is in reach") {
  std::vector<std::byte> near(100), far(100);
  const LoopbackReach reach = [&](const std::byte* data, size_t) { return data == near.data(); };
  auto [there, here] = make_loopback_pair(2, 64, reach);
  CHECK(there->peer_reaches(near.data(), 100, 1) && !there->peer_reaches(far.data(), 100, 1));
  CHECK(there->try_commit_reference(header_of(1), {near.data(), 100, true}));
  send(*there, 2, 10);
  CHECK(!there->try_commit_reference(header_of(3), {near.data(), 100}) &&
        !there->references_consumed());
  const auto frame = peek(*here);
  CHECK(frame.window.data == near.data() && frame.window.bytes == 100 && frame.window.answer_here);
  here->consume();
  CHECK(there->references_consumed());
  CHECK(!peek(*here).window.data);
}
