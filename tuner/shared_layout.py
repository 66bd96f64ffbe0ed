"""The file in which shared data lies: a header in JSON, then the bytes of each array, tensor and table.

It is read by mapping it: what comes out lies on the mapping and is never copied, so that all processes
of a node hold the same pages. Nothing in it is ever run. The mapping is private, copy on write: NumPy arrays
are read-only, and what is written to a tensor stays in its process.

::

    8 bytes    TUNERSH1
    8 bytes    length of the header, little-endian
    header     {"kind": ..., ...}: the value as a tree; offsets count from the first byte after it
    parts      each at a multiple of 64 bytes
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, cast

from tuner.errors import BadInput

__all__ = ["Layout", "lay_out", "open_file"]

_MAGIC = b"TUNERSH1"
_ALIGN = 64  # of Arrow's buffers, and enough for vector instructions
_CHUNK = 2**24
_PLAIN = (type(None), bool, int, float, str)
_HELP = "give arrays, tensors, Arrow tables, plain values, and dicts, lists and tuples of them"

_Node = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Part:
    size: int
    write: Callable[[IO[bytes]], None]


@dataclass(kw_only=True)
class Layout:
    """A value as it will lie in a file; its arrays are written from where they are.

    Attributes:
        tree: the header.
        size: of the parts, in bytes.
    """

    tree: _Node = field(default_factory=dict)
    parts: list[_Part] = field(default_factory=list)
    size: int = 0

    def add(self, size: int, write: Callable[[IO[bytes]], None]) -> int:
        """Give a part its place: the offset."""
        offset = self.size
        self.parts.append(_Part(size=size, write=write))
        self.size += _aligned(size)
        return offset

    def write(self, file: IO[bytes]) -> None:
        """Write all of it, to a file or to what digests it."""
        head = self._head()
        file.write(head)
        for part in self.parts:
            part.write(file)
            file.write(bytes(_aligned(part.size) - part.size))

    def total(self) -> int:
        """Bytes of the whole file."""
        return len(self._head()) + self.size

    def _head(self) -> bytes:
        text = json.dumps(self.tree).encode()
        head = _MAGIC + len(text).to_bytes(8, "little") + text
        return head + bytes(_aligned(len(head)) - len(head))


def lay_out(value: Any) -> Layout:
    """Find each part of a value its place.

    Raises:
        BadInput: names the key of what cannot be shared.
    """
    layout = Layout()
    try:
        layout.tree = _encode(value, "data", layout)
    except RecursionError:
        raise BadInput("data is nested too deeply, or contains itself; give a flatter value") from None
    return layout


def open_file(path: str) -> Any:
    """The value that lies in a file, on a mapping of it.

    Raises:
        OSError: it is not there.
        BadInput: it is no file of ours.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 16 or file.read(8) != _MAGIC:
            raise BadInput(f"{path} is no file of shared data; remove it")
        # Without a reserve: a private mapping that could be written to may be larger than the memory.
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
        data = mmap.mmap(file.fileno(), size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    length = int.from_bytes(data[8:16], "little")
    return _decode(json.loads(data[16 : 16 + length]), data, _aligned(16 + length))


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _encode(value: Any, path: str, layout: Layout) -> _Node:
    kind = type(value)
    if kind in _PLAIN:
        return {"kind": "plain", "value": value}
    if kind is bytes:
        return _encode_bytes(value, layout)
    if kind is dict:
        items = [[_key(key, path), _encode(part, f"{path}[{key!r}]", layout)] for key, part in value.items()]
        return {"kind": "dict", "items": items}
    if kind in (list, tuple):
        parts = [_encode(part, f"{path}[{index}]", layout) for index, part in enumerate(value)]
        return {"kind": kind.__name__, "items": parts}
    package = kind.__module__.partition(".")[0]
    encode = _ENCODERS.get(package)
    if encode is None:
        raise BadInput(f"{path} is a {package}.{kind.__name__}; {_HELP}")
    return encode(value, path, layout)


def _key(key: Any, path: str) -> Any:
    if type(key) not in _PLAIN:
        raise BadInput(f"{path} has a key of type {type(key).__name__}; keys must be plain values")
    return key


def _encode_bytes(value: bytes, layout: Layout) -> _Node:
    offset = layout.add(len(value), lambda file: _write(file, value))
    return {"kind": "bytes", "offset": offset, "size": len(value)}


def _encode_array(value: Any, path: str, layout: Layout) -> _Node:
    import numpy

    if type(value) not in (numpy.ndarray, numpy.memmap) and not isinstance(value, numpy.generic):
        raise BadInput(f"{path} is a {type(value).__name__}; {_HELP}")
    array = numpy.asarray(value)
    if array.dtype.hasobject or numpy.dtype(array.dtype.str) != array.dtype:
        raise BadInput(f"{path} is a NumPy array of dtype {array.dtype}; give numbers or text")
    kind = "scalar" if isinstance(value, numpy.generic) else "array"
    offset = layout.add(array.nbytes, lambda file: _write_array(file, array))
    return {"kind": kind, "dtype": array.dtype.str, "shape": list(array.shape), "offset": offset}


def _write_array(file: IO[bytes], array: Any) -> None:
    import numpy

    if array.nbytes:
        _write(file, numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8).data)


