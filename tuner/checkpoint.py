"""Checkpoints of one rank: written whole or not at all, and read only if they are what was written.

A file or folder gets its name last: temporary name, data, fsync, rename, fsync of the folder.
Its SHA-256 is that of the bytes handed to the file system, so that a torn or changed one is
refused before anything of it is interpreted. Roots are folders or fsspec URIs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from tuner.assignment import Shard
from tuner.checkpoint_chunks import MAGIC, Compressing, Inflating
from tuner.checkpoint_state import decode_state, encode_state
from tuner.errors import BadCheckpoint, BadInput, CheckpointNotSaved

__all__ = [
    "Checkpoint",
    "copy",
    "delete",
    "finish_folder",
    "folder_shard",
    "is_folder",
    "load",
    "load_checkpoint",
    "make_folders",
    "read_text",
    "save",
    "saving",
    "sweep",
    "verify",
    "write_text",
]

FOLDER = ".dir"
_CHUNK = 2**20
# Here an object appears whole when its upload ends, and a rename is a copy.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "r2"}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What ``trial.load_checkpoint`` and ``tuner.best_checkpoint`` return.

    Attributes:
        step: the step that was given with it.
        state: the mapping that was saved, tensors on the CPU; or the ``pathlib.Path`` of the
            folder that ``trial.checkpoint_dir`` made.
        parts: of all ranks that saved it, by rank, so that another number of ranks can read them;
            not verified, but for the one that ``state`` is.

    Example:
        >>> def objective(trial):
        ...     saved = trial.load_checkpoint()
        ...     for epoch in range(saved.step + 1 if saved else 0, 3):
        ...         trial.save_checkpoint({"epoch": epoch}, step=epoch)
        ...     return 0.0
        >>> study = tuner.create_study("three-epochs", storage="sqlite:///tuner.db")
        >>> best = tuner.best_checkpoint(tuner.optimize(study, objective, n_trials=1, executor="inline"))
        >>> best.step, best.state
        (2, {'epoch': 2})
    """

    step: int
    state: Mapping[str, Any] | Path
    parts: tuple[Shard, ...] = ()


def save(
    root: str, attempt: int, step: int, rank: int, state: Mapping[str, Any], compress: str | None = None
) -> Shard:
    """Write one rank's state to ``<root>/a<attempt>/step-<step>/rank-<rank>.pt``.

    It is durable on return. Saving the same step again replaces it.

    Args:
        root: a folder, or an fsspec URI such as ``s3://bucket/study/7``.
        state: tensors, NumPy arrays and scalars and plain values, nested in dicts, lists,
            tuples and sets.
        compress: "zstd", or None.

    Raises:
        BadInput: another ``compress``.
        BadCheckpoint: the state holds something else; the key is named.
        CheckpointNotSaved: the file system refused.

    Example:
        >>> import torch, tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     shard = save(root, 1, 5, 0, {"w": torch.ones(2)})
        ...     load(shard)["w"].tolist()
        [1.0, 1.0]
    """
    import torch

    if compress not in (None, "zstd"):
        raise BadInput(f"compress={compress!r} is not known; give 'zstd' or None")
    encoded = encode_state(state)
    path = _path(root, attempt, step, f"rank-{rank}.pt")
    with saving(path), _atomic_file(path) as file:
        counted = _Digesting(file)
        if compress is None:
            torch.save(encoded, cast(IO[bytes], counted))
        else:
            chunks = Compressing(counted)
            torch.save(encoded, cast(IO[bytes], chunks))
            chunks.finish()
    return Shard(rank=rank, path=path, digest=counted.digest(), size=counted.size)


@contextlib.contextmanager
def saving(path: str) -> Iterator[None]:
    """What a file system refuses comes out as one error, whatever library it went through.

    Raises:
        CheckpointNotSaved: names the path and the cause.
    """
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        cause = error.__cause__ or error.__context__ or error
        text = next((one.strerror for one in (error, cause) if isinstance(one, OSError) and one.strerror), "")
        line = text or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointNotSaved(
            f"no checkpoint could be written to {path} ({line}); the ones before it are valid: "
            "free some space or repair the file system, and the trial goes on by itself"
        ) from error


def load(shard: Shard) -> Any:
    """The state of a shard, verified; tensors lie on the CPU. No code in it is ever run.

    Returns:
        The mapping that was saved, or the ``Path`` of a checkpoint folder.

    Raises:
        BadCheckpoint: missing, torn or changed since it was written.
    """
    try:
        if shard.path.endswith(FOLDER):
            _check(shard, _tree_digest(Path(shard.path))[0])
            return Path(shard.path)
        with _open(shard.path) as file:
            _check(shard, _file_digest(file))
            file.seek(0)  # the same open file: what was verified is what is read
            return decode_state(_read(file, shard.path))
    except OSError as error:
        text = f"the checkpoint {shard.path} cannot be read: {error.strerror or error}"
        raise BadCheckpoint(text) from None


