// SPDX-License-Identifier: MIT
// What channel.h promises, checked on every transport.
#include <sys/wait.h>

#include <cstring>
#include <random>

#include "check.h"
#include "connections.h"

using namespace pycomm;
using namespace connections;

namespace {

constexpr uint64_t kSeed = 4711;
constexpr auto kPatience = std::chrono::seconds(30);

FrameHeader header_of(uint64_t number, size_t bytes) {
  return {static_cast<uint32_t>(bytes),
          static_cast<uint32_t>(number * 3),
          {number, ~number, number << 32, 0x0123456789abcdef}};
}

std::byte* reserve(Channel& channel, size_t bytes) {
  const auto deadline = Deadline::after(kPatience);
  while (true) {
    if (std::byte* room = channel.try_reserve(bytes)) return room;
    CHECK(!deadline.expired(), "no room for ", bytes, " bytes");
    std::this_thread::yield();
  }
}

void send(Channel& channel, uint64_t number, size_t bytes) {
  std::byte* room = reserve(channel, bytes);
  if (bytes) std::memcpy(room, noise_of(number, bytes), bytes);
  channel.commit(header_of(number, bytes));
}

ReceivedFrame peek(Channel& channel) {
  const auto deadline = Deadline::after(kPatience);
  ReceivedFrame frame;
  while (!channel.try_peek(frame)) {
    CHECK(!deadline.expired(), "no frame came");
    std::this_thread::yield();
  }
  return frame;
}

void check_frame(const ReceivedFrame& frame, uint64_t number, size_t bytes,
                 const std::string& context) {
  const auto expected = header_of(number, bytes);
  CHECK(frame.header.payload_bytes == bytes, context, ", frame ", number, ": ",
        frame.header.payload_bytes, " bytes, expected ", bytes);
  CHECK(frame.header.number == expected.number && frame.header.tag == expected.tag, context,
        ", frame ", number, ": header damaged");
  CHECK(bytes == 0 || std::memcmp(frame.payload, noise_of(number, bytes), bytes) == 0, context,
        ", frame ", number, " of ", bytes, " bytes: payload damaged");
}

void receive(Channel& channel, uint64_t number, size_t bytes, const std::string& context) {
  check_frame(peek(channel), number, bytes, context);
  channel.consume();
}

// Frames until there is no more room.
uint64_t fill(Channel& channel, size_t bytes, const std::string& context) {
  uint64_t sent = 0;
  for (int refused = 0; refused < 1000;) {
    CHECK(sent < 100000, context, ": never full");
    if (std::byte* room = channel.try_reserve(bytes)) {
      std::memcpy(room, noise_of(sent, bytes), bytes);
      channel.commit(header_of(sent, bytes));
      ++sent;
      refused = 0;
    } else {
      ++refused;
    }
  }
  return sent;
}

size_t random_size(std::mt19937_64& random, size_t most) {
  switch (random() % 4) {
    case 0:
      return random() % (2 * kInlinePayloadBytes + 1);
    case 1:
      return most - random() % 3;
    default:
      return random() % (most + 1);
  }
}

}  // namespace

TEST("frames of every size arrive whole and in order, both ways, on both lanes") {
  for_each_transport(1000, [](const Connection& c) {
    const std::vector<size_t> sizes{0, 1, 15, 16, 17, 63, 64, 65, 999, 1000, 0, 16, 1000, 17, 0};
    for (const auto lane : {Lane::collective, Lane::point_to_point}) {
      for (const int from : {0, 1}) {
        Channel &there = c.end(from, lane), &here = c.end(1 - from, lane);
        CHECK(there.payload_bytes_max() == 1000, c.name, ": ", there.payload_bytes_max());
        ReceivedFrame nothing;
        CHECK(!here.try_peek(nothing), c.name, ": a frame before any was sent");
        uint64_t number = 0;
        for (const size_t bytes : sizes) {
          send(there, number, bytes);
          receive(here, number++, bytes, c.name);
        }
        // And several in flight.
        for (uint64_t k = 0; k < kSlots; ++k) send(there, number + k, sizes[k]);
        for (uint64_t k = 0; k < kSlots; ++k) receive(here, number + k, sizes[k], c.name);
        CHECK(!here.try_peek(nothing), c.name, ": a frame too many");
      }
    }
  });
}

TEST("reserving twice gives the same room, peeking twice the same frame") {
  for_each_transport(1000, [](const Connection& c) {
    Channel &there = c.end(0), &here = c.end(1);
    for (const size_t bytes : {size_t{1}, size_t{16}, size_t{17}, size_t{1000}}) {
      const std::byte* first = reserve(there, bytes);
      CHECK(reserve(there, bytes) == first, c.name, ", ", bytes, " bytes");
      send(there, 1, bytes);
      send(there, 2, bytes);
      check_frame(peek(here), 1, bytes, c.name);
      const std::byte* payload = peek(here).payload;
      CHECK(peek(here).payload == payload, c.name);
      receive(here, 1, bytes, c.name);
      receive(here, 2, bytes, c.name);
    }
  });
}

