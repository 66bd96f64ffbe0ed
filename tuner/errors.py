"""The errors that Tuner raises on purpose, all of them public and few.

::

    TunerError
    ├── BadInput            a name, number or text that cannot be used (exit 2)
    │   ├── BadObjective    an objective that cannot be found, imported or sent to a worker
    │   ├── BadCheckpoint   a state that cannot be checkpointed, or a checkpoint that is damaged
    │   ├── StudyExists     a study of that name is there already
    │   └── StudyNotFound   no study of that name is in the database
    ├── CheckpointNotSaved  the file system took no checkpoint; those before it stay valid
    ├── ProgramFailed       an external program failed; its exit code, its class, its last lines
    ├── BadMetric           an external program gave no usable metric
    ├── Infeasible          the cluster can never hold what one trial asks for (exit 2)
    ├── StoreUnavailable    the database cannot be reached, or is not one of ours (exit 2)
    ├── ClusterUnavailable  the Ray cluster cannot be reached (exit 2)
    ├── StudyHeld           another live driver holds the study (exit 3)
    └── StudyStopped        the study ended without what was asked: the reason is its message (exit 1)

    Interrupted             raised inside an objective that is asked to stop (not a TunerError:
                            an objective's own ``except Exception`` must not swallow it)

Each message is one line that names the value at fault and the next step.
"""

from __future__ import annotations

__all__ = [
    "BadCheckpoint",
    "BadInput",
    "BadMetric",
    "BadObjective",
    "CheckpointNotSaved",
    "ClusterUnavailable",
    "Infeasible",
    "Interrupted",
    "ProgramFailed",
    "StoreUnavailable",
    "StudyExists",
    "StudyHeld",
    "StudyNotFound",
    "StudyStopped",
    "TunerError",
]


class TunerError(Exception):
    """The base of every error that Tuner raises on purpose.

    Attributes:
        exit_code: what the command line exits with when this error reaches it.
    """

    exit_code = 1


class BadInput(TunerError, ValueError):
    """A value that the user gave cannot be used; nothing was written."""

    exit_code = 2


class BadObjective(BadInput):
    """The objective cannot be found, imported, called, or sent to a worker."""


class BadCheckpoint(BadInput):
    """A state that cannot be checkpointed (the key is named), or a damaged checkpoint."""


class StudyExists(BadInput):
    """``create_study`` found a study of that name."""


class StudyNotFound(BadInput):
    """No study of that name is in the database."""


class CheckpointNotSaved(TunerError, OSError):
    """The file system took no checkpoint: full, read-only, out of reach. Those before it stay valid.

    A trial that ends with it is tried again, uncharged: the fault is not its own.
    """


class ProgramFailed(TunerError):
    """An external program ended with an exit code other than 0, or by a signal, or did not start.

    A trial that ends with it is answered as ``reason`` says: ``exception`` for an exit code, which
    ``Retry(retry_on=("ProgramFailed",))`` tries again; ``rank_lost`` for a signal, also one that a launcher
    such as mpirun hands on as 128 + n; ``oom`` where the kernel had run out of memory.

    Attributes:
        code: its exit code, negative for a signal; None where it did not start.
        reason: class of the failure.
        tail: its last lines.
    """

    def __init__(self, text: str, *, reason: str, code: int | None = None, tail: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.reason = reason
        self.tail = tail


class BadMetric(TunerError):
    """An external program gave no metric, or one that is no number: the line is shown."""


class Infeasible(TunerError):
    """One trial asks for more than the cluster can ever hold."""

    exit_code = 2


class StoreUnavailable(TunerError):
    """The database cannot be reached, or must not be written to by this version."""

    exit_code = 2


class ClusterUnavailable(TunerError):
    """The Ray cluster cannot be reached."""

    exit_code = 2


class StudyHeld(TunerError):
    """Another live driver holds the study, or has taken it over."""

    exit_code = 3


class StudyStopped(TunerError):
    """The study ended without reaching what was asked, for the reason in the message."""

    exit_code = 1


class Interrupted(BaseException):
    """Raised in an objective at its next ``report``, ``should_prune`` or ``save_checkpoint``
    after the trial was asked to stop, when the objective does not ask ``should_stop`` itself.

    The attempt is left as interrupted and the trial goes on from its last checkpoint later.
    """
