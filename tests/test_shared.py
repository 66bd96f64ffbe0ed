"""Shared data is laid once on a node, mapped by all without a copy, and gone when nobody holds it."""

from __future__ import annotations

import fcntl
import json
import math
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pytest
import torch

import tuner
from tuner import shared_folder, sharing
from tuner.errors import BadInput

HOME = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(shared_folder.PARENT, str(tmp_path))
    held = shared_folder.hold("1234567890abcdef")
    monkeypatch.setenv(shared_folder.FOLDER, held.path)
    yield Path(held.path)
    held.let_go()


def names(folder: Path) -> list[str]:
    return sorted(one for one in os.listdir(folder) if not one.endswith(".lock"))


def start(code: str) -> subprocess.Popen[str]:
    """A process of its own in the same surroundings, with a pipe each way."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HOME)},
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# --------------------------------------------------------------------- values


ARRAYS = {
    "floats": numpy.arange(6.0).reshape(2, 3),
    "transposed": numpy.arange(6).reshape(2, 3).T,
    "strided": numpy.arange(10)[::3],
    "empty": numpy.empty((0, 4), numpy.float32),
    "no dimension": numpy.array(3.5),
    "text": numpy.array(["a", "bcd"]),
    "times": numpy.array(["2020-01-01"], "datetime64[D]"),
    "big-endian": numpy.arange(3, dtype=">i4"),
    "bools": numpy.array([True, False]),
    "complex": numpy.array([1 + 2j], numpy.complex64),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=list(ARRAYS))
def test_an_array_comes_back_read_only(array: Any) -> None:
    found = tuner.shared(array)
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        found[...] = array


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3)])
def test_a_tensor_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    found = tuner.shared(tensor)
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_views_of_tensors_are_laid_as_they_look() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    views = [whole.t(), whole[1:, ::2], torch.tensor([1 + 2j]).conj(), whole.clone().requires_grad_()]
    assert all(torch.equal(found, view) for found, view in zip(tuner.shared(views), views, strict=True))


def test_what_one_process_writes_to_a_tensor_no_other_sees() -> None:
    mine, other = (tuner.shared(torch.zeros(3)) for _ in range(2))
    mine += 1
    assert other.tolist() == [0, 0, 0]
    assert tuner.shared(torch.zeros(3)).tolist() == [0, 0, 0]


def test_an_arrow_table_comes_back_on_the_mapping() -> None:
    words = pyarrow.chunked_array([["a", "b"], ["c", None]]).dictionary_encode()
    table = pyarrow.table(
        {"x": pyarrow.chunked_array([[1, 2], [3, 4]]), "text": ["ü", "", None, "d"], "w": words}
    )
    before = pyarrow.total_allocated_bytes()
    first, second = tuner.shared({"first": table, "second": table.slice(1, 2)}).values()
    assert first.equals(table.unify_dictionaries())
    assert second.to_pylist() == table.slice(1, 2).to_pylist()
    assert first["x"].chunk(0).buffers()[1].address % 8 == 0
    assert pyarrow.total_allocated_bytes() - before < 1024


def test_plain_values_and_containers_come_back_with_their_types() -> None:
    value = {
        "plain": [None, True, 0, -1, 1 << 200, 1.5, math.inf, "ü\n", b"\0\xff", b""],
        5: ({"x": numpy.arange(3)}, ()),
        "scalar": numpy.float32(2.5),
    }
    found = tuner.shared(value)
    assert found["plain"] == value["plain"]
    assert list(map(type, found["plain"])) == list(map(type, value["plain"]))
    assert found[5][0]["x"].tolist() == [0, 1, 2]
    assert found[5][1] == ()
    assert type(found["scalar"]) is numpy.float32
    assert math.isnan(tuner.shared(math.nan))


LOOP: list[Any] = []
LOOP.append(LOOP)

REFUSED = [
    ({"x": [numpy.array([object()])]}, r"data\['x'\]\[0\] is a NumPy array of dtype object"),
    ({"x": numpy.zeros(1, [("a", "f4")])}, r"data\['x'\] is a NumPy array of dtype"),
    ({"x": numpy.ma.array([1])}, r"data\['x'\] is a MaskedArray"),
    ({"x": torch.eye(2).to_sparse()}, r"data\['x'\] is a torch Tensor of layout torch.sparse"),
    ({"x": torch.nn.Parameter(torch.ones(1))}, r"data\['x'\] is a torch Parameter"),
    ({"x": pyarrow.array([1])}, r"data\['x'\] is a pyarrow Int64Array"),
    ({"x": {1, 2}}, r"data\['x'\] is a builtins.set"),
    ({(1, 2): 1}, "data has a key of type tuple"),
    (LOOP, "nested too deeply, or contains itself"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_anything_else_is_refused_by_its_key_and_nothing_is_left(
    folder: Path, value: Any, message: str
) -> None:
    for data in (value, lambda: value):
        with pytest.raises(BadInput, match=message) as caught:
            tuner.shared(data, key="refused")
        assert "\n" not in str(caught.value)
    assert names(folder) == []


# ------------------------------------------------------------------ once a node


def test_a_function_is_called_once() -> None:
    calls = []

    def load() -> Any:
        calls.append(1)
        return numpy.arange(3)

    for _ in range(3):
        assert tuner.shared(load, key="x").tolist() == [0, 1, 2]
    assert calls == [1]
    tuner.shared(load, key="y")
    assert calls == [1, 1]


def test_what_a_function_captures_and_does_tells_its_data_apart(tmp_path: Path) -> None:
    def loader(size: int) -> Any:
        return lambda: numpy.zeros(size)

    assert [len(tuner.shared(loader(size))) for size in (1, 2, 1)] == [1, 2, 1]
    one, other = (lambda: 1), (lambda: 2)  # on one line, of one name
    assert [tuner.shared(one), tuner.shared(other)] == [1, 2]
    assert [tuner.shared(lambda n=n: n) for n in (1, 2)] == [1, 2]
    assert tuner.shared(lambda: len(str(tmp_path))) == len(str(tmp_path))


@pytest.mark.parametrize("load", [lambda: LOADER, type("Loader", (), {"__call__": lambda self: 1})()])
def test_a_function_whose_data_cannot_be_told_apart_needs_a_key(load: Any) -> None:
    captured: list[int] = []
    captures = load if not hasattr(load, "__code__") else lambda: len(captured)
    with pytest.raises(BadInput, match=r"depends on .*key="):
        tuner.shared(captures)
    tuner.shared(captures, key="known")


LOADER = 1


def test_a_loader_that_raises_leaves_nothing_and_the_next_one_tries(folder: Path) -> None:
    works = []

    def load() -> int:
        if not works:
            raise ConnectionError("no data")
        return 7

    with pytest.raises(ConnectionError, match="no data"):
        tuner.shared(load, key="x")
    assert names(folder) == []
    works.append(1)
    assert tuner.shared(load, key="x") == 7


LOADING = """
    import sys, numpy, tuner

    def load():
        print("loading", flush=True)
        if sys.stdin.readline().strip() == "go":
            return numpy.arange(4)

    print(tuner.shared(load).tolist(), flush=True)