def load_checkpoint(path: str | os.PathLike[str]) -> Any:
    """The state in a file of ``tuner best --checkpoint`` or ``tuner run --params ... --checkpoints``.

    Args:
        path: such as ``final/rank-0.pt``, or an fsspec URI.

    Returns:
        The mapping that a rank saved, tensors on the CPU, or the ``Path`` of a checkpoint folder. No code
        in it is ever run.

    Raises:
        BadCheckpoint: it is not there, or no checkpoint.

    Example:
        >>> def objective(trial):
        ...     trial.save_checkpoint({"weight": 3.0}, step=1)
        ...     return 0.0
        >>> study = tuner.create_study("one", storage="sqlite:///tuner.db")
        >>> study = tuner.optimize(study, objective, n_trials=1, checkpoints="saved", executor="inline")
        >>> (file,) = Path("saved").rglob("rank-0.pt")
        >>> load_checkpoint(file)
        {'weight': 3.0}
    """
    name = os.fspath(path)
    if not _is_remote(name) and os.path.isdir(name):
        return Path(name)
    try:
        with _open(name) as file:
            return decode_state(_read(file, name))
    except OSError as error:
        raise BadCheckpoint(f"the checkpoint {name} cannot be read: {error.strerror or error}") from None


def copy(shard: Shard, target: Path) -> None:
    """Copy a shard to a file or folder of this machine; there it is not compressed any more.

    Raises:
        BadCheckpoint: a compressed one is damaged.
        OSError: it cannot be read, or written.
    """
    if shard.path.endswith(FOLDER):
        shutil.copytree(shard.path, target)
        return
    with _open(shard.path) as file, open(target, "wb") as out:
        shutil.copyfileobj(_plain(file), out, _CHUNK)


def verify(shard: Shard) -> bool:
    """True if the shard is there and is, byte for byte, what was written."""
    try:
        if shard.path.endswith(FOLDER):
            return _tree_digest(Path(shard.path))[0] == shard.digest
        with _open(shard.path) as file:
            return _file_digest(file) == shard.digest
    except (OSError, BadCheckpoint):
        return False


def delete(paths: Iterable[str]) -> None:
    """Remove shards, and the folders of their step and attempt once nothing is left in them.

    What is gone already, or cannot be removed, is left alone: a checkpoint too many harms nobody.
    """
    for path in paths:
        with contextlib.suppress(OSError):
            if _is_remote(path):
                system, where = _remote(path)
                system.rm(where)
            elif path.endswith(FOLDER):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        if not _is_remote(path):
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(path))
                os.rmdir(os.path.dirname(os.path.dirname(path)))


def write_text(path: str, text: str) -> None:
    """Write a small file beside the checkpoints, whole and durable on return.

    Raises:
        OSError: the file system refused.
    """
    with _atomic_file(path) as file:
        file.write(text.encode())


def read_text(path: str, most: int = 2**20) -> str | None:
    """A file that :func:`write_text` wrote; None where there is none of at most so many bytes."""
    try:
        if not _is_remote(path) and not os.path.isfile(path):
            return None  # a device would have no end
        with _open(path) as file:
            data = cast(bytes, file.read(most + 1))
            return data.decode() if len(data) <= most else None
    except (OSError, UnicodeDecodeError):
        return None


def is_folder(root: str) -> bool:
    """Whether a folder of checkpoints is on this machine's file system."""
    return os.path.isdir(root)


def sweep(root: str, kept: Iterable[str]) -> None:
    """Remove what killed ranks left below a trial's folder: half-written and unrecorded files.

    Args:
        root: of a trial that has ended, so that nobody writes there.
        kept: paths of the shards that stay.
    """
    stay = set(kept)
    with contextlib.suppress(OSError, BadInput):
        if _is_remote(root):
            system, where = _remote(root)
            left = {_remote(path)[1] for path in stay}
            for path in system.find(where) if system.exists(where) else []:
                if path not in left:
                    system.rm(path)
            return
        base = Path(root.removeprefix("file://"))
        for folder in sorted(base.rglob("*"), key=lambda path: -len(path.parts)):
            if any(str(folder) == path or str(folder).startswith(f"{path}/") for path in stay):
                continue
            with contextlib.suppress(OSError):  # a folder that holds what stays is not empty
                folder.rmdir() if folder.is_dir() and not folder.is_symlink() else folder.unlink()
        base.rmdir()


