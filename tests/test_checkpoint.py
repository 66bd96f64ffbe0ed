"""Checkpoints are whole or absent, read only when unchanged, and never run code."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import math
import os
import pickle
import random
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import hypothesis
import numpy
import pyarrow
import pytest
import torch
from hypothesis import strategies as st

from tuner import checkpoint
from tuner.assignment import Shard
from tuner.checkpoint_chunks import Compressing, Inflating
from tuner.checkpoint_state import decode_state, encode_state
from tuner.errors import BadCheckpoint, BadInput


def round_trip(root: Path, value: Any) -> Any:
    return checkpoint.load(checkpoint.save(str(root), 1, 3, 0, {"value": value}))["value"]


def same(one: Any, other: Any) -> bool:
    """Equal in type, shape, dtype and value, all the way down; NaN equals NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        exact = one.dtype == other.dtype and one.requires_grad == other.requires_grad
        return exact and torch.equal(one.detach(), other.detach())
    if isinstance(one, numpy.ndarray | numpy.generic):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


VALUES = {
    "plain": [
        None,
        True,
        False,
        0,
        -1,
        2**63,
        -(2**63),
        1 << 200,
        1.5,
        math.inf,
        math.nan,
        "",
        "ü\n",
        b"",
        b"\0\xff",
    ],
    "complex": 1 - 2j,
    "nested": {"a": [1, (2, [3], ())], 5: {"b": {}}, (1, "x"): None, 0.5: True},
    "looks tagged": ("tuner:tagged", "int", "0x1", ("tuner:tagged",), ["tuner:tagged", "array"]),
    "sets": [{1, 2}, frozenset({"a"}), set()],
    "ordered": collections.OrderedDict(b=1, a=collections.OrderedDict()),
    "size": torch.Size([2, 0, 3]),
    "tensors": [
        torch.ones(2, 3),
        torch.tensor(7),
        torch.empty(0, 4),
        torch.tensor([True]),
        torch.tensor([1j]),
    ],
    "tensor dtypes": [
        torch.ones(3).to(kind) for kind in (torch.float16, torch.bfloat16, torch.uint8, torch.int64)
    ],
    "needs a gradient": torch.ones(2, requires_grad=True),
    "parameters": [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1), requires_grad=False)],
    "arrays": [
        numpy.zeros((2, 3), numpy.float16),
        numpy.array(3.5),
        numpy.empty((0, 2)),
        numpy.array([True, False]),
        numpy.array([1 + 2j], numpy.complex64),
        numpy.arange(6).reshape(2, 3).T,
        numpy.array(["a", "bcd"]),
        numpy.array(["2020-01-01"], "datetime64[D]"),
        numpy.arange(3, dtype=">i4"),
    ],
    "scalars": [
        numpy.float64(0.1),
        numpy.float16(2),
        numpy.bool_(True),
        numpy.int64(-1),
        numpy.complex128(1j),
    ],
    "random states": [
        random.getstate(),
        numpy.random.get_state(),
        numpy.random.default_rng(1).bit_generator.state,
        torch.get_rng_state(),
    ],
}


@pytest.mark.parametrize("value", VALUES.values(), ids=list(VALUES))
def test_what_is_saved_comes_back_with_its_types(tmp_path: Path, value: Any) -> None:
    assert same(round_trip(tmp_path, value), value)


def test_a_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).sum().backward()
            optimizer.step()

    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    torch.manual_seed(0)
    model, optimizer = fresh()
    steps(model, optimizer, 3)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    shard = checkpoint.save(str(tmp_path), 1, 3, 0, state)
    steps(model, optimizer, 3)
    again, other = fresh()
    loaded = checkpoint.load(shard)
    again.load_state_dict(loaded["model"])
    other.load_state_dict(loaded["optimizer"])
    torch.set_rng_state(loaded["rng"])
    steps(again, other, 3)
    assert same(dict(again.state_dict()), dict(model.state_dict()))
    assert loaded["model"]._metadata == model.state_dict()._metadata


def test_a_loaded_array_can_be_written_to(tmp_path: Path) -> None:
    array = round_trip(tmp_path, numpy.zeros(2))
    array += 1
    assert array.tolist() == [1, 1]


class Colour(str):
    __slots__ = ()


LOOP: list[Any] = []
LOOP.append(LOOP)

