"""The functions of ``ray.tune`` and ``ray.train`` inside a trial of ours: where they lead instead.

Ray has no public hook. Its functions all ask for the process's session and call that:
``ray.train._internal.session._session`` for ``ray.tune`` (and for ``ray.train`` as it was before its second
version), and the ``TrainFnUtils`` of that version, a class that says of itself that it may be replaced.
Both are set for the length of the objective's call and put back after it; nothing of Ray is patched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from tuner.errors import BadObjective

if TYPE_CHECKING:
    from tuner.trial import Trial

__all__ = ["Ended", "Session", "in_place", "require"]


class Ended(SystemExit):
    """Raised by ``report`` where Ray would end the trainable: as there, no ``except Exception`` holds it.

    Attributes:
        pruned: by the pruner; otherwise the trainable was told to stop, or said that it is done.
    """

    def __init__(self, *, pruned: bool) -> None:
        super().__init__(0)
        self.pruned = pruned


class Session:
    """What Ray's functions find in the place of a session of its own.

    Args:
        trial: gets the reports, further metrics and checkpoints.
        metric: the reported value that is the objective's.
        name: of the trainable.

    Attributes:
        value: the metric, as it was last reported; None where it never was.
        seen: names of all metrics that were reported.
    """

    def __init__(self, trial: Trial, metric: str, name: str) -> None:
        self._trial, self._metric = trial, metric
        self.world_rank, self.world_size = trial.rank, trial.world_size
        self.local_rank, self.local_world_size, self.node_rank = trial.local_rank, trial.world_size, 0
        self.experiment_name = trial.study.study_name
        self.trial_id = f"{trial.number:05d}"
        self.trial_name = f"{name}_{self.trial_id}"
        self.run_id, self.metadata = self.trial_id, None
        self.seen: set[str] = set()
        self.value: float | None = None
        self.iteration = 0
        self.loaded_checkpoint: Any = None
        saved = trial.load_checkpoint()
        if saved is not None:
            self.iteration = saved.step
            self.value = trial._cached_frozen_trial.intermediate_values.get(saved.step)
            self.loaded_checkpoint = _checkpoint(saved.state)

    @property
    def trial_dir(self) -> str:
        """The working folder of the attempt, where Ray has the trial's."""
        return os.getcwd()

    @property
    def trial_resources(self) -> Any:
        """Of one rank, as Ray has them."""
        from ray.tune import PlacementGroupFactory

        resources = self._trial._assignment.resources
        return PlacementGroupFactory([{"CPU": resources.cpus, "GPU": resources.gpus or 0}])

    def report(self, metrics: Mapping[str, Any], checkpoint: Any = None) -> None:
        """A training iteration: its metrics, its checkpoint, and whether the trial goes on.

        Raises:
            Ended: it does not.
        """
        trial = self._trial
        leaving = trial.should_stop()  # asked first: what this report brings is kept
        self.iteration += 1
        numbers = _numbers(metrics)
        self.seen |= set(numbers)
        value = numbers.pop(self._metric, None)
        if value is not None:
            self.value = value
            trial.report(value, self.iteration)
        trial.log(numbers, self.iteration)
        if checkpoint is not None:
            self._save(checkpoint)
        if value is not None and not leaving and trial.should_prune():
            raise Ended(pruned=True)
        if leaving or metrics.get("done"):
            raise Ended(pruned=False)

    def _save(self, checkpoint: Any) -> None:
        with self._trial.checkpoint_dir(self.iteration) as folder:
            checkpoint.to_directory(folder)
        self.loaded_checkpoint = _checkpoint(self._trial._folder_of(self.iteration))

    def get_dataset_shard(self, dataset_name: str | None = None) -> NoReturn:
        """Ray Train's, whose trainers are not run here."""
        raise BadObjective(f"get_dataset_shard({dataset_name!r}): read the data in the trainable itself")

    def get_state(self, key: str) -> None:
        """Nothing was kept for Ray's own callbacks."""


@contextlib.contextmanager
def in_place(session: Session) -> Iterator[None]:
    """Ray's functions lead to the session while the block runs."""
    from ray.train._internal import session as tune_side

    before = tune_side._session
    tune_side._session = session  # type: ignore[assignment]
    try:
        with _train_side(session):
            yield
    finally:
        tune_side._session = before


@contextlib.contextmanager
def _train_side(session: Session) -> Iterator[None]:
    """``ray.train`` in its second version, which refuses inside Ray Tune itself: here it works too."""
    from ray.train.v2._internal.constants import is_v2_enabled

    if not is_v2_enabled():
        yield
        return
    from ray.train.v2._internal.execution import train_fn_utils as side

    class TrainFnUtils(side.LocalTrainFnUtils):
        def report(self, metrics: Mapping[str, Any], checkpoint: Any = None, *args: Any, **more: Any) -> None:
            session.report(metrics, checkpoint)

        def get_checkpoint(self) -> Any:
            return session.loaded_checkpoint

        def barrier(self) -> None:
            _alone(session, "barrier")

        def broadcast_from_rank_zero(self, data: Any) -> Any:
            _alone(session, "broadcast_from_rank_zero")
            return data

    before = side._train_fn_utils
    place = ("world_size", "world_rank", "local_rank", "local_world_size", "node_rank")
    own = TrainFnUtils(session.experiment_name, **{name: getattr(session, name) for name in place})
    side.set_train_fn_utils(own)
    try:
        yield
    finally:
        side.set_train_fn_utils(before)


def _alone(session: Session, name: str) -> None:
    if session.world_size > 1:
        raise BadObjective(f"ray.train's {name} is Ray Train's own; torch.distributed has it for these ranks")


def require() -> None:
    """Refuse a Ray without Tune, or one whose functions ask for their session elsewhere.

    Raises:
        BadObjective: names what to install.
    """
    try:
        import ray.tune
        from ray.train._internal import session as tune_side
    except ImportError as error:
        raise BadObjective(f'Ray Tune cannot be imported ({error}); pip install "ray[tune]"') from None
    if not hasattr(tune_side, "_session"):
        raise BadObjective(
            f"tuner.compat knows Ray Tune 2.60, not {ray.__version__}; pip install ray==2.60.0"
        )


def _checkpoint(folder: Any) -> Any:
    from ray.tune import Checkpoint

    return Checkpoint.from_directory(str(folder))


def _numbers(metrics: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """The metrics that are numbers, by path, as Ray flattens them; a database keeps no others."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            found.update(_numbers(value, f"{name}/"))
        elif not isinstance(value, str | bytes):
            with contextlib.suppress(TypeError, ValueError):
                found[name] = float(value)
    return found
