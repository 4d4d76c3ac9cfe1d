// SPDX-License-Identifier: MIT
// How much memory this process may have: the machine's, less where a control group or a resource
// limit says so. Reads /proc and /sys; any thread; some ten microseconds a call.
#pragma once

#include <cstddef>

namespace pycomm {

// Bytes of RAM, or the smallest limit of this process's control groups.
size_t memory_limit();
// Bytes that can be had now without paging or the out-of-memory killer, as far as the kernel tells.
size_t memory_available();
// Bytes of address space that may still be mapped, and the largest file that may be made.
size_t address_space_available();
size_t file_size_limit();

}  // namespace pycomm
