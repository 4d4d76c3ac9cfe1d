# SPDX-License-Identifier: MIT
"""The doctor's findings as text: aligned, one screen for a few ranks."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

LABEL = 13
WIDTH = 100
MATRIX_MAX = 9  # ranks up to which every pair is printed

# Processes with an arena that get a line of their own.
_ARENAS = 4


def text_of(report: dict[str, Any]) -> str:
    """Returns the report as it is printed; the keys are those of docs/commands.md."""
    used = [f"{one['for']}: {one['what']}; {one['why']}" for one in report["used"]]
    lines = [
        *_build(report["build"]),
        *_machine(report["machine"]),
        *_arena(report["arena"]),
        *_network(report["network"]),
        *_gpus(report["gpus"]),
        *_settings(report["settings"]),
        "",
        *_ranks(report["ranks"]),
        *_section("used", _folded(used)),
        "",
        *_problems(report["problems"]),
    ]
    return "\n".join(lines)


def _section(label: str, lines: Sequence[str]) -> list[str]:
    """Lines behind a label, which only the first one shows."""
    return [
        f"{label if number == 0 else '':<{LABEL}}{line}".rstrip()
        for number, line in enumerate(lines)
    ]


def _build(build: dict[str, Any]) -> list[str]:
    torch = build["torch"] or "cannot be imported"
    if build["torch"] and not build["torch_distributed"]:
        torch += " without torch.distributed"
    match = (
        f"built for torch {build['built_for_torch']}" if build["built_for_torch"] else "not built"
    )
    if build["loads"]:
        cuda = "with" if build["cuda"] else "without"
        match += f" by {build['compiler']}, {cuda} CUDA, {build['cpu_level']} kernels; it loads"
    else:
        match += "; it does not load"
    return [
        *_section("torch", [f"{torch}, Python {build['python']}"]),
        *_section("pycomm", [f"{build['pycomm']} {match}"]),
    ]


def _machine(machine: dict[str, Any]) -> list[str]:
    cores, memory, limits = machine["cores"], machine["memory_bytes"], machine["limits"]
    quota = (
        "no cgroup quota" if cores["cgroup_quota"] is None else f"quota {cores['cgroup_quota']:g}"
    )
    limit = (
        "no cgroup limit"
        if memory["cgroup_limit"] is None
        else f"cgroup limit {size_text(memory['cgroup_limit'])}"
    )
    yes = {True: "permitted", False: "not permitted"}
    return [
        *_section("host", [f"{machine['host']}, Linux {machine['kernel']}"]),
        *_section("processor", [f"{machine['processor']}: {' '.join(machine['features'])}"]),
        *_section(
            "cores",
            [
                f"{machine['usable_cores']} usable: {cores['affinity']} of {cores['online']} by "
                f"affinity, {quota}; load {machine['load_average']:g}; "
                f"OMP_NUM_THREADS {machine['omp_num_threads'] or 'not set'}"
            ],
        ),
        *_section(
            "memory",
            [f"{size_text(memory['available'])} of {size_text(memory['total'])} free, {limit}"],
        ),
        *_section(
            "limits",
            [
                f"{_or_none(limits['open_files'])} open files, "
                f"{size_text(limits['locked_memory_bytes'])} locked, /dev/shm "
                f"{size_text(limits['dev_shm_bytes'])} free; memfd {yes[machine['memfd']]}, "
                f"pidfd {yes[machine['pidfd']]}"
            ],
        ),
    ]


def _arena(arena: dict[str, Any]) -> list[str]:
    capacity = arena["capacity_bytes"]
    lines = [
        f"up to {size_text(capacity)} of shared memory in each process" if capacity else "none"
    ]
    running = sorted(arena["running"], key=lambda one: one["touched_bytes"], reverse=True)
    for one in running[:_ARENAS]:
        text = (
            f"pid {one['pid']}: {size_text(one['used_bytes'])} in use, at most "
            f"{size_text(one['used_peak_bytes'])}; {size_text(one['touched_bytes'])} of "
            f"{size_text(one['capacity_bytes'])} touched; {one['fallbacks']} fallbacks"
        )
        if one["quarantined_bytes"]:
            text += f"; {size_text(one['quarantined_bytes'])} in quarantine"
        lines.append(text)
    if rest := running[_ARENAS:]:
        touched = size_text(sum(one["touched_bytes"] for one in rest))
        lines.append(f"and {len(rest)} more processes with {touched} touched")
    return _section("arena", _folded(lines))


def _network(network: dict[str, Any]) -> list[str]:
    chosen, lines, down = network["chosen"], [], []
    for one in network["interfaces"]:
        if not one["up"] and not one["addresses"]:
            down.append(one["name"])
            continue
        speed = f", {one['speed_mbit']} Mbit/s" if one["speed_mbit"] else ""
        state = "up" if one["up"] else "down"
        mark = "  <- tcp" if chosen and chosen["name"] == one["name"] else ""
        addresses = " ".join(one["addresses"])
        lines.append(f"{one['name']} {state}: {addresses}; mtu {one['mtu']}{speed}{mark}")
    if down:
        lines.append(f"down: {', '.join(down)}")
    return _section("network", lines)


def _gpus(gpus: dict[str, Any]) -> list[str]:
    cuda = f"CUDA {gpus['torch_cuda']}" if gpus["torch_cuda"] else "no CUDA"
    names = ", ".join(f"{one['name']} {size_text(one['memory_bytes'])}" for one in gpus["devices"])
    driver = f"driver {gpus['driver']}" if gpus["driver"] else "no driver found"
    ours = "without CUDA"
    if gpus["pycomm_cuda"]:
        ours = f"sees {gpus['pycomm_devices']}"
        if gpus["pycomm_error"]:
            ours += f" ({gpus['pycomm_error']})"
    return _section("gpus", [f"{names or 'none'}; torch has {cuda}, {driver}; pycomm {ours}"])


def _settings(settings: list[dict[str, Any]]) -> list[str]:
    given = [f"{one['variable']}={one['value']}" for one in settings if one["source"] != "default"]
    others = [
        f"{one['variable'].removeprefix('PYCOMM_')} {_word(one['value'])}"
        for one in settings
        if one["source"] == "default"
    ]
    lines = [f"{one} (environment)" for one in given]
    return _section("settings", [*lines, *_wrapped("default: ", others)])


def _word(value: Any) -> str:
    if value is None:
        return "?"
    return f"{value:g}" if isinstance(value, (bool, float)) else str(value)


def _wrapped(head: str, words: Sequence[str]) -> list[str]:
    """Words joined by commas, on as many lines as they need."""
    lines, line = [], head
    for number, word in enumerate(words):
        text = word + ("," if number + 1 < len(words) else "")
        if LABEL + len(line) + len(text) > WIDTH and line != head:
            lines.append(line.rstrip())
            line = " " * len(head)
        line += text + " "
    return [*lines, line.rstrip()]


# ---- what was measured


def _ranks(ranks: dict[str, Any] | None) -> list[str]:
    if ranks is None:
        return [*_section("ranks", ["none: nothing was measured"]), ""]
    hosts = list(dict.fromkeys(ranks["hosts"]))
    where = hosts[0] if len(hosts) == 1 else f"{len(hosts)} hosts: {', '.join(hosts)}"
    who = "started here" if ranks["started_by"] == "doctor" else "of the launcher"
    head = f"{ranks['world_size']} {who}, on {where}; group made in {ranks['setup_ms']:g} ms"
    lines = _section("ranks", [head])
    if ranks["world_size"] > 1:
        lines += _pairs(ranks)
    if "figures" in ranks:
        lines += _figures(ranks["figures"])
    if ranks.get("devices"):
        lines += _devices(ranks["devices"])
    return [*lines, *_algorithms(ranks["algorithms"]), ""]


def _devices(devices: dict[str, Any]) -> list[str]:
    """The mode in which ranks work together on their GPUs."""
    names = [one or "none" for one in devices["devices"]]
    alike = names[0] if len(set(names)) == 1 else ", ".join(names)
    lines = [f"rank by rank: {alike}" if len(set(names)) > 1 else f"{alike} of every rank"]
    if devices["error"]:
        lines.append(f"failed: {devices['error']}")
    elif devices["mode"]:
        lines.append(f"mode {devices['mode']}")
        lines.append(
            f"all_reduce of 8 B {devices['latency_us']:.1f} us, of 16 MiB "
            f"{devices['bandwidth_gbps']:.1f} GB/s"
        )
    return _section("devices", _folded(lines))


def _pairs(ranks: dict[str, Any]) -> list[str]:
    if ranks["world_size"] > MATRIX_MAX:
        return _summary(ranks)
    tables = [
        _table("transport", ranks["transports"]),
        _table(f"us, {ranks['latency_bytes']} B one way", ranks["latency_us"]),
        _table(f"GB/s, {size_text(ranks['bandwidth_bytes'])}", ranks["bandwidth_gbps"]),
    ]
    side = ["    ".join(parts) for parts in zip(*tables, strict=True)]
    if LABEL + max(map(len, side)) <= WIDTH:
        return _section("pairs", side)
    return [line for table in tables for line in _section("pairs", table)]


def _table(title: str, matrix: list[list[Any]]) -> list[str]:
    """A title and one row for each rank, all of one width."""
    cells = [["-" if value is None else _cell(value) for value in row] for row in matrix]
    width = max(len(cell) for row in cells for cell in row) + 2
    number = len(str(len(matrix) - 1)) + 1
    head = " " * number + "".join(f"{rank:>{width}}" for rank in range(len(matrix)))
    rows = [
        f"{rank:<{number}}" + "".join(f"{cell:>{width}}" for cell in row)
        for rank, row in enumerate(cells)
    ]
    lines = [title, head, *rows]
    return [f"{line:<{max(map(len, lines))}}" for line in lines]


def _cell(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _summary(ranks: dict[str, Any]) -> list[str]:
    """For each transport: how many pairs, and the least, middle and most of what was measured."""
    size = ranks["world_size"]
    lines = [f"{ranks['pairs_measured']} of {ranks['pairs']} pairs measured: least, median, most"]
    kinds = sorted({one for row in ranks["transports"] for one in row if one})
    for kind in kinds:
        there = [
            (first, second)
            for first in range(size)
            for second in range(first + 1, size)
            if ranks["transports"][first][second] == kind
        ]
        parts = [f"{kind}, {len(there)} pairs"]
        for key, unit in (("latency_us", "us"), ("bandwidth_gbps", "GB/s")):
            found = (ranks[key][first][second] for first, second in there)
            values = sorted(one for one in found if one is not None)
            if values:
                middle = values[len(values) // 2]
                parts.append(f"{values[0]:.1f}, {middle:.1f}, {values[-1]:.1f} {unit}")
        lines.append(": ".join(parts[:1]) + ": " + "; ".join(parts[1:]))
    return _section("pairs", lines)


def _figures(figures: dict[str, Any]) -> list[str]:
    """What the group's choice of algorithms goes by."""
    source = "measured by rank 0" if figures["measured"] else "assumed: nothing credible measured"
    beta, gamma = figures["beta_ns_per_kib"], figures["gamma_ns_per_kib"]
    return _section(
        "costs",
        [
            f"{source}: a message {figures['alpha_us']:.2f} us, moving {beta:.1f} and adding "
            f"{gamma:.1f} ns/KiB",
            f"sizes at which algorithms change: x {figures['size_factor']:g}",
        ],
    )


