# SPDX-License-Identifier: MIT
"""Every setting with its value and where it comes from; local."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from pycomm.doctor.problems import Problem, advice, broken
from pycomm.errors import UsageError
from pycomm.options import VARIABLES, Options

# Fields of Options that BackendOptions spells in another way, and defaults that are no constant.
_NATIVE = {"transport": "transports"}
_WORDS = {
    "PYCOMM_ALGO": "by size",
    "PYCOMM_CONNECT_TIMEOUT": "the group's timeout",
    "PYCOMM_SOCKET_IFNAME": "by route",
    "PYCOMM_PORT_RANGE": "any",
    "PYCOMM_HOST_ID": "found out",
    "PYCOMM_SEGMENT_BYTES": "by world size",
    "PYCOMM_INTER": "none",
    "PYCOMM_FLIGHT_DIR": "none",
    "PYCOMM_ARENA": "0",
    "PYCOMM_ARENA_BYTES": "half of memory",
    "PYCOMM_LOG": "warning",
    "PYCOMM_CPU": "what the machine has",
    "PYCOMM_REPLACE": "none",
    "PYCOMM_KEEP_NAME": "1",
}


def describe(loads: bool) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Returns one entry for each variable: name, field, value and source, and what is wrong.

    Args:
        loads: The extension module can be asked for defaults and algorithms.
    """
    native = None
    if loads:
        from pycomm.native import load

        native = load().BackendOptions()
    entries: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for name, (field, _) in VARIABLES.items():
        given = os.environ.get(name)
        value = _default(name, field, native) if given is None else given
        if given is not None:
            try:
                parsed = Options().resolved({name: given}).get(field or "", given)
                value = parsed if isinstance(parsed, (str, int, float)) else given
                if field == "algorithm" and native is not None:
                    native.set_algorithms(value)
            except UsageError as error:
                problems.append(broken(str(error), f"correct {name}, or unset it"))
        source = "default" if given is None else "environment"
        entries.append({"variable": name, "field": field, "value": value, "source": source})
    return entries, problems + _unknown(os.environ)


def _default(name: str, field: str | None, native: Any) -> Any:
    """What holds where nothing is set, as a number or a word; None: not known."""
    if field is None or name in _WORDS:
        return _WORDS.get(name)
    attribute = _NATIVE.get(field, field)
    if field.endswith("_s"):
        milliseconds = getattr(native, field[:-2] + "_ms", None)
        return None if milliseconds is None else milliseconds / 1000
    value = getattr(native, attribute, None)
    return value if isinstance(value, (str, int, float, bool)) and value != "" else None


def _unknown(environment: Mapping[str, str]) -> list[Problem]:
    """Variables that look like pycomm's and are not: Options warns of them."""
    others = {name: value for name, value in environment.items() if name not in VARIABLES}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Options().resolved(others)
    return [
        advice(str(one.message).partition(";")[0], "correct its spelling, or unset it")
        for one in caught
    ]