def finish_folder(made: str, final: str) -> None:
    """Give a folder that was filled its name, durably, in place of an older one.

    Args:
        made: on the file system of ``final``.
        final: ``<root>/a<attempt>/step-<step>/rank-<rank>.dir``.

    Raises:
        BadCheckpoint: it holds anything but regular files and folders.
    """
    for _, path in _tree(Path(made)):
        _sync(str(path))
    _sync(made)
    if os.path.lexists(final):  # the same step again: a folder cannot replace one that is not empty
        old = f"{made}.old"
        os.replace(final, old)
        shutil.rmtree(old)
    os.replace(made, final)
    _sync(os.path.dirname(final))


def folder_shard(final: str, rank: int) -> Shard:
    """The shard of a finished folder; its digest covers the names and contents of all files."""
    digest, size = _tree_digest(Path(final))
    return Shard(rank=rank, path=final, digest=digest, size=size)


class _Digesting:
    """A file to write to that counts and digests what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.size += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._hash.hexdigest()


def _path(root: str, attempt: int, step: int, name: str) -> str:
    if not root:
        raise BadInput("this trial has no folder for checkpoints; pass checkpoints=... to tuner.optimize")
    base = root.removeprefix("file://").rstrip("/")
    return f"{base}/a{attempt}/step-{step}/{name}"


def _is_remote(path: str) -> bool:
    return "://" in path and not path.startswith("file://")


@contextlib.contextmanager
def _atomic_file(path: str) -> Iterator[IO[bytes]]:
    if _is_remote(path):
        with _remote_file(path) as file:
            yield file
        return
    folder, name = os.path.split(path)
    make_folders(folder)
    temporary = os.path.join(folder, f".{name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync(folder)


@contextlib.contextmanager
def _remote_file(path: str) -> Iterator[IO[bytes]]:
    system, where = _remote(path)
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    if protocols & _OBJECT_STORES:
        with system.open(where, "wb") as file:
            yield file
        return
    system.makedirs(os.path.dirname(where), exist_ok=True)
    with system.open(f"{where}.tmp", "wb") as file:
        yield file
    system.mv(f"{where}.tmp", where)


def _remote(path: str) -> tuple[Any, str]:
    try:
        import fsspec

        system, where = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        text = f"checkpoints={path!r}: fsspec cannot open it ({error}); install the package for its protocol"
        raise BadInput(text) from None
    return system, str(where)


def _open(path: str) -> Any:
    if _is_remote(path):
        system, where = _remote(path)
        return system.open(where, "rb")
    return open(path, "rb")


def make_folders(folder: str) -> None:
    """Create a folder and what is missing above it, each durable in its parent."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(os.path.abspath(folder))
    make_folders(parent)
    with contextlib.suppress(FileExistsError):  # another rank was first
        os.mkdir(folder)
    _sync(parent)


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _tree(root: Path) -> list[tuple[str, Path]]:
    """Regular files and folders below ``root`` by relative name, sorted; empty folders count."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    found = []
    for path in root.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise BadCheckpoint(f"the checkpoint folder holds {path.name!r}, which is no regular file")
        found.append((path.relative_to(root).as_posix(), path))
    return sorted(found)


def _tree_digest(root: Path) -> tuple[str, int]:
    """SHA-256 over the sorted names and the contents' own digests, and the bytes of all files."""
    digest, size = hashlib.sha256(), 0
    for name, path in _tree(root):
        content = "folder"
        if path.is_file():
            size += path.stat().st_size
            with open(path, "rb") as file:
                content = _file_digest(file)
        digest.update(f"{len(name)} {name} {content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest(), size


def _plain(file: IO[bytes]) -> Any:
    """A shard's file without its compression."""
    is_compressed = file.read(len(MAGIC)) == MAGIC
    file.seek(0)
    return io.BufferedReader(Inflating(file), _CHUNK) if is_compressed else file


def _read(file: IO[bytes], path: str) -> Any:
    import torch

    try:
        return torch.load(_plain(file), map_location="cpu", weights_only=True)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{path}: {error}") from error
    except (EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise BadCheckpoint(f"{path} is no checkpoint of ours; nothing in it was run") from error


def _check(shard: Shard, found: str) -> None:
    if found != shard.digest:
        raise BadCheckpoint(
            f"the checkpoint {shard.path} is damaged: "
            f"its SHA-256 is {found[:16]}..., {shard.digest[:16]}... was written"
        )