TEST("less than was reserved may be committed") {
  for_each_transport(1000, [](const Connection& c) {
    uint64_t number = 0;
    for (const size_t reserved : {17, 100, 1000}) {
      for (const size_t bytes : {0, 1, 8, 16, 17}) {
        std::byte* room = reserve(c.end(0), reserved);
        std::memcpy(room, noise_of(number, bytes), bytes);
        c.end(0).commit(header_of(number, bytes));
        receive(c.end(1), number++, bytes, str(c.name, ", reserved ", reserved));
      }
    }
  });
}

TEST("what is sent from memory arrives, wherever the receiver wants it, mixed with staged frames") {
  for_each_transport(20000, [](const Connection& c) {
    constexpr uint64_t kFrames = 400;
    std::mt19937_64 random(kSeed);
    std::vector<size_t> sizes(kFrames);
    for (auto& size : sizes) size = random_size(random, 20000);
    std::vector<std::byte> memory(20000);
    uint64_t sent = 0, received = 0;
    const auto deadline = Deadline::after(kPatience);
    while (received < kFrames) {
      CHECK(!deadline.expired(), c.name, ", seed ", kSeed, ": stuck at frame ", received);
      if (sent < kFrames) {
        const size_t bytes = sizes[sent];
        // A frame that was begun is sent by the same call until it is through.
        if (sent % 3 != 0) {
          sent += c.end(0).try_send(header_of(sent, bytes), noise_of(sent, bytes));
        } else if (std::byte* room = c.end(0).try_reserve(bytes)) {
          if (bytes) std::memcpy(room, noise_of(sent, bytes), bytes);
          c.end(0).commit(header_of(sent, bytes));
          ++sent;
        }
      } else {
        c.end(0).try_flush();
      }
      // Sometimes it expects the frame, sometimes another one, sometimes it only looks.
      const size_t bytes = sizes[received];
      const uint64_t expected = received + (received % 5 == 0);
      ReceivedFrame frame;
      const bool there = received % 4 == 3 ? c.end(1).try_peek(frame)
                                           : c.end(1).try_peek_into(
                                                 frame, header_of(expected, bytes), memory.data());
      if (!there) continue;
      check_frame(frame, received, bytes, c.name);
      if (expected != received && bytes > 0) {
        CHECK(frame.payload != memory.data(), c.name, ": another frame was put there");
      }
      c.end(1).consume();
      ++received;
    }
  });
}

TEST("a full channel refuses, loses nothing, and has room again once frames are consumed") {
  for_each_transport(64 * 1024, [](const Connection& c) {
    const size_t bytes = 60000;
    for (int round = 0; round < 3; ++round) {
      const uint64_t sent = fill(c.end(0), bytes, c.name);
      CHECK(sent >= kSlots, c.name, ": full after ", sent, " frames");
      // The other lane and the other direction do not mind.
      send(c.end(0, Lane::point_to_point), 5, 33);
      receive(c.end(1, Lane::point_to_point), 5, 33, c.name);
      send(c.end(1), 6, 44);
      receive(c.end(0), 6, 44, c.name);
      for (uint64_t number = 0; number < sent; ++number) {
        receive(c.end(1), number, bytes, c.name);
        c.end(0).try_flush();
      }
      ReceivedFrame nothing;
      CHECK(!c.end(1).try_peek(nothing), c.name);
      CHECK(c.end(0).try_flush(), c.name);
    }
  });
}

TEST("flushing leaves nothing behind: what is flushed arrives without the sender's help") {
  for_each_transport(128 * 1024, [](const Connection& c) {
    const uint64_t sent = fill(c.end(0), 128 * 1024, c.name);
    uint64_t received = 0;
    while (!c.end(0).try_flush()) receive(c.end(1), received++, 128 * 1024, c.name);
    while (received < sent) receive(c.end(1), received++, 128 * 1024, c.name);
  });
}

TEST("thousands of frames of random sizes wrap around and stay in order") {
  for_each_transport(300, [](const Connection& c) {
    std::mt19937_64 random(kSeed);
    std::vector<size_t> sizes(5000);
    for (auto& size : sizes) size = random_size(random, 300);
    for (const auto lane : {Lane::collective, Lane::point_to_point}) {
      uint64_t sent = 0, received = 0;
      while (received < sizes.size()) {
        for (auto burst = random() % 6; burst > 0 && sent < sizes.size(); --burst) {
          const size_t bytes = sizes[sent];
          std::byte* room = c.end(0, lane).try_reserve(bytes);
          if (!room) break;
          if (bytes) std::memcpy(room, noise_of(sent, bytes), bytes);
          c.end(0, lane).commit(header_of(sent, bytes));
          ++sent;
        }
        for (auto burst = random() % 6; burst > 0 && received < sent; --burst) {
          receive(c.end(1, lane), received, sizes[received], str(c.name, ", seed ", kSeed));
          ++received;
        }
      }
    }
  });
}

