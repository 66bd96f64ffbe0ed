"""A module that is deferred runs once, whoever asks for it, and says each time why it cannot."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuner.dispatch.deferral import defer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("deferred_slow", "deferred_bad"):
        sys.modules.pop(name, None)


def test_threads_that_ask_at_once_wait_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()
    monkeypatch.setattr(threading, "deferral_test", (begun, may_end), raising=False)
    text = "import threading\nb, e = threading.deferral_test\nb.set()\ne.wait(60)\nvalue = 1\n"
    (folder / "deferred_slow.py").write_text(text)
    defer("deferred_slow")
    module = importlib.import_module("deferred_slow")
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(module.value)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    may_end.set()
    for thread in threads:
        thread.join(60)
    assert found == [1, 1, 1]


def test_what_it_cannot_import_is_said_each_time(folder: Path) -> None:
    (folder / "deferred_bad.py").write_text("import no_such_module_at_all\nvalue = 1\n")
    defer("deferred_bad")
    module = importlib.import_module("deferred_bad")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
            _ = module.value
