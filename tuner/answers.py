"""The driver's answers to what an objective asks."""

from __future__ import annotations

import logging
import time

from optuna.exceptions import UpdateFinishedTrialError

import storage
from tuner.attempts import Attempts, Running
from tuner.messages import Answer, Ask, Call, Question, Sample, Saved
from tuner.study import DrivenStudy

__all__ = ["Answers"]

log = logging.getLogger(__name__)


class Answers:
    """Finds them in the study and its attempts.

    Args:
        study: held by this process.
        attempts: where a saved checkpoint is recorded.
    """

    def __init__(self, study: DrivenStudy, attempts: Attempts) -> None:
        self._study = study
        self._attempts = attempts

    def to(self, running: Running, rank: int, question: Question) -> Answer:
        """The answer, or an error that the objective gets: of the sampler, the pruner, the study.

        Raises:
            StorageError, UpdateFinishedTrialError: these are the driver's to handle.
        """
        try:
            return Answer(id=question.id, value=self._value(running, rank, question))
        except (storage.StorageError, UpdateFinishedTrialError):
            raise
        except Exception as error:
            log.debug("a question of trial %d failed", running.number, exc_info=True)
            return Answer(id=question.id, error=f"{type(error).__name__}: {error}")

    def _value(self, running: Running, rank: int, question: Question) -> object:
        match question:
            case Sample(name=name, distribution=text):
                return self._study.sample(running.trial_id, name, text)
            case Ask():
                running.reported = time.monotonic()
                return self._study.verdict(running.trial_id, running.attempt)
            case Saved() as saved:
                running.reported = time.monotonic()
                self._attempts.save(running, rank, saved)
                return None
            case Call(method=method, arguments=arguments):
                return self._study.call(method, arguments)
        raise ValueError(f"no answer to {question!r}")
