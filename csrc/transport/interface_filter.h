// SPDX-License-Identifier: MIT
// What PYCOMM_SOCKET_IFNAME asks for: names and networks, in order of preference, or those to
// avoid.
//
//     eth0,ib0        the interface of that name, else the first whose name begins so
//     =eth0           that name only
//     10.1.0.0/16     whoever has an address in that network; fd00::/8; one address without a mask
//     ^docker0,lo     not these; the rest is chosen from as if nothing had been said
//
// '^' and '=' stand before the whole list, as in NCCL_SOCKET_IFNAME. A value.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace pycomm {

// One address of one local interface.
struct LocalInterface {
  std::string name;
  std::string ip;      // numeric, IPv4 or IPv6, without scope; empty: the interface has none
  unsigned index = 0;  // the kernel's number of the interface: the scope of a link-local address
  bool up = true;
  bool loopback = false;

  bool is_ipv6() const { return ip.find(':') != std::string::npos; }
  bool is_link_local() const;
};

class InterfaceFilter {
 public:
  // Throws UsageError that names the item it does not understand.
  explicit InterfaceFilter(const std::string& text);

  bool empty() const { return items_.empty(); }
  bool excludes() const { return excludes_; }
  // Those of `all` that the text asks for, the preferred one first; of one item IPv4 comes before
  // IPv6 and link-local addresses last. With '^': those it does not name, in their own order.
  std::vector<LocalInterface> select(const std::vector<LocalInterface>& all) const;

 private:
  struct Item {
    std::string name;  // or a network:
    std::array<uint8_t, 16> network{};
    int family = 0;
    int bits = 0;
  };
  static Item parse_item(const std::string& item, const std::string& text);
  // 0: no; otherwise the smaller the better.
  int rank_of(const Item& item, const LocalInterface& one) const;

  std::vector<Item> items_;
  bool excludes_ = false;
  bool exact_ = false;
};

}  // namespace pycomm
