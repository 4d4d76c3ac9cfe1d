// SPDX-License-Identifier: MIT
#include "transport/interface_filter.h"

#include <arpa/inet.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <sstream>

#include "base/error.h"

namespace pycomm {
namespace {

// The address family, or 0 when `text` is no numeric address.
int parse_address(const std::string& text, std::array<uint8_t, 16>& bytes) {
  bytes = {};
  for (const int family : {AF_INET, AF_INET6}) {
    if (::inet_pton(family, text.c_str(), bytes.data()) == 1) return family;
  }
  return 0;
}

bool same_bits(const std::array<uint8_t, 16>& a, const std::array<uint8_t, 16>& b, int bits) {
  const auto whole = static_cast<size_t>(bits / 8);
  if (!std::equal(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(whole), b.begin())) {
    return false;
  }
  return bits % 8 == 0 || (a[whole] ^ b[whole]) >> (8 - bits % 8) == 0;
}

}  // namespace

bool LocalInterface::is_link_local() const {
  std::array<uint8_t, 16> bytes;
  return parse_address(ip, bytes) == AF_INET6 && bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80;
}

InterfaceFilter::InterfaceFilter(const std::string& text) {
  size_t at = 0;
  if (at < text.size() && text[at] == '^') excludes_ = ++at > 0;
  if (at < text.size() && text[at] == '=') exact_ = ++at > 0;
  std::stringstream in(text.substr(at));
  std::string item;
  while (std::getline(in, item, ',')) items_.push_back(parse_item(item, text));
  PYCOMM_USAGE(text.empty() || !items_.empty(), "PYCOMM_SOCKET_IFNAME=", text,
               ": expected names of interfaces or networks after the sign");
}

InterfaceFilter::Item InterfaceFilter::parse_item(const std::string& item,
                                                  const std::string& text) {
  Item parsed;
  const auto slash = item.find('/');
  parsed.family = parse_address(item.substr(0, slash), parsed.network);
  const int bits_max = parsed.family == AF_INET ? 32 : 128;
  parsed.bits = bits_max;
  bool understood = !item.empty() && item.find_first_of("^= \t") == std::string::npos;
  if (slash != std::string::npos) {
    const auto* end = item.data() + item.size();
    const auto [stopped, error] = std::from_chars(item.data() + slash + 1, end, parsed.bits);
    understood = understood && parsed.family != 0 && error == std::errc() && stopped == end &&
                 parsed.bits >= 0 && parsed.bits <= bits_max;
  }
  PYCOMM_USAGE(understood, "PYCOMM_SOCKET_IFNAME=", text, ": '", item,
               "' is neither the name of an interface nor a network; expected a list such as "
               "eth0,ib0 or 10.1.0.0/16 or fd00::/8, with '^' before it for those to avoid");
  if (parsed.family == 0) parsed.name = item;
  return parsed;
}

int InterfaceFilter::rank_of(const Item& item, const LocalInterface& one) const {
  if (one.ip.empty()) return 0;
  const int family_rank = one.is_link_local() ? 3 : one.is_ipv6() ? 2 : 1;
  if (item.family == 0) {
    if (one.name == item.name) return family_rank;
    return !exact_ && one.name.rfind(item.name, 0) == 0 ? 3 + family_rank : 0;
  }
  std::array<uint8_t, 16> bytes;
  if (parse_address(one.ip, bytes) != item.family) return 0;
  // ::/0 means any IPv6 network; link-local and loopback addresses are for those who ask for them.
  if ((one.is_link_local() && item.bits < 10) || (one.loopback && item.bits < 8)) return 0;
  return same_bits(bytes, item.network, item.bits) ? family_rank : 0;
}

std::vector<LocalInterface> InterfaceFilter::select(const std::vector<LocalInterface>& all) const {
  std::vector<LocalInterface> chosen;
  if (excludes_) {
    for (const auto& one : all) {
      const bool named = std::any_of(items_.begin(), items_.end(),
                                     [&](const Item& item) { return rank_of(item, one) != 0; });
      if (!named) chosen.push_back(one);
    }
    return chosen;
  }
  for (const auto& item : items_) {
    std::vector<std::pair<int, LocalInterface>> matches;
    for (const auto& one : all) {
      if (const int rank = rank_of(item, one); rank != 0) matches.emplace_back(rank, one);
    }
    std::stable_sort(matches.begin(), matches.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (auto& match : matches) chosen.push_back(std::move(match.second));
  }
  return chosen;
}

}  // namespace pycomm
