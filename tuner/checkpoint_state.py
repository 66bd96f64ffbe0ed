"""Which states can be checkpointed, and the form in which ``torch.load(weights_only=True)`` reads them.

A state is a mapping of tensors, NumPy arrays and scalars, and plain values, nested in dicts,
lists, tuples and sets. What torch's restricted reader would refuse is written as a tagged tuple
of things that it admits: no class is ever named in the file, so none is ever called on reading.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from tuner.errors import BadCheckpoint

__all__ = ["decode_state", "encode_state"]

_TAG = "tuner:tagged"
_SCALARS = (type(None), bool, float, str)
_HELP = "give tensors, NumPy arrays, plain values, and dicts, lists, tuples or sets of them"


def encode_state(state: Any) -> Any:
    """The state as tensors, plain containers and tagged tuples.

    Raises:
        BadCheckpoint: names the key of the first value that cannot be kept.
    """
    if type(state) not in (dict, OrderedDict):
        raise BadCheckpoint(f"state is a {_name(type(state))}; give a dict, such as {{'model': ...}}")
    try:
        return _encode(state, "state", ())
    except RecursionError:
        raise BadCheckpoint("state is nested too deeply; give a flatter mapping") from None


def decode_state(encoded: Any) -> Any:
    """The state that :func:`encode_state` was given: the same types, shapes and values."""
    kind = type(encoded)
    if kind is dict:
        return {_decode_key(key): decode_state(value) for key, value in encoded.items()}
    if kind is list:
        return [decode_state(value) for value in encoded]
    if kind is tuple:
        if _is_tagged(encoded):
            return _DECODERS[encoded[1]](*encoded[2:])
        return tuple(decode_state(value) for value in encoded)
    return encoded


def _encode(value: Any, path: str, parents: tuple[int, ...]) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is int:
        # The reader takes 64 bits for sure; NumPy's generators hold 128.
        return value if value.bit_length() < 64 else (_TAG, "int", hex(value))
    if kind is bytes:
        return (_TAG, "bytes", bytearray(value))
    if kind is complex:
        return (_TAG, "complex", value.real, value.imag)
    if kind in _CONTAINERS:
        if id(value) in parents:
            raise BadCheckpoint(f"{path} contains itself; give a state without cycles")
        return _CONTAINERS[kind](value, path, (*parents, id(value)))
    return _encode_array(value, path)


def _encode_dict(value: dict[Any, Any], path: str, parents: tuple[int, ...]) -> dict[Any, Any]:
    return {_encode_key(key, path): _encode(part, f"{path}[{key!r}]", parents) for key, part in value.items()}


def _encode_ordered(value: OrderedDict[Any, Any], path: str, parents: tuple[int, ...]) -> Any:
    # Modules keep the versions of their state in this attribute of state_dict().
    metadata = getattr(value, "_metadata", None)
    extra = None if metadata is None else _encode(metadata, f"{path}._metadata", parents)
    return (_TAG, "ordered", _encode_dict(value, path, parents), extra)


def _encode_list(value: list[Any], path: str, parents: tuple[int, ...]) -> list[Any]:
    return [_encode(part, f"{path}[{index}]", parents) for index, part in enumerate(value)]


def _encode_tuple(value: tuple[Any, ...], path: str, parents: tuple[int, ...]) -> tuple[Any, ...]:
    parts = _encode_list(list(value), path, parents)
    return (_TAG, "tuple", parts) if _is_tagged(value) else tuple(parts)


def _is_tagged(value: tuple[Any, ...]) -> bool:
    return bool(value) and type(value[0]) is str and value[0] == _TAG


def _encode_set(value: set[Any] | frozenset[Any], path: str, parents: tuple[int, ...]) -> Any:
    return (_TAG, type(value).__name__, [_encode(part, f"{path}{{{part!r}}}", parents) for part in value])


def _encode_key(key: Any, path: str) -> Any:
    if type(key) in (*_SCALARS, int):
        return _encode(key, path, ())
    if type(key) is tuple and not _is_tagged(key):
        return tuple(_encode_key(part, path) for part in key)
    raise BadCheckpoint(f"{path} has a key of type {_name(type(key))}; keys must be plain values")


def _decode_key(key: Any) -> Any:
    return decode_state(key) if type(key) is tuple else key


def _encode_array(value: Any, path: str) -> Any:
    import numpy
    import torch

    if isinstance(value, torch.Tensor):
        return _encode_tensor(value, path)
    if type(value) is torch.Size:
        return (_TAG, "size", list(value))
    if type(value) is numpy.ndarray or isinstance(value, numpy.generic):
        array = numpy.asarray(value)
        if array.dtype.hasobject or numpy.dtype(array.dtype.str) != array.dtype:
            raise BadCheckpoint(f"{path} is a NumPy array of dtype {array.dtype}; give numbers or text")
        name = "array" if type(value) is numpy.ndarray else "scalar"
        data = torch.frombuffer(_writable(array), dtype=torch.uint8) if array.nbytes else None
        return (_TAG, name, array.dtype.str, list(array.shape), data)
    raise BadCheckpoint(f"{path} is a {_name(type(value))}; {_HELP}")


def _writable(array: Any) -> Any:
    """The bytes of an array, itself where torch takes it as it is: a large one is not copied."""
    import numpy

    flat = numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8)
    return flat.data if flat.flags.writeable else bytearray(flat.data)


def _encode_tensor(value: Any, path: str) -> Any:
    import torch

    if type(value) is torch.nn.Parameter:
        # Not as itself: its hooks and its graph stay behind.
        return (_TAG, "parameter", value.detach(), value.requires_grad)
    if type(value) is not torch.Tensor:
        raise BadCheckpoint(f"{path} is a {_name(type(value))}; give this rank's part as a plain tensor")
    return (_TAG, "gradient", value.detach()) if value.requires_grad else value


def _decode_array(dtype: str, shape: list[int], data: Any) -> Any:
    import numpy

    if data is None:
        return numpy.empty(shape, numpy.dtype(dtype))
    return data.numpy().view(numpy.dtype(dtype)).reshape(shape)  # on what was read, which is nobody else's


def _decode_ordered(items: Any, metadata: Any) -> OrderedDict[Any, Any]:
    ordered = OrderedDict(decode_state(items))
    if metadata is not None:
        ordered._metadata = decode_state(metadata)  # type: ignore[attr-defined]
    return ordered


def _decode_size(sizes: list[int]) -> Any:
    import torch

    return torch.Size(sizes)


def _decode_parameter(data: Any, requires_grad: bool) -> Any:
    import torch

    return torch.nn.Parameter(data, requires_grad=requires_grad)


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


_CONTAINERS: dict[type, Callable[[Any, str, tuple[int, ...]], Any]] = {
    dict: _encode_dict,
    OrderedDict: _encode_ordered,
    list: _encode_list,
    tuple: _encode_tuple,
    set: _encode_set,
    frozenset: _encode_set,
}

_DECODERS: dict[str, Callable[..., Any]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes,
    "complex": complex,
    "ordered": _decode_ordered,
    "tuple": lambda parts: tuple(decode_state(parts)),
    "set": lambda parts: set(decode_state(parts)),
    "frozenset": lambda parts: frozenset(decode_state(parts)),
    "size": _decode_size,
    "array": _decode_array,
    "scalar": lambda dtype, shape, data: _decode_array(dtype, shape, data)[()],
    "parameter": _decode_parameter,
    "gradient": lambda data: data.requires_grad_(),
}
