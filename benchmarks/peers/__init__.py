# SPDX-License-Identifier: MIT
"""pycomm and other libraries side by side, in one interleaved run: python -m benchmarks.peers."""
