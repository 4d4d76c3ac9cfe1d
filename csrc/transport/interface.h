// SPDX-License-Identifier: MIT
// Which local address peers on other hosts shall connect to.
//
// PYCOMM_SOCKET_IFNAME names interfaces, comma separated, the first that is up wins; otherwise the
// kernel's route to the store's host decides; without a store host, the first interface that is up
// and not loopback, else loopback. Set-up thread only.
#pragma once

#include <string>

namespace pycomm {

struct LocalInterface {
  std::string name;
  std::string ip;  // numeric, IPv4 or IPv6
};

// Throws UsageError that lists the interfaces there are when `wanted` names none of them.
LocalInterface choose_interface(const std::string& wanted, const std::string& store_host);

}  // namespace pycomm