REFUSED = [
    ({"optimizer": {"fn": lambda: 0}}, "state['optimizer']['fn'] is a function"),
    ({"a": [0, object()]}, "state['a'][1] is a object"),
    ({"a": Path("/")}, "state['a'] is a pathlib"),
    ({"a": collections.defaultdict(int)}, "state['a'] is a collections.defaultdict"),
    ({"a": Colour("red")}, "Colour"),
    ({"a": numpy.array([object()])}, "state['a'] is a NumPy array of dtype object"),
    ({"a": numpy.zeros(1, [("x", "f4")])}, "state['a'] is a NumPy array of dtype"),
    ({"a": torch.nn.Linear(1, 1)}, "state['a'] is a torch.nn.modules.linear.Linear"),
    ({b"key": 1}, "state has a key of type bytes"),
    ({"a": LOOP}, "state['a'][0] contains itself"),
    ([1], "state is a list; give a dict"),
    (None, "state is a NoneType; give a dict"),
]


@pytest.mark.parametrize(("state", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_anything_else_is_refused_by_its_key_and_nothing_is_written(
    tmp_path: Path, state: Any, message: str
) -> None:
    with pytest.raises(BadCheckpoint) as caught:
        checkpoint.save(str(tmp_path / "root"), 1, 3, 0, state)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "root").exists()


def test_a_state_nested_too_deeply_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(BadCheckpoint, match="too deeply"):
        encode_state(deep)
    while deep:  # a recursive release would overflow the stack
        deep = deep.pop("a", {})


def test_no_folder_for_checkpoints_is_one_clear_line() -> None:
    with pytest.raises(BadInput, match="checkpoints="):
        checkpoint.save("", 1, 3, 0, {})


def test_the_shard_says_where_it_lies(tmp_path: Path) -> None:
    shard = checkpoint.save(str(tmp_path), 2, 30, 1, {"a": 1})
    assert shard.path == str(tmp_path / "a2" / "step-30" / "rank-1.pt")
    assert shard.size == os.path.getsize(shard.path)
    assert checkpoint.verify(shard)
    assert os.listdir(os.path.dirname(shard.path)) == ["rank-1.pt"]


def test_the_name_comes_after_the_data_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write, fsync, rename, fsync of the folder: in this order."""
    events = record(monkeypatch)
    shard = checkpoint.save(str(tmp_path), 1, 3, 0, {"a": torch.ones(9)})
    folder = os.path.dirname(shard.path)
    temporary = f"{folder}/.rank-0.pt.tmp"
    assert events[-3:] == [
        ("fsync", temporary, shard.size),
        ("rename", temporary, shard.path),
        ("fsync", folder, None),
    ]
    # The folders above are new: each is durable in its parent before.
    assert [where for kind, where, _ in events[:-3] if kind == "fsync"] == [
        str(tmp_path),
        str(tmp_path / "a1"),
    ]


def record(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """What is synced (with its size then) and renamed, in order."""
    events: list[tuple[str, str, Any]] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        fsync(descriptor)
        events.append(("fsync", path, None if os.path.isdir(path) else os.path.getsize(path)))

    def note_replace(source: Any, target: Any) -> None:
        replace(source, target)
        events.append(("rename", str(source), str(target)))

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    return events


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.fault("14: a write that fails half-way")
def test_a_failure_before_the_name_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    shard = checkpoint.save(str(tmp_path), 1, 3, 0, {"a": 1})

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(str(tmp_path), 1, 3, 0, {"a": 2})
    assert checkpoint.load(shard) == {"a": 1}
    assert os.listdir(os.path.dirname(shard.path)) == ["rank-0.pt"]


@pytest.mark.parametrize("harm", ["torn", "flipped", "grown", "gone"])
@pytest.mark.fault("15: a checkpoint torn or changed")
def test_a_damaged_file_is_refused(tmp_path: Path, harm: str) -> None:
    shard = checkpoint.save(str(tmp_path), 1, 3, 0, {"a": torch.ones(100)})
    path = Path(shard.path)
    data = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= harm == "flipped"
        path.write_bytes(data[:-1] if harm == "torn" else data + b"x" * (harm == "grown"))
    assert not checkpoint.verify(shard)
    with pytest.raises(BadCheckpoint, match=shard.path):
        checkpoint.load(shard)


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["torch", "bare"])
@pytest.mark.fault("27: a malicious pickle")
def test_a_pickle_that_would_run_code_never_does(tmp_path: Path, form: str) -> None:
    """Even under a digest that is right."""
    canary, file = tmp_path / "ran", tmp_path / "rank-0.pt"
    if form == "torch":
        torch.save({"a": Canary(str(canary))}, file)
    else:
        file.write_bytes(pickle.dumps(Canary(str(canary)), protocol=2))
    with open(file, "rb") as opened:
        shard = Shard(rank=0, path=str(file), digest=checkpoint._file_digest(opened), size=1)
    with pytest.raises(BadCheckpoint, match="no checkpoint of ours"):
        checkpoint.load(shard)
    assert not canary.exists()
    torch.load(file, weights_only=False) if form == "torch" else pickle.loads(file.read_bytes())
    assert canary.exists()  # the canary is alive


def test_no_class_is_named_in_the_file(tmp_path: Path) -> None:
    shard = checkpoint.save(str(tmp_path), 1, 3, 0, {"all": [VALUES[key] for key in sorted(VALUES)]})
    with zipfile.ZipFile(shard.path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        pickled = archive.read(name)
    assert b"numpy" not in pickled
    assert b"tuner." not in pickled


def test_encoding_is_undone_by_decoding() -> None:
    assert same(decode_state(encode_state(VALUES)), VALUES)


# ----------------------------------------------------------------- folders


def folder(tmp_path: Path, files: dict[str, str]) -> Shard:
    target = tmp_path / "a1" / "step-3"
    made = target / ".made"
    checkpoint.make_folders(str(made))
    for name, text in files.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    final = str(target / "rank-0.dir")
    checkpoint.finish_folder(str(made), final)
    return checkpoint.folder_shard(final, 0)


def test_a_folder_comes_back_as_its_path(tmp_path: Path) -> None:
    shard = folder(tmp_path, {"model.txt": "weights", "sub/more.txt": "more"})
    loaded = checkpoint.load(shard)
    assert loaded == Path(shard.path)
    assert (loaded / "sub" / "more.txt").read_text() == "more"
    assert shard.size == len("weights") + len("more")
    assert os.listdir(tmp_path / "a1" / "step-3") == ["rank-0.dir"]


@pytest.mark.parametrize("harm", ["changed", "added", "removed", "renamed", "empty folder", "gone", "link"])
def test_a_changed_folder_is_refused(tmp_path: Path, harm: str) -> None:
    shard = folder(tmp_path, {"a": "1", "b": "2"})
    path = Path(shard.path)
    if harm == "changed":
        (path / "a").write_text("2")
    elif harm == "added":
        (path / "c").write_text("")
    elif harm == "removed":
        (path / "a").unlink()
    elif harm == "renamed":
        (path / "a").rename(path / "c")
    elif harm == "empty folder":
        (path / "c").mkdir()
    elif harm == "link":
        (path / "c").symlink_to("a")
    else:
        path.rename(tmp_path / "elsewhere")
    assert not checkpoint.verify(shard)
    with pytest.raises(BadCheckpoint):
        checkpoint.load(shard)


def test_a_folder_is_synced_file_by_file_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = record(monkeypatch)
    shard = folder(tmp_path, {"a": "1", "sub/b": "22"})
    made, parent = str(tmp_path / "a1" / "step-3" / ".made"), str(tmp_path / "a1" / "step-3")
    after_folders = events[[where for _, where, _ in events].index(f"{made}/a") :]
    assert after_folders == [
        ("fsync", f"{made}/a", 1),
        ("fsync", f"{made}/sub", None),
        ("fsync", f"{made}/sub/b", 2),
        ("fsync", made, None),
        ("rename", made, shard.path),
        ("fsync", parent, None),
    ]


def test_the_same_step_again_replaces_the_folder(tmp_path: Path) -> None:
    old = folder(tmp_path, {"a": "1"})
    new = folder(tmp_path, {"b": "2"})
    assert not checkpoint.verify(old)
    assert [path.name for path in checkpoint.load(new).iterdir()] == ["b"]
    assert os.listdir(tmp_path / "a1" / "step-3") == ["rank-0.dir"]


# ----------------------------------------------------------------- elsewhere


def test_a_remote_root_works_through_fsspec() -> None:
    shard = checkpoint.save("memory://study/7", 1, 3, 0, {"a": numpy.ones(2)})
    assert shard.path == "memory://study/7/a1/step-3/rank-0.pt"
    assert checkpoint.verify(shard)
    assert checkpoint.load(shard)["a"].tolist() == [1, 1]
    checkpoint.delete([shard.path])
    assert not checkpoint.verify(shard)


def test_an_unknown_protocol_is_one_clear_line() -> None:
    with pytest.raises(BadInput, match="nosuch://x"):
        checkpoint.save("nosuch://x", 1, 3, 0, {})


def test_deleting_removes_shards_and_empty_folders_only(tmp_path: Path) -> None:
    one, two = (checkpoint.save(str(tmp_path), 1, 3, rank, {}) for rank in (0, 1))
    other = checkpoint.save(str(tmp_path), 1, 4, 0, {})
    made = folder(tmp_path / "more", {"a": "1"})
    checkpoint.delete([one.path, made.path, str(tmp_path / "not" / "there.pt")])
    assert checkpoint.verify(two)
    assert os.listdir(tmp_path / "more") == []
    checkpoint.delete([two.path])
    assert os.listdir(tmp_path / "a1") == ["step-4"]
    assert checkpoint.verify(other)


# --------------------------------------------------------------- compressed


def compressed(root: Path, value: Any) -> Shard:
    return checkpoint.save(str(root), 1, 3, 0, {"value": value}, "zstd")


def forged(shard: Shard, data: bytes) -> Shard:
    """The file changed by one who can also change the digest."""
    Path(shard.path).write_bytes(data)
    return dataclasses.replace(shard, digest=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("value", VALUES.values(), ids=list(VALUES))
def test_what_is_compressed_comes_back_with_its_types(tmp_path: Path, value: Any) -> None:
    shard = compressed(tmp_path, value)
    assert checkpoint.verify(shard)
    assert shard.size == os.path.getsize(shard.path)
    assert same(checkpoint.load(shard)["value"], value)


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 700_000), st.booleans()), max_size=4), st.integers(0, 2**32)
)
def test_any_mix_of_what_shrinks_and_what_does_not_comes_back(
    parts: list[tuple[int, bool]], seed: int
) -> None:
    noise = torch.Generator().manual_seed(seed)
    value = [
        torch.zeros(size) if shrinks else torch.rand(size, generator=noise, dtype=torch.float64)
        for size, shrinks in parts
    ]
    with tempfile.TemporaryDirectory() as root:
        assert same(checkpoint.load(compressed(Path(root), value))["value"], value)
        assert same(round_trip(Path(root), value), value)


def test_what_is_sparse_gets_small_and_what_is_not_stays_as_it_is(tmp_path: Path) -> None:
    size = 4 * 2**20
    assert compressed(tmp_path, torch.zeros(size // 4)).size < size / 100
    noise = compressed(tmp_path, torch.randint(-(2**62), 2**62, (size // 8,)))
    assert size < noise.size < size * 1.01


def test_a_copy_is_a_file_that_torch_reads(tmp_path: Path) -> None:
    checkpoint.copy(compressed(tmp_path, torch.ones(3)), tmp_path / "copy.pt")
    assert torch.load(tmp_path / "copy.pt", weights_only=True)["value"].tolist() == [1.0, 1.0, 1.0]


def test_another_way_to_compress_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="compress='lzma' is not known; give 'zstd' or None"):
        checkpoint.save(str(tmp_path), 1, 3, 0, {}, "lzma")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("harm", ["torn", "size", "count", "lengths", "length", "chunk", "short", "bomb"])
def test_a_forged_compressed_file_is_refused(tmp_path: Path, harm: str) -> None:
    """Even under a digest that is right, nothing larger than a chunk is made of it."""
    shard = compressed(tmp_path, torch.zeros(2**20))
    data = Path(shard.path).read_bytes()
    size, count = struct.unpack("<QQ", data[-16:])
    lengths = list(struct.unpack(f"<{count}I", data[-16 - 4 * count : -16]))
    chunks = data[8 : -16 - 4 * count]
    bomb = pyarrow.Codec("zstd").compress(bytes(2**30), asbytes=True)
    if harm == "size":
        size = 2**60
    elif harm == "count":
        count = 2**40
    elif harm == "lengths":
        lengths[0] += 1
    elif harm == "length":
        lengths, chunks, size, count = [2**21], bytes(2**21), 2**20, 1
    elif harm == "chunk":
        chunks = bytes([chunks[0] ^ 255]) + chunks[1:]
    elif harm == "short":
        size -= 1
    elif harm == "bomb":
        chunks = bomb + chunks[lengths[0] :]
        lengths[0] = len(bomb)
    made = data[:8] + chunks + struct.pack(f"<{len(lengths)}I", *lengths) + struct.pack("<QQ", size, count)
    with pytest.raises(BadCheckpoint) as caught:
        checkpoint.load(forged(shard, data[:12] if harm == "torn" else made))
    assert shard.path in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.fault("27: a malicious pickle")
def test_a_compressed_pickle_that_would_run_code_never_does(tmp_path: Path) -> None:
    canary, shard = tmp_path / "ran", compressed(tmp_path, 1)
    written = io.BytesIO()
    chunks = Compressing(written)
    torch.save({"a": Canary(str(canary))}, chunks)  # type: ignore[arg-type]
    chunks.finish()
    with pytest.raises(BadCheckpoint, match="no checkpoint of ours"):
        checkpoint.load(forged(shard, written.getvalue()))
    assert not canary.exists()


def test_any_place_of_what_was_compressed_can_be_read_alone() -> None:
    data, written = os.urandom(2**21) + bytes(2**21 + 5), io.BytesIO()
    chunks = Compressing(written)
    for start in range(0, len(data), 999_999):
        chunks.write(memoryview(data)[start : start + 999_999])
    chunks.finish()
    found = io.BufferedReader(Inflating(written))
    for place in (2**20 - 1, 0, 2**22, 2**21 - 10, len(data) - 1, len(data)):
        found.seek(place)
        assert found.read(20) == data[place : place + 20]
    found.seek(0)
    assert found.read() == data
