# SPDX-License-Identifier: MIT
"""Orders of samples that are the same on every machine and with every version of every library.

A checkpoint says how far an epoch had come, not which samples that were: whoever resumes works the
order out again. Random generators of torch and NumPy may change between versions, so the order is
that of a hash, splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
2014).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_INCREMENT = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def mix(values: Hashes) -> Hashes:
    """Return splitmix64's output function of each value."""
    mixed = values + np.uint64(_INCREMENT)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)


def hashes(ids: Integers, *salts: int) -> Hashes:
    """Return a hash of each id, another one for other salts."""
    salt = np.zeros(1, np.uint64)
    for one in salts:
        salt = mix(salt ^ np.uint64(one & _WORD))
    return mix(ids.astype(np.uint64) ^ salt)


def epoch_order(length: int, seed: int, epoch: int, shuffle: bool) -> Integers:
    """Return the ids 0 to length - 1 in the order of an epoch, int64[length]."""
    ids = np.arange(length, dtype=np.int64)
    if not shuffle:
        return ids
    return ids[np.argsort(hashes(ids, seed, epoch), kind="stable")]
