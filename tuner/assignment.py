"""Everything that the ranks of one attempt are given: no database, no handle, no live object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuner.resources import Resources

__all__ = ["Assignment", "Draw", "ObjectiveRef", "Resume", "Shard"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveRef:
    """Where an objective is found.

    By reference: ``file`` (absolute path), ``module`` (the name it is imported under) and
    ``name`` (dotted name inside it). By value, from notebooks, lambdas and scripts that have no
    ``if __name__ == "__main__"`` guard: ``pickled``. Never both. By recipe: ``name`` is a function that
    makes the objective of ``arguments``.

    Attributes:
        arguments: JSON of the keyword arguments of plain data that the objective is made of; "" where it
            is what ``name`` names.
        digest: SHA-256 of the objective's source, "" where none can be had.
        sys_path: folders that the driver could import from, put first on the worker.
        preload: installed modules that the file imports at its top; the zygote imports them once.
    """

    module: str = ""
    name: str = ""
    file: str = ""
    pickled: bytes = b""
    arguments: str = ""
    digest: str = ""
    sys_path: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A parameter's value in Optuna's internal representation, and its distribution as JSON."""

    value: float
    distribution: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One rank's part of a checkpoint: where it lies, its SHA-256 and size in bytes."""

    rank: int
    path: str
    digest: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Resume:
    """The checkpoint that an attempt starts from, verified by the driver."""

    attempt: int
    step: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One attempt of one trial, as its ranks receive it.

    Attributes:
        run: mark of the driver's run; every process of ours carries it in ``TUNER_RUN``.
        epoch: the driver's lease epoch; groups refuse a lower one.
        directions: ``"minimize"`` or ``"maximize"`` for each objective.
        params: parameters that are already fixed (of an earlier attempt).
        fixed: parameters of an enqueued trial: name to plain value.
        relative: the sampler's joint draw, made before dispatch.
        ahead: parameters that the trial will probably suggest, drawn as if it had asked for them.
        study_seed: of the study where its sampler is a RandomSampler, whose draws follow from it, the trial's
            number and the parameter's name: the rank makes them itself; else None.
        user_attrs, system_attrs, reports: what earlier attempts left, up to the checkpoint; constraints are
            system attributes, and what the sampler noted is among them.
        checkpoints: fsspec URI or folder of this trial; attempts are folders below it.
        env: environment variables for the ranks, values included; never stored.
        folder: the driver's working folder, what is in it is in the rank's too where the node has it.
        home: the driver's own, where ``folder`` is a copy of it, for a rank; or "".
        sent: the folder of the driver's machine of which every node has a copy, for a rank its copy; or "".
        can_prune: False where the pruner can never say True, so ``should_prune`` need not ask.
        strict: a fixed parameter that its distribution does not hold is an error, not a warning.
        alone: nothing else of ours runs on its node meanwhile.
        final: the training of a winner, for ``trial.final``.
        short: it is expected to take milliseconds, and may be begun with others in one go.
        keep: a process that ended well is kept for the next trial: ``isolation="shared"``.
        resources: what it was given; the one it would rather have until it has its place.
        alternatives: what it may be given, in order of preference; none: ``resources`` only.
    """

    run: str
    epoch: int
    study: str
    directions: tuple[str, ...]
    number: int
    attempt: int
    seed: int
    started: str  # ISO, UTC as Optuna stores it
    objective: ObjectiveRef
    resources: Resources
    alternatives: tuple[Resources, ...] = ()
    params: Mapping[str, Draw] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    relative: Mapping[str, Draw] = field(default_factory=dict)
    ahead: Mapping[str, Draw] = field(default_factory=dict)
    study_seed: int | None = None
    user_attrs: Mapping[str, Any] = field(default_factory=dict)
    system_attrs: Mapping[str, Any] = field(default_factory=dict)
    reports: Mapping[int, float] = field(default_factory=dict)
    checkpoints: str = ""
    resume: Resume | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    home: str = ""
    sent: str = ""
    can_prune: bool = True
    grace: float = 10.0
    alone: bool = False
    short: bool = False
    keep: bool = False
    strict: bool = False
    final: bool = False
