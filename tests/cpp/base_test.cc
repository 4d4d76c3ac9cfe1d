// SPDX-License-Identifier: MIT
// base/: the tables every floor shares, the checksum, deadlines, descriptors, errors.
#include <fcntl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "base/deadline.h"
#include "base/dtype.h"
#include "base/error.h"
#include "base/fd.h"
#include "check.h"

using namespace pycomm;

TEST("dtypes have PyTorch's names and sizes") {
  const std::vector<std::pair<std::string_view, size_t>> expected{
      {"uint8", 1},         {"int8", 1},        {"int16", 2},           {"int32", 4},
      {"int64", 8},         {"uint16", 2},      {"uint32", 4},          {"uint64", 8},
      {"bool", 1},          {"float16", 2},     {"bfloat16", 2},        {"float32", 4},
      {"float64", 8},       {"complex32", 4},   {"complex64", 8},       {"complex128", 16},
      {"float8_e4m3fn", 1}, {"float8_e5m2", 1}, {"float8_e4m3fnuz", 1}, {"float8_e5m2fnuz", 1},
      {"float8_e8m0fnu", 1}};
  CHECK(expected.size() == kDTypeCount);
  for (int code = 0; code < kDTypeCount; ++code) {
    const auto& [name, size] = expected[static_cast<size_t>(code)];
    const auto dtype = static_cast<DType>(code);
    CHECK(name_of(dtype) == name && size_of(dtype) == size, name_of(dtype), " ", size_of(dtype));
    CHECK(is_floating(dtype) == (name.find("float") != std::string_view::npos), name);
    CHECK(is_complex(dtype) == (name.find("complex") == 0), name);
  }
}

TEST("ops and collectives have names of their own, and unknown codes print instead of crashing") {
  std::set<std::string_view> names;
  for (int code = 0; code < kReduceOpCount; ++code) names.insert(name_of(ReduceOp(code)));
  CHECK(names.size() == kReduceOpCount);
  names.clear();
  for (int code = 0; code < kCollectiveCount; ++code) names.insert(name_of(Collective(code)));
  CHECK(names.size() == kCollectiveCount);
  for (const int code : {50, 200, 255}) {
    CHECK(name_of(static_cast<DType>(code)) == "unknown dtype");
    CHECK(name_of(static_cast<ReduceOp>(code)) == "unknown op");
    CHECK(name_of(static_cast<Collective>(code)) == "unknown collective");
    CHECK(size_of(static_cast<DType>(code)) == 0);
    CHECK(!supports(static_cast<ReduceOp>(code), DType::float32));
  }
}

TEST("an op is supported exactly where it has a meaning") {
  for (int code = 0; code < kDTypeCount; ++code) {
    const auto dtype = static_cast<DType>(code);
    const bool floating = is_floating(dtype), complex = is_complex(dtype);
    CHECK(supports(ReduceOp::sum, dtype) && supports(ReduceOp::product, dtype), name_of(dtype));
    CHECK(supports(ReduceOp::min, dtype) == !complex, name_of(dtype));
    CHECK(supports(ReduceOp::max, dtype) == !complex, name_of(dtype));
    for (const auto op : {ReduceOp::band, ReduceOp::bor, ReduceOp::bxor}) {
      CHECK(supports(op, dtype) == (!floating && !complex), name_of(op), " ", name_of(dtype));
    }
    CHECK(supports(ReduceOp::avg, dtype) == (dtype != DType::boolean), name_of(dtype));
    CHECK(supports(ReduceOp::premul_sum, dtype) == (floating || complex), name_of(dtype));
  }
}

TEST("CRC-32C of the vectors of RFC 3720 and of the usual check string") {
  std::vector<unsigned char> bytes(32);
  const auto both = [](const void* data, size_t size, uint32_t expected) {
    CHECK(crc32c(0, data, size) == expected, crc32c(0, data, size));
    CHECK(crc32c_table(0, data, size) == expected, crc32c_table(0, data, size));
  };
  both("123456789", 9, 0xe3069283);
  both("", 0, 0);
  both(bytes.data(), 32, 0x8a9136aa);
  bytes.assign(32, 0xff);
  both(bytes.data(), 32, 0x62a8ab43);
  for (size_t i = 0; i < 32; ++i) bytes[i] = static_cast<unsigned char>(i);
  both(bytes.data(), 32, 0x46dd794e);
  for (size_t i = 0; i < 32; ++i) bytes[i] = static_cast<unsigned char>(31 - i);
  both(bytes.data(), 32, 0x113fdb5c);
}

