"""The compressed form of a checkpoint: chunks of 1 MiB, each of which is compressed only if that pays.

Neither writing nor reading ever holds more of it than a chunk, and any place in it can be read alone.
Sizes are recorded and checked before anything is decompressed: a chunk cannot become larger than 1 MiB.

::

    8 bytes       TUNERCK1
    chunks        zstd, or as they are where the stored length is the chunk's own
    4 bytes each  stored length of every chunk, little-endian
    8 bytes       size of what was written;  8 bytes  number of chunks
"""

from __future__ import annotations

import io
import os
import struct
from itertools import accumulate
from typing import IO, Any

from tuner.errors import BadCheckpoint

__all__ = ["MAGIC", "Compressing", "Inflating"]

MAGIC = b"TUNERCK1"
_CHUNK = 2**20
_END = struct.Struct("<QQ")
_PAYS = (
    7 / 8
)  # of a chunk's size: weights and moments in float32 shrink by less, and are read much faster as is
_LEVEL = 1  # level 3 takes twice as long for the same size, on weights and on sparse data


class Compressing:
    """A file to write to; :meth:`finish` writes what is left.

    Args:
        file: for the compressed bytes.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._codec = _codec()
        self._buffer = bytearray()
        self._lengths: list[int] = []
        self._size = 0
        file.write(MAGIC)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        position = 0
        while position < len(view):
            part = view[position : position + _CHUNK - len(self._buffer)]
            self._buffer += part
            position += len(part)
            if len(self._buffer) == _CHUNK:
                self._put()
        return len(view)

    def flush(self) -> None:
        """Nothing: a chunk is written when it is full."""

    def finish(self) -> None:
        """Write the last chunk and the sizes."""
        if self._buffer:
            self._put()
        self._file.write(struct.pack(f"<{len(self._lengths)}I", *self._lengths))
        self._file.write(_END.pack(self._size, len(self._lengths)))

    def _put(self) -> None:
        chunk = bytes(self._buffer)
        self._buffer.clear()
        packed = self._codec.compress(chunk, asbytes=True)
        stored = packed if len(packed) < _PAYS * len(chunk) else chunk
        self._file.write(stored)
        self._lengths.append(len(stored))
        self._size += len(chunk)


class Inflating(io.RawIOBase):
    """What was written to :class:`Compressing`, to be read from any place.

    Args:
        file: the compressed bytes, from their start.

    Raises:
        BadCheckpoint: the recorded sizes contradict each other; on reading, a chunk is not of its size.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._codec = _codec()
        whole = file.seek(0, os.SEEK_END)
        if whole < len(MAGIC) + _END.size:
            raise BadCheckpoint("a compressed checkpoint ends too early")
        file.seek(whole - _END.size)
        self._size, count = _END.unpack(file.read(_END.size))
        index = 4 * count
        if count != -(-self._size // _CHUNK) or whole < len(MAGIC) + index + _END.size:
            raise BadCheckpoint(f"a compressed checkpoint of {self._size} bytes cannot be {count} chunks")
        file.seek(whole - _END.size - index)
        self._lengths = struct.unpack(f"<{count}I", file.read(index))
        self._starts = [0, *accumulate(self._lengths)]
        if (
            self._starts[-1] != whole - len(MAGIC) - index - _END.size
            or max(self._lengths, default=0) > _CHUNK
        ):
            raise BadCheckpoint("the chunks of a compressed checkpoint are not where its index says")
        self._position = 0
        self._held, self._chunk = -1, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:
            return 0
        number, start = divmod(self._position, _CHUNK)
        if number != self._held:
            self._chunk, self._held = self._inflated(number), number
        part = memoryview(self._chunk)[start : start + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _inflated(self, number: int) -> bytes:
        wanted = min(_CHUNK, self._size - number * _CHUNK)
        self._file.seek(len(MAGIC) + self._starts[number])
        stored = self._file.read(self._lengths[number])
        if len(stored) == wanted:
            return stored
        try:
            chunk = bytes(self._codec.decompress(stored, wanted, asbytes=True))
        except (OSError, ValueError) as error:
            raise BadCheckpoint(f"chunk {number} of a compressed checkpoint is damaged: {error}") from error
        if len(chunk) != wanted:
            raise BadCheckpoint(
                f"chunk {number} of a compressed checkpoint has {len(chunk)} bytes, not {wanted}"
            )
        return chunk


def _codec() -> Any:
    import pyarrow

    return pyarrow.Codec("zstd", compression_level=_LEVEL)
