"""An attempt that nobody sees, made over and over in a process that ranks are forked from.

A process's first trial is its slowest: Python learns which types its code meets, and remembers which classes
are which. A rank of a fresh process makes but one; what is learned before it is forked, it has.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import sys
import threading

from optuna.distributions import IntDistribution, distribution_to_json

from tuner import worker
from tuner.assignment import Assignment, Draw, ObjectiveRef
from tuner.channel import Place
from tuner.dispatch import turns
from tuner.dispatch.pipe import PipeChannel
from tuner.resources import Resources
from tuner.trial import Trial

__all__ = ["practise"]

_TIMES = 16  # Python specialises a function's code after 8 calls


def practise() -> None:
    """Make the attempts. Nothing of them stays but what Python has learned, and seeds.

    With torch there are none: they would start its threads, and save nothing that its trainings would feel.
    """
    if "torch" in sys.modules:
        return
    whole = distribution_to_json(IntDistribution(1, 9))
    assignment = Assignment(
        run="",
        epoch=0,
        study="",
        directions=("minimize",),
        number=0,
        attempt=1,
        seed=0,
        started="2020-01-01T00:00:00",
        objective=ObjectiveRef(),
        resources=Resources(cpus=1, gpus=0),
        params={"drawn": Draw(value=1, distribution=whole)},
        study_seed=0,
        can_prune=False,
    )
    ours, theirs = socket.socketpair()
    output = os.open(os.devnull, os.O_RDWR)
    try:
        with ours, contextlib.closing(PipeChannel(theirs)) as channel:  # all that is said fits into its pipe
            for _ in range(_TIMES):
                _after_fork()
                way = turns.begin(channel, 0, output, is_last=False)
                worker.run(assignment, Place(), way, _objective)
    finally:
        os.close(output)


def _after_fork() -> None:
    """What Python's own library does in a process that was forked. It changes nothing where there is but one
    thread.
    """
    random.seed()
    for module, name in ((threading, "_after_fork"), (logging, "_after_at_fork_child_reinit_locks")):
        getattr(module, name, _nothing)()


def _nothing() -> None:
    """For a Python whose library does it elsewhere."""


def _objective(trial: Trial) -> float:
    trial.suggest_float("float", 0.0, 1.0)
    trial.suggest_float("log", 1e-5, 1.0, log=True)
    trial.suggest_categorical("choice", ("a", "b"))
    trial.report(0.5, 0)
    return float(trial.suggest_int("drawn", 1, 9))
