// SPDX-License-Identifier: MIT
// A TCP channel whose other end is a raw socket in the test's hands: damaged, bogus, cut and
// repeated frames are refused, and nothing in a header can make the channel read or write where it
// must not.
#include <sys/socket.h>

#include <cstring>
#include <random>

#include "check.h"
#include "connections.h"
#include "transport/tcp_channel.h"

using namespace pycomm;
using namespace connections;

namespace {

constexpr size_t kSegment = 256;
constexpr size_t kHeader = sizeof(TcpFrameHeader);
constexpr uint64_t kSeed = 1969;

struct Wire {
  Fd raw;
  std::unique_ptr<TcpChannel> channel;

  Wire() {
    int pair[2];
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    raw = Fd(pair[0]);
    std::vector<Fd> sockets;
    sockets.emplace_back(pair[1]);
    channel =
        std::make_unique<TcpChannel>(std::move(sockets), 2, "rank 2 at 10.0.0.7 (eth0)", kSegment);
  }
  void write(const std::string& bytes) const {
    CHECK(::send(raw.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
          static_cast<ssize_t>(bytes.size()));
  }
  std::string read() const {
    std::string bytes(1 << 16, 0);
    const auto got = ::recv(raw.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    bytes.resize(got > 0 ? static_cast<size_t>(got) : 0);
    return bytes;
  }
  // The next frame as a string; "nothing" or "refused: why" otherwise.
  std::string peek() const {
    ReceivedFrame frame;
    try {
      if (!channel->try_peek(frame)) return "nothing";
    } catch (const CommError& error) {
      CHECK(error.failure().kind == FailureKind::peer_failure);
      CHECK(error.failure().ranks == std::vector<int>{2});
      return str("refused: ", error.what());
    }
    CHECK(frame.header.payload_bytes <= kSegment, frame.header.payload_bytes);
    return std::string(reinterpret_cast<const char*>(frame.payload), frame.header.payload_bytes);
  }
};

// The bytes that a channel puts on the wire for these payloads.
std::string bytes_of(const std::vector<std::string>& payloads) {
  Wire wire;
  std::string bytes;
  for (const auto& payload : payloads) {
    std::byte* room = wire.channel->try_reserve(payload.size());
    CHECK(room != nullptr);
    std::memcpy(room, payload.data(), payload.size());
    wire.channel->commit({static_cast<uint32_t>(payload.size()), 0, {1, 2, 3, 4}});
    bytes += wire.read();
  }
  return bytes;
}

bool refused(const std::string& text, const std::string& part = "") {
  return text.find("refused: the connection to rank 2 at 10.0.0.7 (eth0) is lost: ") == 0 &&
         text.find(part) != std::string::npos;
}

const std::string kPayload = "a payload of thirty-eight bytes, or so";

}  // namespace

TEST("frames that arrive byte by byte are put together") {
  const auto bytes = bytes_of({kPayload, "", "x"});
  CHECK(bytes.size() == 3 * kHeader + kPayload.size() + 1);
  Wire wire;
  for (size_t i = 0; i < kHeader + kPayload.size(); ++i) {
    CHECK(wire.peek() == "nothing", i);
    wire.write(bytes.substr(i, 1));
  }
  CHECK(wire.peek() == kPayload);
  wire.channel->consume();
  wire.write(bytes.substr(kHeader + kPayload.size()));
  CHECK(wire.peek().empty());
  wire.channel->consume();
  CHECK(wire.peek() == "x");
}

TEST("every single damaged bit is noticed before the frame is handed out") {
  const auto good = bytes_of({kPayload});
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    auto damaged = good;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    Wire wire;
    wire.write(damaged);
    auto told = wire.peek();
    if (told == "nothing") {  // a longer payload was announced; let it come
      wire.write(std::string(kSegment, 'z'));
      told = wire.peek();
    }
    CHECK(refused(told), "bit ", bit, ": ", told);
  }
}

TEST("a payload larger than a segment is refused by its header alone") {
  const auto good = bytes_of({kPayload});
  const size_t at = offsetof(TcpFrameHeader, frame) + offsetof(FrameHeader, payload_bytes);
  for (const uint32_t size : {uint32_t{kSegment + 1}, uint32_t{1} << 31, ~uint32_t{0}}) {
    auto bogus = good;
    std::memcpy(bogus.data() + at, &size, sizeof(size));
    Wire wire;
    wire.write(bogus.substr(0, kHeader));
    CHECK(refused(wire.peek(), str(size, " bytes")), size);
  }
}

TEST("repeated and skipped frames are refused") {
  const auto first = bytes_of({kPayload});
  const auto both = bytes_of({kPayload, "second"});
  Wire repeated;
  repeated.write(first + first);
  CHECK(repeated.peek() == kPayload);
  repeated.channel->consume();
  CHECK(refused(repeated.peek(), "frame 1 has a damaged header (number 0"));
  Wire skipped;
  skipped.write(both.substr(first.size()));
  CHECK(refused(skipped.peek(), "frame 0 has a damaged header (number 1"));
}

TEST("a connection cut anywhere in a frame is an error, between frames too") {
  const auto good = bytes_of({kPayload});
  for (size_t cut = 0; cut < good.size(); ++cut) {
    Wire wire;
    wire.write(good.substr(0, cut));
    CHECK(cut == 0 || wire.peek() == "nothing");
    wire.raw.reset();
    CHECK(refused(wire.peek(), "the peer closed it"), cut);
  }
}

TEST("sending to an end that is gone is an error and no signal") {
  Wire wire;
  wire.raw.reset();
  std::string told;
  try {
    for (int k = 0; k < 10; ++k) {
      if (wire.channel->try_reserve(10)) wire.channel->commit({10, 0, {}});
    }
  } catch (const CommError& error) {
    told = error.what();
  }
  CHECK(told.find("rank 2 at 10.0.0.7 (eth0)") != std::string::npos, told);
}

TEST("random garbage is refused, whatever it looks like") {
  std::mt19937_64 random(kSeed);
  const auto good = bytes_of({kPayload, "x", std::string(kSegment, 'y')});
  for (int round = 0; round < 3000; ++round) {
    // Either noise, or good bytes with several damaged ones.
    std::string bytes = round % 2 ? good : std::string(kHeader + random() % 300, 0);
    if (round % 2 == 0) {
      for (auto& one : bytes) one = static_cast<char>(random());
    } else {
      for (auto k = random() % 5 + 1; k > 0; --k) {
        bytes[random() % bytes.size()] = static_cast<char>(random());
      }
    }
    Wire wire;
    wire.write(bytes);
    for (int frame = 0; frame < 3; ++frame) {
      const auto told = wire.peek();
      if (refused(told) || told == "nothing") break;
      const std::vector<std::string> expected{kPayload, "x", std::string(kSegment, 'y')};
      CHECK(told == expected[static_cast<size_t>(frame)], "seed ", kSeed, ", round ", round);
      wire.channel->consume();
    }
  }
}
