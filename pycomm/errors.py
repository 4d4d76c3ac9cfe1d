# SPDX-License-Identifier: MIT
"""Every error pycomm raises. docs/errors.md lists causes and remedies.

UsageError is the caller's mistake, raised at the call; the group stays usable. CommError and its
kinds mean that something happened to the group: it is dead afterwards, on every rank, and each
later call repeats the first cause. Both are RuntimeErrors, as torch's own backends raise.
"""

try:
    from torch.distributed import DistBackendError
except ImportError:  # a torch built without distributed must still be importable
    DistBackendError = RuntimeError  # type: ignore[misc,assignment]


class UsageError(ValueError, RuntimeError):
    """The call cannot work: the text says what was given, what is expected and what to do."""


class CheckpointError(RuntimeError):
    """A checkpoint was not written, or none can be loaded; earlier ones are as they were."""


class CommError(DistBackendError):
    """The group has failed. `ranks` are the culprits, as ranks of the group, if they are known."""

    ranks: tuple[int, ...] = ()


class PeerFailure(CommError):
    """A rank died, left, or does not answer."""


class Mismatch(CommError):
    """Two ranks called different collectives, or the same with different arguments."""


class Timeout(CommError, TimeoutError):
    """An operation did not finish within its timeout although every rank awaited is alive."""


class Aborted(CommError):
    """The group was closed or aborted while, or before, the operation ran."""
