// SPDX-License-Identifier: MIT
#include "transport/address.h"

#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "transport/usable_cores.h"

namespace pycomm {
namespace {

// Applies `visit(name, field)` to every field, so that writing and reading cannot drift apart.
template <class Address, class Visit>
void for_each_field(Address& a, Visit visit) {
  visit("version", a.version);
  visit("rank", a.rank);
  visit("world_size", a.world_size);
  visit("host", a.host);
  visit("host_id", a.host_id);
  visit("pid", a.pid);
  visit("cores", a.cores);
  visit("affinity", a.affinity);
  visit("transports", a.transports);
  visit("token", a.token);
  visit("segment_bytes", a.segment_bytes);
  visit("segment_exact", a.segment_exact);
  visit("slots", a.slots);
  visit("figures", a.figures);
  visit("wire", a.wire);
  visit("tcp_connections", a.tcp_connections);
  visit("unix_name", a.unix_name);
  visit("ip", a.ip);
  visit("port", a.port);
  visit("interface", a.interface);
}

void read_value(const std::string& text, std::string& value) { value = text; }
template <class Number>
void read_value(const std::string& text, Number& value) {
  const auto* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stopped != end) throw std::invalid_argument("not a number");
}

// Boots differ between machines and network namespaces between containers; abstract unix sockets,
// by which shared memory is passed, are visible within one namespace only. It is that of the
// thread, which makes the sockets.
std::string host_identity() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  struct stat info{};
  ::stat("/proc/thread-self/ns/net", &info);
  return boot + ":" + std::to_string(info.st_ino);
}

}  // namespace

std::string PeerAddress::describe() const {
  return str("rank ", rank, " (pid ", pid, " on ", host, ")");
}

std::string PeerAddress::serialize() const {
  std::ostringstream out;
  for_each_field(*this,
                 [&](const char* name, const auto& value) { out << name << '=' << value << '\n'; });
  return out.str();
}

PeerAddress PeerAddress::parse(const std::string& text) {
  PeerAddress address;
  address.version = -1;
  std::istringstream in(text);
  std::string line;
  try {
    while (std::getline(in, line)) {
      const auto split = line.find('=');
      if (split == std::string::npos) throw std::invalid_argument("no '='");
      const auto key = line.substr(0, split);
      for_each_field(address, [&](const char* name, auto& value) {
        if (key == name) read_value(line.substr(split + 1), value);
      });
    }
  } catch (const std::exception&) {
    throw CommError(Failure{FailureKind::system,
                            str("cannot understand the address a peer published: '", line,
                                "'; is another program using the same store keys?"),
                            {}});
  }
  return address;
}

PeerAddress local_address(int rank, int world_size, const std::string& host_id) {
  PeerAddress address;
  address.rank = rank;
  address.world_size = world_size;
  char name[256] = {};
  ::gethostname(name, sizeof(name) - 1);
  address.host = name;
  address.host_id = host_id.empty() ? host_identity() : "given:" + host_id;
  address.pid = ::getpid();
  address.cores = static_cast<int>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN)));
  address.affinity = usable_cores();
  address.token = to_hex(random_token());
  return address;
}

Token random_token() {
  Token token{};
  if (::getrandom(token.data(), token.size(), 0) != static_cast<ssize_t>(token.size())) {
    throw_system("getrandom failed");
  }
  return token;
}

std::string to_hex(const Token& token) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : token) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

bool from_hex(const std::string& text, Token& token) {
  if (text.size() != 2 * token.size()) return false;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  for (size_t i = 0; i < token.size(); ++i) {
    const int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    token[i] = static_cast<uint8_t>(high * 16 + low);
  }
  return true;
}

}  // namespace pycomm
