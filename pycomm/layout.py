# SPDX-License-Identifier: MIT
"""Layout: how the ranks of a job share the work of training one model, in one frozen value.

    Layout(dp=2, tp=2, pp=2)              # 8 ranks
    Layout.from_yaml("layout.yaml")       # tp: 2
    Layout.from_args(["--tp", "2"])       # as on a command line

Ranks stand in a grid of pp x dp x tp, tensor-parallel neighbours next to each other, as the ranks
of one host are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pycomm.errors import UsageError

MODES = ("sync", "local", "diloco", "ps-sync", "ps-async", "ps-ssp")
WIRES = ("fp32", "bf16", "fp16s", "int8", "auto")
SCHEDULES = ("1f1b", "interleaved")
BALANCES = ("parameters", "time")
PRECISIONS = ("fp32", "bf16", "fp16")


def _entry(default: Any, text: str, choices: Sequence[str] = (), least: int = 1) -> Any:
    return field(default=default, metadata={"text": text, "choices": choices, "least": least})


@dataclass(frozen=True)
class Layout:
    """How a job's ranks share one model; each field is an argument on the command line, too.

    Attributes:
        dp: Replicas that train on different data. None: as many as the other two leave.
        tp: Ranks that share every matrix of a replica (tensor parallel).
        pp: Ranks, or rows of tp ranks, that hold consecutive layers (pipeline parallel).
        shard: Parameters, gradients and optimizer state are sharded over dp (FSDP2) instead of
            being replicated.
        sequence: Between the matrices of tp, activations are split by position, too.
        wire: What float32 gradients travel as between replicas, see docs/wire.md.
        mode: How replicas are joined: "sync" averages gradients in each step, "local" parameters
            every sync_every steps, "diloco" takes an outer step then; "ps-sync", "ps-async" and
            "ps-ssp" train through a parameter server.
        deterministic: Sums are taken in rank order whatever their size, so that bits depend neither
            on buckets nor on hosts (Options.deterministic).
        precision: What forwards compute in: "fp32", or "bf16" or "fp16" under autocast; with fp16
            losses are scaled.
        accumulate: Backwards in one step of the optimizer.
        clip: The largest global 2-norm of gradients; None: not clipped.
        schedule: Order of a pipeline's microbatches: "1f1b", or "interleaved", which gives every
            rank several stages.
        stages: Stages for each rank of pp, more than 1 with "interleaved" only.
        microbatches: Parts of a batch that are in a pipeline at once. None: 2 pp.
        balance: What makes a pipeline's stages equal: "parameters" or measured "time".
        sync_every: Steps of the optimizer between two rounds of local and diloco.
        outer_lr: Learning rate of diloco's outer step, see docs/local_sgd.md.
        outer_momentum: Its Nesterov momentum, 0 to 1.
        fragments: Parts of the model that take turns in diloco's rounds.
        fragment_sync_delay: Steps that go on while a fragment of diloco is under way.
        fragment_update_alpha: How much of the local parameters stays in a round of diloco, 0 to 1.
        servers: Of the ps modes: the first ranks run one each, in threads besides training.
        staleness: Steps that a worker of ps-ssp may be ahead of the slowest.
        overlap: In the ps modes parameters are pulled while the next step is computed, from
            parameters that are one step older.
    """

    dp: int | None = _entry(None, "replicas on different data; default: what tp and pp leave")
    tp: int = _entry(1, "ranks that share every matrix")
    pp: int = _entry(1, "ranks that hold consecutive layers")
    shard: bool = _entry(False, "shard parameters over dp (FSDP2)")
    sequence: bool = _entry(False, "split activations by position between tp's matrices")
    wire: str = _entry("fp32", "what gradients travel as", WIRES)
    mode: str = _entry("sync", "how replicas are joined", MODES)
    deterministic: bool = _entry(False, "sums in rank order whatever their size")
    precision: str = _entry("fp32", "what forwards compute in", PRECISIONS)
    accumulate: int = _entry(1, "backwards in one step of the optimizer")
    clip: float | None = _entry(None, "largest global norm of gradients")
    schedule: str = _entry("1f1b", "order of a pipeline's microbatches", SCHEDULES)
    stages: int = _entry(1, "stages for each rank of pp")
    microbatches: int | None = _entry(None, "parts of a batch in a pipeline; default: 2 pp")
    balance: str = _entry("parameters", "what makes stages equal", BALANCES)
    sync_every: int = _entry(50, "steps between rounds of local and diloco")
    outer_lr: float = _entry(0.7, "learning rate of diloco's outer step")
    outer_momentum: float = _entry(0.9, "its Nesterov momentum", least=0)
    fragments: int = _entry(1, "parts of the model that take turns in diloco's rounds")
    fragment_sync_delay: int = _entry(0, "steps while a fragment is under way", least=0)
    fragment_update_alpha: float = _entry(0.0, "how much of local parameters stays", least=0)
    servers: int = _entry(1, "first ranks that serve parameters, for the ps modes")
    staleness: int = _entry(4, "steps a worker of ps-ssp may be ahead", least=0)
    overlap: bool = _entry(False, "pull parameters beside compute, in the ps modes")

    def __post_init__(self) -> None:
        for one in fields(self):
            _check_field(one, getattr(self, one.name))
        if self.stages > 1 and (self.pp == 1 or self.schedule != "interleaved"):
            raise UsageError(
                f"Layout(stages={self.stages}, schedule={self.schedule!r}, pp={self.pp}): several "
                'stages for each rank need pp of 2 and more and schedule="interleaved"'
            )
        if self.schedule == "interleaved" and (self.stages == 1 or self.pp == 1):
            raise UsageError(
                f'Layout(schedule="interleaved", stages={self.stages}, pp={self.pp}): expected '
                "stages=2 or more and pp=2 or more"
            )
        if self.microbatches is not None and self.microbatches < self.pp:
            raise UsageError(
                f"Layout(microbatches={self.microbatches}, pp={self.pp}): expected {self.pp} or "
                "more microbatches, so that each stage has one"
            )
        if self.sequence and self.tp == 1:
            raise UsageError("Layout(sequence=True, tp=1): sequence parallel needs tp=2 or more")
        if self.mode != "sync" and (self.tp > 1 or self.pp > 1 or self.shard):
            raise UsageError(
                f"Layout(mode={self.mode!r}, tp={self.tp}, pp={self.pp}, shard={self.shard}): "
                "modes other than sync join whole replicas; expected tp=1, pp=1, shard=False"
            )

    # ---- what fits

    @property
    def microbatch_count(self) -> int:
        """Parts of a batch in the pipeline: 1 without one."""
        return 1 if self.pp == 1 else self.microbatches or 2 * self.pp

    def resolved(self, world_size: int) -> Layout:
        """Returns this layout with dp filled in; local.

        Raises:
            UsageError: it does not fit world_size; the text lists layouts that do.
        """
        cell = self.tp * self.pp
        dp = world_size // cell if self.dp is None else self.dp
        if dp * cell != world_size or dp == 0:
            raise UsageError(
                f"{self._grid()} needs {'a multiple of ' if self.dp is None else ''}"
                f"{cell * (self.dp or 1)} ranks and there are {world_size}; that many fit "
                f"{_listed(fitting(world_size))}"
            )
        return replace(self, dp=dp)

    def check_model(self, heads: Sequence[int], layers: int | None) -> None:
        """Refuses a resolved layout that does not fit a model; local.

        Args:
            heads: Attention heads of the parts that tp is to split.
            layers: Layers that pp can put into stages, None if that is not known.

        Raises:
            UsageError: the text lists layouts for as many ranks that fit.
        """
        stages = self.pp * self.stages
        problems = [
            f"{count} attention heads cannot be divided among tp={self.tp}"
            for count in sorted(set(heads))
            if count % self.tp
        ]
        if layers is not None and stages > layers:
            problems.append(f"{layers} layers cannot make {stages} stages of pp={self.pp}")
        if problems:
            world_size = (self.dp or 1) * self.tp * self.pp
            good = fitting(world_size, heads, layers)
            raise UsageError(
                f"{self._grid()}: {'; '.join(problems)}; for {world_size} ranks this model fits "
                f"{_listed(good)}"
            )

    def check_batch(self, rows: int) -> int:
        """Returns the rows of one rank's micro-step, of a global batch of so many rows; local.

        Raises:
            UsageError: they cannot be shared out evenly.
        """
        parts = (self.dp or 1) * self.accumulate * self.microbatch_count
        if rows % parts:
            raise UsageError(
                f"a batch of {rows} rows cannot be cut into {parts} equal parts, for dp={self.dp}, "
                f"accumulate={self.accumulate} and {self.microbatch_count} microbatches; expected "
                f"a multiple of {parts}, such as {max(1, round(rows / parts)) * parts}"
            )
        return rows // ((self.dp or 1) * self.accumulate)

    def _grid(self) -> str:
        given = [f"{n}={getattr(self, n)}" for n in ("dp", "tp", "pp") if getattr(self, n) != 1]
        return f"Layout({', '.join(one for one in given if not one.endswith('None'))})"

    # ---- files and command lines

    @classmethod
    def from_yaml(cls, path: str | Path) -> Layout:
        """Reads the layout from a YAML file of fields and values, such as "tp: 2"; local.

        Raises:
            UsageError: the file is not that, or PyYAML is not installed.
        """
        return cls(**_read_yaml(Path(path)))

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds --layout FILE.yaml and an argument for each field to a parser; local."""
        group = parser.add_argument_group("layout")
        group.add_argument("--layout", metavar="FILE", help="a YAML file of the values below")
        for one in fields(cls):
            flag = f"--{one.name.replace('_', '-')}"
            text = f"{one.metadata['text']} (default: {one.default})"
            if one.type == "bool":
                action = argparse.BooleanOptionalAction
                group.add_argument(flag, action=action, default=None, help=one.metadata["text"])
            else:
                kind = float if "float" in str(one.type) else int if "int" in str(one.type) else str
                choices = one.metadata["choices"] or None
                group.add_argument(flag, type=kind, default=None, choices=choices, help=text)

    @classmethod
    def from_args(cls, args: argparse.Namespace | Sequence[str] | None = None) -> Layout:
        """Returns the layout that a command line names; what it does not is from --layout's file.

        Args:
            args: What a parser with add_arguments has read, or the words of a command line; None:
                those of this process. Words that are not understood are left to others.

        Raises:
            UsageError: a value is not understood.
        """
        if not isinstance(args, argparse.Namespace):
            parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
            cls.add_arguments(parser)
            args, _ = parser.parse_known_args(args)
        values = _read_yaml(Path(args.layout)) if args.layout else {}
        for one in fields(cls):
            given = getattr(args, one.name, None)
            if given is not None:
                values[one.name] = given
        return cls(**values)