TEST("both sides of both ends may be used by different threads at once") {
  for_each_transport(32 * 1024, [](const Connection& c) {
    if (!c.threads) return;
    constexpr uint64_t kFrames = 600;
    // Threads 0..3: the sending and the receiving side of either end; 4..7: the same on the other
    // lane.
    on_threads(8, [&](int thread) {
      const int side = thread % 2;
      const auto lane = thread < 4 ? Lane::collective : Lane::point_to_point;
      std::mt19937_64 random(kSeed + static_cast<uint64_t>(lane));
      const bool sends = thread / 2 % 2 == 0;
      for (uint64_t number = 0; number < kFrames; ++number) {
        const size_t bytes = random_size(random, 32 * 1024);
        if (sends) {
          send(c.end(side, lane), number, bytes);
        } else {
          receive(c.end(side, lane), number, bytes, str(c.name, ", seed ", kSeed));
        }
      }
      const auto deadline = Deadline::after(kPatience);
      while (sends && !c.end(side, lane).try_flush()) CHECK(!deadline.expired(), c.name);
    });
  });
}

namespace {

// What one process does; returns its exit status.
int talk(FileStore& store, int rank, const std::string& transport) {
  MeshOptions options;
  options.transports = transport;
  options.socket_interface = "lo";
  options.connect_timeout = std::chrono::seconds(30);
  try {
    const auto mesh = Mesh::connect(store, rank, 2, options);
    Channel& channel = mesh->channel(1 - rank, Lane::collective);
    CHECK(mesh->link(1 - rank).transport == transport);
    std::mt19937_64 random(kSeed);
    for (uint64_t number = 0; number < 2000; ++number) {
      const size_t bytes = random_size(random, 20000);
      if (rank == 0) send(channel, number, bytes);
      receive(channel, number, bytes, str(transport, " between processes, rank ", rank));
      if (rank == 1) send(channel, number, bytes);
    }
    while (!channel.try_flush()) {
    }
    if (rank == 1) return 0;
    // The child ends without a word, and that is seen.
    const auto deadline = Deadline::after(kPatience);
    Notice notice;
    while (mesh->link(1).control->receive(notice) != ControlLink::Status::closed) {
      CHECK(!deadline.expired(), transport, ": the child's end was not noticed");
      std::this_thread::yield();
    }
    return 0;
  } catch (const std::exception& error) {
    std::printf("rank %d: %s\n", rank, error.what());
    std::fflush(stdout);
    return 1;
  }
}

}  // namespace

TEST("processes talk over shared memory and TCP, and the end of one is noticed") {
  for (const std::string transport : {"shm", "tcp"}) {
    FileStore store;
    const pid_t child = ::fork();
    CHECK(child >= 0);
    if (child == 0) ::_exit(talk(store, 1, transport));
    const int mine = talk(store, 0, transport);
    int theirs = -1;
    ::waitpid(child, &theirs, 0);
    CHECK(mine == 0 && theirs == 0, transport, ": ", mine, " ", theirs);
  }
}

TEST("an end that goes away is noticed: the control link closes, and TCP channels throw") {
  for (const std::string transport : {"shm", "tcp"}) {
    auto c = make_connected(transport, 0, 2);
    send(c.end(1), 1, 100);
    c.meshes[1].reset();
    Notice notice;
    // The kernel may take its time to deliver what was sent last, and the end.
    const auto deadline = Deadline::after(kPatience);
    while (c.meshes[0]->link(1).control->receive(notice) != ControlLink::Status::closed) {
      CHECK(!deadline.expired(), transport, ": the end was not noticed");
      std::this_thread::yield();
    }
    receive(c.end(0), 1, 100, transport);  // what was sent before is not lost
    if (transport == "shm") continue;
    std::string told;
    try {
      ReceivedFrame frame;
      while (!c.end(0).try_peek(frame)) CHECK(!deadline.expired(), "the channel does not throw");
    } catch (const CommError& error) {
      told = error.what();
      CHECK(error.failure().kind == FailureKind::peer_failure, told);
      CHECK(error.failure().ranks == std::vector<int>{1}, told);
    }
    CHECK(told.find("rank 1 (pid ") != std::string::npos &&
              told.find(") at 127.0.0.1") != std::string::npos,
          told);
  }
}