def _algorithms(algorithms: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One line for collectives that go by the same algorithms."""
    alike: dict[str, list[str]] = {}
    for collective, ranges in algorithms.items():
        decides = len(ranges) > 1
        words = [ranges[0]["algorithm"] + (_expected(ranges[0]) if decides else "")]
        words += [
            f"{one['algorithm']} from {size_text(one['from_bytes'])}{_expected(one)}"
            for one in ranges[1:]
        ]
        alike.setdefault(", ".join(words), []).append(collective)
    lines = [f"{', '.join(who)}: {what}" for what, who in alike.items()]
    return _section("algorithms", _folded(lines))


def _expected(choice: dict[str, Any]) -> str:
    """The predicted time, in parentheses, where there is one."""
    expected = choice.get("predicted_us")
    return "" if expected is None else f" ({expected:.3g} us)"


def _problems(problems: list[dict[str, str]]) -> list[str]:
    lines = []
    for one in sorted(problems, key=lambda one: one["kind"] != "broken"):
        lines += _folded([f"{one['kind']}: {one['what']}"])
        lines += [f"    {line}" for line in _folded([f"do: {one['remedy']}"])]
    return _section("problems", lines or ["none"])


def _folded(lines: Sequence[str]) -> list[str]:
    """Lines of more than the width on several, the later ones indented."""
    fold = textwrap.TextWrapper(WIDTH - LABEL - 4, subsequent_indent="    ", break_on_hyphens=False)
    return [part for line in lines for part in fold.wrap(line)]


def _or_none(value: int | None) -> str:
    return "unlimited" if value is None else str(value)


def size_text(value: int | None) -> str:
    """Returns 8 B, 4 KiB, 23.5 GiB; "unlimited" for None."""
    if value is None:
        return "unlimited"
    size, units = float(value), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.4g} {units[0]}"
