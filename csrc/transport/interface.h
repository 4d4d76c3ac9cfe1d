// SPDX-License-Identifier: MIT
// Which local address peers on other hosts shall connect to. Set-up thread only.
//
// PYCOMM_SOCKET_IFNAME decides, see interface_filter.h. Without it the kernel's route to the
// store's host does; without a store host, or when its name stands for loopback in this machine's
// hosts file, the first interface that is up and not loopback, else loopback.
#pragma once

#include <string>
#include <vector>

#include "transport/interface_filter.h"

namespace pycomm {

// One entry for each address, IPv4 first, and one for each interface without any.
std::vector<LocalInterface> local_interfaces();

// Throws UsageError that lists the interfaces there are when `wanted` leaves none that is up.
LocalInterface choose_interface(const std::string& wanted, const std::string& store_host);

// "eth0 (10.0.0.7, fd00::7), eth1 (down)": for errors.
std::string list_interfaces(const std::vector<LocalInterface>& all);

}  // namespace pycomm