def _encode_tensor(value: Any, path: str, layout: Layout) -> _Node:
    import torch

    if type(value) is not torch.Tensor or value.layout is not torch.strided or value.is_quantized:
        what = f"a torch {type(value).__name__} of layout {getattr(value, 'layout', 'none')}"
        raise BadInput(f"{path} is {what}; give a plain tensor, such as .detach() or .to_dense() makes")
    size = value.numel() * value.element_size()
    offset = layout.add(size, lambda file: _write_tensor(file, value))
    dtype = str(value.dtype).removeprefix("torch.")
    return {"kind": "tensor", "dtype": dtype, "shape": list(value.shape), "offset": offset}


def _write_tensor(file: IO[bytes], tensor: Any) -> None:
    import torch

    if tensor.numel():
        flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        _write(file, flat.view(torch.uint8).numpy().data)


def _encode_table(value: Any, path: str, layout: Layout) -> _Node:
    import pyarrow

    if type(value) is not pyarrow.Table:
        raise BadInput(f"{path} is a pyarrow {type(value).__name__}; give a pyarrow.Table")
    count = pyarrow.MockOutputStream()
    _write_table(count, value)
    offset = layout.add(count.size(), lambda file: _write_table(_FromZero(file), value))
    return {"kind": "table", "offset": offset, "size": count.size()}


def _write_table(sink: Any, table: Any) -> None:
    import pyarrow

    # one dictionary for all chunks: the format has room for no other
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.unify_dictionaries())


class _FromZero:
    """A file whose positions count from here: Arrow keeps them in what it writes."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._position = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._file.write(view)
        self._position += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Whoever made the file does."""


def _write(file: IO[bytes], data: Any) -> None:
    """Write in chunks, so that what digests or counts holds no second copy."""
    view = memoryview(data)
    for start in range(0, view.nbytes, _CHUNK):
        file.write(view[start : start + _CHUNK])


def _decode(node: _Node, data: mmap.mmap, base: int) -> Any:
    kind = node["kind"]
    if kind == "plain":
        return node["value"]
    if kind == "dict":
        return {key: _decode(part, data, base) for key, part in node["items"]}
    if kind in ("list", "tuple"):
        parts: Iterator[Any] = (_decode(part, data, base) for part in node["items"])
        return list(parts) if kind == "list" else tuple(parts)
    return _DECODERS[kind](node, data, base + node["offset"])


def _decode_bytes(node: _Node, data: mmap.mmap, offset: int) -> bytes:
    return data[offset : offset + cast(int, node["size"])]


def _decode_array(node: _Node, data: mmap.mmap, offset: int) -> Any:
    import numpy

    array = numpy.ndarray(node["shape"], numpy.dtype(node["dtype"]), buffer=data, offset=offset)
    array.flags.writeable = False
    return array


def _decode_tensor(node: _Node, data: mmap.mmap, offset: int) -> Any:
    import torch

    dtype, shape = getattr(torch, node["dtype"]), node["shape"]
    count = 1
    for length in shape:
        count *= length
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=offset).reshape(shape)


def _decode_table(node: _Node, data: mmap.mmap, offset: int) -> Any:
    import pyarrow

    part = memoryview(data)[offset : offset + node["size"]]
    return pyarrow.ipc.open_file(pyarrow.BufferReader(pyarrow.py_buffer(part))).read_all()


_ENCODERS: dict[str, Callable[[Any, str, Layout], _Node]] = {
    "numpy": _encode_array,
    "pyarrow": _encode_table,
    "torch": _encode_tensor,
}
_DECODERS: dict[str, Callable[[_Node, mmap.mmap, int], Any]] = {
    "array": _decode_array,
    "bytes": _decode_bytes,
    "scalar": lambda node, data, offset: _decode_array(node, data, offset)[()],
    "table": _decode_table,
    "tensor": _decode_tensor,
}