"""


def test_of_two_processes_one_loads_and_the_other_waits() -> None:
    first = start(LOADING)
    assert line(first) == "loading"
    second = start(LOADING)
    print("go", file=first.stdin, flush=True)
    assert line(first) == "[0, 1, 2, 3]"
    assert line(second) == "[0, 1, 2, 3]"  # and never "loading"
    assert [one.wait(timeout=30) for one in (first, second)] == [0, 0]


def test_a_function_with_a_set_in_it_is_the_same_in_every_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import tuner; print(tuner.shared(lambda: [one in {'a', 'b', 'c', 'd'} for one in 'ax']))"
    for seed in ("1", "2", "3"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        process = start(code)
        assert (line(process), process.wait(timeout=30)) == ("[True, False]", 0)
    assert len(names(folder)) == 1


def test_a_killed_loader_is_followed_by_one_who_waited(folder: Path) -> None:
    first = start(LOADING)
    assert line(first) == "loading"
    second = start(LOADING)
    first.kill()
    first.wait(timeout=30)
    assert line(second) == "loading"
    print("go", file=second.stdin, flush=True)
    assert line(second) == "[0, 1, 2, 3]"
    assert second.wait(timeout=30) == 0
    assert [name for name in names(folder) if name.endswith(".tmp")] == []


def test_the_wait_for_a_loader_that_hangs_is_bounded(folder: Path) -> None:
    tuner.shared(lambda: 1)
    (laid,) = names(folder)
    os.unlink(folder / laid)
    with open(folder / f"{laid}.lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(
            TimeoutError, match=r"loading the data of .* for 0 s; give shared\(..., timeout=\)"
        ):
            tuner.shared(lambda: 1, timeout=0)


def test_a_half_written_file_is_never_read(folder: Path) -> None:
    tuner.shared(lambda: 1)
    (laid,) = names(folder)
    (folder / laid).rename(folder / f"{laid}.tmp")
    (folder / f"{laid}.tmp").write_bytes(b"half")
    assert tuner.shared(lambda: 1) == 1
    assert names(folder) == [laid]


def test_a_disk_that_is_full_is_one_clear_line(folder: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limit[1]))
    try:
        with pytest.raises(BadInput) as caught:
            tuner.shared(lambda: numpy.zeros(2**18))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert str(folder) in str(caught.value)
    assert "2.0 MiB" in str(caught.value)
    assert "TUNER_SHARED or TMPDIR" in str(caught.value)
    assert names(folder) == []


# ---------------------------------------------------------------- the folder


def test_the_folder_goes_with_its_last_holder(tmp_path: Path) -> None:
    first, second = shared_folder.hold("study"), shared_folder.hold("study")
    assert first.path == second.path
    assert os.stat(first.path).st_mode & 0o777 == 0o700
    first.let_go()
    first.let_go()
    assert os.path.isdir(second.path)
    second.let_go()
    assert not os.path.exists(second.path)


def test_two_studies_do_not_meet() -> None:
    first, second = shared_folder.hold("one"), shared_folder.hold("other")
    assert first.path != second.path
    first.let_go()
    assert os.path.isdir(second.path)
    second.let_go()


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    holder = start(
        """
        import signal
        from tuner import shared_folder
        held = shared_folder.hold("killed")
        print(held.path, flush=True)
        signal.pause()
        """
    )
    path = line(holder)
    shared_folder.sweep()
    assert os.path.isdir(path)
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=30)
    shared_folder.sweep()
    assert not os.path.exists(path)


def test_what_a_killed_sweeper_left_goes(tmp_path: Path) -> None:
    left = tmp_path / f"tuner-shared-{os.geteuid()}-gone-1"
    (left / "deep").mkdir(parents=True)
    left.chmod(0o700)
    shared_folder.sweep()
    assert not left.exists()


@pytest.mark.parametrize("form", ["link", "open to all"])
def test_a_folder_that_another_user_could_have_made_is_not_used(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"tuner-shared-{os.geteuid()}-taken"
    if form == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
        path.chmod(0o777)
    with pytest.raises(BadInput, match="TUNER_SHARED"):
        shared_folder.hold("taken")
    assert path.exists()


def test_data_stays_mapped_when_its_folder_has_gone() -> None:
    held = shared_folder.hold("mapped")
    array = numpy.arange(1000)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(shared_folder.FOLDER, held.path)
        found = tuner.shared(array)
    held.let_go()
    assert numpy.array_equal(found, array)


def test_a_plain_script_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(shared_folder.FOLDER)
    script = start(
        """
        import os, numpy, tuner
        from tuner import shared_folder
        assert tuner.shared(numpy.arange(3)).tolist() == [0, 1, 2]
        if os.fork() == 0:
            raise SystemExit  # a child takes nothing from its parent
        os.wait()
        print(len(os.listdir(os.environ["TUNER_SHARED"])), tuner.shared(numpy.arange(3)).tolist())
        """
    )
    assert line(script) == "2 [0, 1, 2]"  # ours, and the one of this test
    assert script.wait(timeout=30) == 0
    assert len(os.listdir(tmp_path)) == 1


# ----------------------------------------------------------------- memory


READER = """
    import json, sys, tuner, numpy

    def load():
        return numpy.ones((64, 2**20), numpy.uint8)

    data = tuner.shared(load)
    total = int(data.sum())
    print("read", flush=True)
    sys.stdin.readline()
    lines = open("/proc/self/smaps").read().split("\\n")
    at = next(i for i, one in enumerate(lines) if "/tuner-shared-" in one)
    found = {one.split(":")[0]: int(one.split()[1]) for one in lines[at + 1 : at + 20] if "kB" in one}
    print(json.dumps([total, found["Rss"], found["Pss"], found["Anonymous"]]), flush=True)
    sys.stdin.readline()
"""


def test_three_processes_hold_one_copy() -> None:
    readers = [start(READER) for _ in range(3)]
    assert [line(one) for one in readers] == ["read"] * 3
    figures = []
    for one in readers:
        print("measure", file=one.stdin, flush=True)
        figures.append(json.loads(line(one)))
    for one in readers:
        one.communicate("end\n", timeout=30)
    size = 64 * 1024
    assert all(total == 64 * 2**20 and rss >= size and private == 0 for total, rss, _, private in figures)
    assert size <= sum(pss for _, _, pss, _ in figures) < size + 1024


def test_the_name_of_a_value_is_that_of_its_content() -> None:
    assert sharing._name_of_value(numpy.zeros(3)) == sharing._name_of_value(numpy.zeros(3))
    assert sharing._name_of_value(numpy.zeros(3)) != sharing._name_of_value(numpy.zeros(4))
    assert sharing._name_of_value(numpy.zeros(2)) != sharing._name_of_value(
        torch.zeros(2, dtype=torch.float64)
    )
