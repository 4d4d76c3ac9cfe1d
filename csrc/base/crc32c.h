// SPDX-License-Identifier: MIT
// CRC-32C (Castagnoli, RFC 3720 appendix B.4) of network frames: the SSE4.2 instruction where the
// machine has it, a table elsewhere. Pure; any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pycomm {

// Continues from `crc` (0 to begin), so that pieces can be chained.
uint32_t crc32c(uint32_t crc, const void* data, size_t bytes);
uint32_t crc32c_table(uint32_t crc, const void* data, size_t bytes);  // the reference, for tests

}  // namespace pycomm