TEST("the instruction and the table agree on any length, alignment and cut") {
  constexpr uint64_t kSeed = 5;
  std::mt19937_64 random(kSeed);
  std::vector<unsigned char> bytes(2000);
  for (auto& one : bytes) one = static_cast<unsigned char>(random());
  for (int round = 0; round < 2000; ++round) {
    const size_t begin = random() % 64, size = random() % (bytes.size() - begin + 1);
    const size_t cut = size ? random() % size : 0;
    const auto* at = bytes.data() + begin;
    const uint32_t whole = crc32c_table(0, at, size);
    CHECK(crc32c(0, at, size) == whole, "seed ", kSeed, ", round ", round);
    CHECK(crc32c(crc32c(0, at, cut), at + cut, size - cut) == whole, "seed ", kSeed, ", round ",
          round, ", cut ", cut);
  }
}

TEST("lanes of the instruction are joined right around every boundary of theirs") {
  std::mt19937_64 random(6);
  std::vector<unsigned char> bytes(3 * 3 * 4096 + 3 * 256 + 64);
  for (auto& one : bytes) one = static_cast<unsigned char>(random());
  for (const size_t lanes : {3 * 256, 6 * 256, 3 * 4096, 6 * 4096, 3 * 4096 + 3 * 256}) {
    for (size_t size = lanes - 17; size <= lanes + 17; ++size) {
      CHECK(crc32c(7, bytes.data() + 1, size) == crc32c_table(7, bytes.data() + 1, size), size);
    }
  }
}

TEST("a deadline passes when its time is over, and never when it is never") {
  const auto past = Deadline::after(std::chrono::nanoseconds(0));
  CHECK(past.expired() && past.remaining().count() == 0 && past.remaining_ms_at_most(100) == 0);
  const auto soon = Deadline::after(std::chrono::hours(1));
  CHECK(!soon.expired() && soon.remaining() > std::chrono::minutes(59));
  CHECK(soon.remaining_ms_at_most(100) == 100);
  // A fraction of a millisecond is not rounded to nothing, or a wait would spin.
  CHECK(Deadline::after(std::chrono::microseconds(1500)).remaining_ms_at_most(100) <= 2);
  for (const auto never : {Deadline::never(), Deadline::after(std::chrono::nanoseconds::max())}) {
    CHECK(!never.expired() && never.remaining() == std::chrono::nanoseconds::max());
    CHECK(never.remaining_ms_at_most(1 << 30) == 1 << 30);
  }
}

TEST("a descriptor is closed once, by its last owner") {
  const auto is_open = [](int fd) { return ::fcntl(fd, F_GETFD) >= 0; };
  int pair[2];
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
  {
    Fd first(pair[0]), second(pair[1]);
    CHECK(first && first.get() == pair[0]);
    Fd third(std::move(first));
    CHECK(!first && third.get() == pair[0] && is_open(pair[0]));
    third = std::move(second);
    CHECK(!is_open(pair[0]) && third.get() == pair[1]);
    auto& same = third;
    third = std::move(same);
    CHECK(third.get() == pair[1] && is_open(pair[1]));
    third.reset();
    third.reset();
    CHECK(!third && !is_open(pair[1]));
  }
  CHECK(!Fd() && Fd().get() == -1);
}

TEST("errors carry their kind, their text and the culprits") {
  const CommError error(Failure{FailureKind::timeout, "too late", {3}});
  CHECK(std::string(error.what()) == "too late" && error.failure().ranks == std::vector<int>{3});
  CHECK(!Failure{} && Failure{error.failure()});
  std::set<std::string> names;
  for (int kind = 0; kind <= static_cast<int>(FailureKind::system); ++kind) {
    names.insert(name_of(static_cast<FailureKind>(kind)));
  }
  CHECK(names.size() == 6 && !names.count("unknown"));
  try {
    errno = ENOENT;
    throw_system("cannot open it");
  } catch (const CommError& thrown) {
    CHECK(std::string(thrown.what()) == "cannot open it: No such file or directory", thrown.what());
    CHECK(thrown.failure().kind == FailureKind::system);
  }
}
