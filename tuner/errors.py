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

    Example:
        >>> study = tuner.create_study("known", storage="sqlite:///tuner.db")
        >>> try:
        ...     tuner.load_study("unknown", storage="sqlite:///tuner.db")
        ... except tuner.TunerError as error:
        ...     print(f"exit {error.exit_code}: {error}")
        exit 2: there is no study 'unknown' in sqlite:///tuner.db; it has: ...
    """

    exit_code = 1


class BadInput(TunerError, ValueError):
    """A value that the user gave cannot be used; nothing was written.

    Example:
        >>> tuner.Resources(cpus=-1)
        Traceback (most recent call last):
        tuner.errors.BadInput: cpus=-1: the CPU cores of a rank must be 0 or more
    """

    exit_code = 2


class BadObjective(BadInput):
    """The objective cannot be found, imported, called, or sent to a worker.

    Example:
        >>> study = tuner.create_study("bad-objective", storage="sqlite:///tuner.db")
        >>> tuner.optimize(study, "nowhere.py:objective", n_trials=1)
        Traceback (most recent call last):
        tuner.errors.BadObjective: there is no file nowhere.py; write FILE.py:NAME or package.module:NAME
    """


class BadCheckpoint(BadInput):
    """A state that cannot be checkpointed (the key is named), or a damaged checkpoint.

    Example:
        >>> def objective(trial):
        ...     try:
        ...         trial.save_checkpoint({"model": {"activation": max}}, step=1)
        ...     except tuner.BadCheckpoint as error:
        ...         print(error)
        ...     return 0.0
        >>> study = tuner.create_study("bad-checkpoint", storage="sqlite:///tuner.db")
        >>> study = tuner.optimize(study, objective, n_trials=1, executor="inline")
        state['model']['activation'] is a builtin_function_or_method; give tensors, ...
    """


class StudyExists(BadInput):
    """``create_study`` found a study of that name.

    Example:
        >>> study = tuner.create_study("once", storage="sqlite:///tuner.db")
        >>> study = tuner.create_study("once", storage="sqlite:///tuner.db", load_if_exists=True)
        >>> study = tuner.create_study("once", storage="sqlite:///tuner.db")
        Traceback (most recent call last):
        tuner.errors.StudyExists: study 'once' exists already in sqlite:///tuner.db; ...
    """


class StudyNotFound(BadInput):
    """No study of that name is in the database.

    Example:
        >>> study = tuner.create_study("found", storage="sqlite:///tuner.db")
        >>> tuner.load_study("lost", storage="sqlite:///tuner.db")
        Traceback (most recent call last):
        tuner.errors.StudyNotFound: there is no study 'lost' in sqlite:///tuner.db; it has: ...
    """


class CheckpointNotSaved(TunerError, OSError):
    """The file system took no checkpoint: full, read-only, out of reach. Those before it stay valid.

    A trial that ends with it is tried again, uncharged: the fault is not its own.

    Example:
        >>> def objective(trial):
        ...     with trial.checkpoint_dir(step=1) as folder:
        ...         raise tuner.CheckpointNotSaved("the quota of the project is used up")
        >>> study = tuner.create_study("full", storage="sqlite:///tuner.db")
        >>> retry = tuner.Retry(max_preemptions=0)  # else it is tried again after a while
        >>> study = tuner.optimize(study, objective, n_trials=1, executor="inline", retry=retry)
        >>> study.trials[0].state.name
        'FAIL'
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

    Example:
        >>> with tuner.Program(["sh", "-c", "echo no luck; exit 3"]) as program:
        ...     lines = list(program.output())
        ...     program.check()
        Traceback (most recent call last):
        tuner.errors.ProgramFailed: ...
    """

    def __init__(self, text: str, *, reason: str, code: int | None = None, tail: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.reason = reason
        self.tail = tail


class BadMetric(TunerError):
    """An external program gave no metric, or one that is no number: the line is shown.

    Example:
        >>> import objectives
        >>> objective = objectives.command("echo loss={x}", {"x": "float(0,1)"}, metrics="regex:lost=(.*)")
        >>> study = tuner.create_study("bad-metric", storage="sqlite:///tuner.db")
        >>> study = tuner.optimize(study, objective, n_trials=1, executor="inline")
        loss=0...
        >>> study.trials[0].state.name
        'FAIL'
    """


class Infeasible(TunerError):
    """One trial asks for more than the cluster can ever hold.

    Example:
        >>> study = tuner.create_study("too-much", storage="sqlite:///tuner.db")
        >>> tuner.optimize(study, abs, n_trials=1, executor="inline", resources=tuner.Resources(ranks=8))
        Traceback (most recent call last):
        tuner.errors.Infeasible: ...
    """

    exit_code = 2


class StoreUnavailable(TunerError):
    """The database cannot be reached, or must not be written to by this version.

    Example:
        >>> tuner.load_study("s", storage="sqlite:////nowhere/tuner.db")
        Traceback (most recent call last):
        tuner.errors.StoreUnavailable: ...
    """

    exit_code = 2


class ClusterUnavailable(TunerError):
    """The Ray cluster cannot be reached.

    Example:
        >>> tuner.ClusterUnavailable.exit_code  # of 'tuner run --address 10.0.0.1:6379' where nothing answers
        2
    """

    exit_code = 2


class StudyHeld(TunerError):
    """Another live driver holds the study, or has taken it over.

    Example:
        >>> study = tuner.create_study("held", storage="sqlite:///tuner.db")
        >>> with storage.SqlStorage("sqlite:///tuner.db").lease("held"):  # as another driver does
        ...     tuner.optimize(study, abs, n_trials=1, executor="inline")
        Traceback (most recent call last):
        tuner.errors.StudyHeld: ...
    """

    exit_code = 3


class StudyStopped(TunerError):
    """The study ended without reaching what was asked, for the reason in the message.

    Example:
        >>> def objective(trial):
        ...     raise RuntimeError("no such column: price")
        >>> study = tuner.create_study("stopped", storage="sqlite:///tuner.db")
        >>> tuner.optimize(study, objective, n_trials=100, executor="inline", retry=tuner.Retry(stop_after=3))
        Traceback (most recent call last):
        tuner.errors.StudyStopped: ...
        >>> len(study.trials)
        3
    """

    exit_code = 1


class Interrupted(BaseException):
    """Raised in an objective at its next ``report``, ``should_prune`` or ``save_checkpoint``
    after the trial was asked to stop, when the objective does not ask ``should_stop`` itself.

    The attempt is left as interrupted and the trial goes on from its last checkpoint later.

    Example:
        >>> def objective(trial):
        ...     try:
        ...         trial.report(0.5, step=1)
        ...     except tuner.Interrupted:
        ...         print("close what is open")
        ...         raise
        ...     return 0.5
        >>> issubclass(tuner.Interrupted, Exception)
        False
    """