def fitting(
    world_size: int, heads: Sequence[int] = (), layers: int | None = None
) -> list[tuple[int, int, int]]:
    """Returns all (dp, tp, pp) of world_size ranks that heads and layers can be divided among."""
    found = []
    for tp in range(1, world_size + 1):
        if world_size % tp or any(count % tp for count in heads):
            continue
        for pp in range(1, world_size // tp + 1):
            if world_size // tp % pp == 0 and (layers is None or pp <= layers):
                found.append((world_size // tp // pp, tp, pp))
    return found


def _listed(grids: Sequence[tuple[int, int, int]]) -> str:
    return ", ".join(f"dp={dp} tp={tp} pp={pp}" for dp, tp, pp in grids)


def _check_field(one: Field[Any], value: Any) -> None:
    kind, optional = str(one.type), "None" in str(one.type)
    if value is None and optional:
        return
    choices = one.metadata["choices"]
    if choices:
        good, expected = value in choices, f"one of {', '.join(choices)}"
    elif kind == "bool":
        good, expected = isinstance(value, bool), "True or False"
    elif "float" in kind:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        good, expected = number and value > 0, "a number above 0"
        if one.name in ("fragment_update_alpha", "outer_momentum"):
            good, expected = number and 0 <= value <= 1, "a number from 0 to 1"
    else:
        least = one.metadata["least"]
        good, expected = type(value) is int and value >= least, f"an integer of {least} or more"
    if not good:
        expected += " or None" if optional else ""
        raise UsageError(f"Layout({one.name}={value!r}): expected {expected}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise UsageError(f"the layout {path} needs PyYAML: pip install pyyaml") from error
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"the layout {path} cannot be read: {error}") from error
    names = [one.name for one in fields(Layout) if one.default is not MISSING]
    unknown = sorted(set(values) - set(names)) if isinstance(values, Mapping) else values
    if unknown:
        raise UsageError(f"the layout {path} has {unknown!r}, expected some of {', '.join(names)}")
    return dict(values)
