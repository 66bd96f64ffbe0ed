"""Samplers and pruners by name, by a call as text, or as Optuna's own objects.

``"tpe"``, ``"tpe(n_startup_trials=20)"`` and ``"patient(median(), patience=3)"`` are read with
Python's own parser: literals and nested calls of the names below, and nothing else is run.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from tuner.errors import BadInput

__all__ = [
    "PRUNERS",
    "SAMPLERS",
    "TESTED",
    "draws_alone",
    "kept",
    "pruner",
    "reseed",
    "resources",
    "sampler",
    "seed_of",
    "settle",
    "text_of",
]

TESTED = "5.0."
"""The Optuna whose decisions ours were compared with; under another one its own classes decide."""

SAMPLERS: Mapping[str, str] = {
    "bruteforce": "BruteForceSampler",
    "cmaes": "CmaEsSampler",
    "gp": "GPSampler",
    "grid": "GridSampler",
    "nsgaii": "NSGAIISampler",
    "nsgaiii": "NSGAIIISampler",
    "partialfixed": "PartialFixedSampler",
    "qmc": "QMCSampler",
    "random": "RandomSampler",
    "tpe": "TPESampler",
}
"""Names of samplers, and Optuna's classes."""

PRUNERS: Mapping[str, str] = {
    "asha": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "median": "MedianPruner",
    "none": "NopPruner",
    "nop": "NopPruner",
    "patient": "PatientPruner",
    "percentile": "PercentilePruner",
    "successivehalving": "SuccessiveHalvingPruner",
    "threshold": "ThresholdPruner",
    "wilcoxon": "WilcoxonPruner",
}
"""Names of pruners, and Optuna's classes."""

_TEXT = "_tuner_text"  # on an object that was made here: the text that it was made from
_RESOURCES = ("_min_resource", "_max_resource")  # in which Optuna's pruners keep them


def sampler(spec: str | BaseSampler | None, seed: int, objectives: int = 1) -> BaseSampler:
    """The sampler of a specification; None is Optuna's default.

    Args:
        seed: given to those that take one, unless the text says another.
        objectives: number of objectives; kept for samplers that need it.

    Raises:
        BadInput: no such name, or an argument that it does not take.

    Example:
        >>> type(sampler("tpe(n_startup_trials=20)", 1)).__name__
        'TPESampler'
    """
    if isinstance(spec, BaseSampler):
        return spec
    if spec is None:
        spec = "tpe"
    if not isinstance(spec, str):
        raise BadInput(f"sampler={spec!r}: give a name such as 'tpe', a call as text, or an Optuna sampler")
    return _made(spec, "sampler", seed)  # type: ignore[no-any-return]


def pruner(spec: str | BasePruner | None) -> BasePruner:
    """The pruner of a specification; None is Optuna's default.

    Raises:
        BadInput: no such name, or an argument that it does not take.
    """
    if isinstance(spec, BasePruner):
        return spec
    if spec is None:
        spec = "median"
    if not isinstance(spec, str):
        raise BadInput(
            f"pruner={spec!r}: give a name such as 'hyperband', a call as text, or an Optuna pruner"
        )
    return _made(spec, "pruner", 0)  # type: ignore[no-any-return]


def text_of(spec: object) -> str | None:
    """What is kept in the store: the text, or None for an object that no text describes.

    A pruner keeps its arguments, so that it can be written down, with the resources that it decided
    on the way; a sampler drops some.
    """
    if spec is None or isinstance(spec, str):
        return spec if spec is not None else None
    known = getattr(spec, _TEXT, None)
    if isinstance(spec, BasePruner):
        text = _pruner_text(spec)
        as_given = isinstance(known, str) and text in (None, _pruner_text(pruner(known)))
        return known if as_given else text
    if isinstance(known, str):
        return known
    if isinstance(spec, BaseSampler) and _is_default_tpe(spec):
        return "tpe"
    return "random" if type(spec) is optuna.samplers.RandomSampler else None


def resources(given: BasePruner) -> tuple[object, object]:
    """The least and the most steps of a pruner, which some decide when the first trial is complete."""
    kept = vars(_innermost(given))  # this is asked around every verdict
    return kept.get(_RESOURCES[0]), kept.get(_RESOURCES[1])


def settle(given: BasePruner, kept: str | None) -> None:
    """Let a pruner have the resources that the study's pruner had decided on, where it has decided none
    itself: the brackets and rungs of a study stay as they are over its resumes.

    Args:
        kept: text of the study's pruner; nothing is done where it is another one, or has other arguments.
    """
    before = pruner(kept) if kept else None
    if before is None or type(_innermost(given)) is not type(_innermost(before)):
        return
    mine, as_given = vars(_innermost(given)), resources(given)
    for name, own, decided in zip(_RESOURCES, as_given, resources(before), strict=True):
        if own in (None, "auto") and name in mine:
            mine[name] = decided
    if _pruner_text(given) != _pruner_text(before):
        mine |= {name: own for name, own in zip(_RESOURCES, as_given, strict=True) if name in mine}


def seed_of(given: BaseSampler) -> int | None:
    """A seed for a study that follows from the seed of its sampler: the next number of its generator.

    Returns:
        31 bits, at random for a sampler without a seed; None for one without a generator.
    """
    generator = next(iter(_generators(given, set())), None)
    if generator is None:
        return None
    draw = generator.randint if isinstance(generator, np.random.RandomState) else generator.integers
    return int(draw(2**31))


def kept(given: BaseSampler) -> BaseSampler:
    """The sampler that serves a driven study: for Optuna's TPE, ours, which keeps its history.

    It has the same settings and generators, and suggests the same. Any other object, a subclass of
    TPE among them, stays as it is.
    """
    if type(given) is not optuna.samplers.TPESampler or not optuna.__version__.startswith(TESTED):
        return given
    from tuner.tpe import TPESampler

    return TPESampler.of(given)


def draws_alone(given: BaseSampler) -> bool:
    """Whether a parameter may be drawn before the trial asks for it: the draw looks at nothing that the
    trial has suggested, and warns of nothing.
    """
    if isinstance(given, optuna.samplers.TPESampler):
        return type(given).__module__.startswith(("optuna.", "tuner.")) and not given._multivariate
    return type(given) in (optuna.samplers.RandomSampler, optuna.samplers.GridSampler)


def reseed(target: BaseSampler, seed: int) -> None:
    """Make what a sampler draws next follow from ``seed`` alone.

    Every generator inside it is seeded, nested samplers included. A quasi-random sequence is not
    disturbed: its points follow from its own seed and the trial's number.
    """
    for at, generator in enumerate(_generators(target, set())):
        derived = (seed + at * 0x9E3779B1) % 2**32
        if isinstance(generator, np.random.RandomState):
            generator.seed(derived)
        else:
            fresh = np.random.default_rng(derived)
            generator.bit_generator.state = fresh.bit_generator.state


def _generators(target: object, seen: set[int]) -> list[Any]:
    """The random generators inside an object of Optuna's, in a stable order."""
    if id(target) in seen:
        return []
    seen.add(id(target))
    if isinstance(target, np.random.RandomState):
        return [target]
    if isinstance(target, np.random.Generator):
        return [target] if hasattr(target.bit_generator, "state") else []
    if type(target).__name__ == "LazyRandomState":
        return [target.rng]  # type: ignore[attr-defined]
    of_optuna = any(base.__module__.startswith("optuna.") for base in type(target).__mro__)
    if not of_optuna or not hasattr(target, "__dict__"):
        return []
    return [found for _, value in sorted(vars(target).items()) for found in _generators(value, seen)]


def _made(text: str, kind: str, seed: int) -> Any:
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise BadInput(f"{kind}={text!r} is neither a name nor a call such as {_example(kind)}") from None
    made = _build(node, kind, seed, text)
    setattr(made, _TEXT, text)
    return made


def _build(node: ast.expr, kind: str, seed: int, text: str) -> Any:
    if isinstance(node, ast.Name):
        node = ast.Call(func=node, args=[], keywords=[])
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise BadInput(f"{kind}={text!r} is neither a name nor a call such as {_example(kind)}")
    cls = _class(node.func.id, kind)
    if any(part.arg is None for part in node.keywords):
        raise BadInput(f"{kind}={text!r}: write the arguments out as name=value, without **")
    positional = [_value(part, seed, text) for part in node.args]
    named = {part.arg: _value(part.value, seed, text) for part in node.keywords if part.arg}
    if "seed" in inspect.signature(cls.__init__).parameters:
        named.setdefault("seed", seed % 2**32)  # NumPy takes no more
    try:
        bound = inspect.signature(cls).bind(*positional, **named)
    except TypeError as error:
        takes = ", ".join(inspect.signature(cls).parameters)
        raise BadInput(f"{kind}={text!r}: {node.func.id}: {error}; it takes {takes or 'nothing'}") from None
    for name, value in bound.arguments.items():
        _check_type(f"{kind}={text!r}: {name}={value!r}", bound.signature.parameters[name].annotation, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return cls(*positional, **named)
    except (TypeError, ValueError, ImportError) as error:
        raise BadInput(f"{kind}={text!r}: {error}") from error


_KINDS: Mapping[str, Any] = {
    "BasePruner": BasePruner,
    "BaseSampler": BaseSampler,
    "None": type(None),
    "bool": bool,
    "float": (int, float),
    "int": int,
    "str": str,
}


def _check_type(where: str, annotation: object, value: Any) -> None:
    """Refuse a value of the wrong type, which Optuna would meet only in the middle of a study."""
    names = str(annotation).replace(" ", "").split("|")
    known = all(name in _KINDS for name in names)
    if known and not any(isinstance(value, _KINDS[name]) for name in names):
        raise BadInput(f"{where} is {type(value).__name__}; give {annotation}")


def _value(node: ast.expr, seed: int, text: str) -> Any:
    """A literal, or a nested sampler or pruner."""
    name = node.func if isinstance(node, ast.Call) else node
    if isinstance(name, ast.Name):
        pruners = name.id in PRUNERS.values() or _short(name.id) in PRUNERS
        return _build(node, "pruner" if pruners else "sampler", seed, text)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise BadInput(
            f"{text!r}: {ast.unparse(node)!r} is no literal; give numbers, text, lists or dicts"
        ) from None


def _class(name: str, kind: str) -> Callable[..., Any]:
    known = SAMPLERS if kind == "sampler" else PRUNERS
    module = optuna.samplers if kind == "sampler" else optuna.pruners
    if name in known.values():
        return getattr(module, name)  # type: ignore[no-any-return]
    short = _short(name)
    if short in known:
        return getattr(module, known[short])  # type: ignore[no-any-return]
    near = difflib.get_close_matches(short, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise BadInput(f"there is no {kind} {name!r}; {hint}choose from: {', '.join(known)}")


def _short(name: str) -> str:
    return name.lower().replace("_", "")


def _example(kind: str) -> str:
    return "'tpe(n_startup_trials=20)'" if kind == "sampler" else "'hyperband(min_resource=1)'"


def _pruner_text(given: BasePruner) -> str | None:
    """A built-in pruner as a call, from the attributes in which it keeps its arguments."""
    cls = type(given)
    if cls.__name__ not in PRUNERS.values():
        return None
    parts, signature = [], inspect.signature(cls)
    for name in signature.parameters:
        value = getattr(given, f"_{name}", inspect.Parameter.empty)
        if value is None and signature.parameters[name].default is not None and name != "wrapped_pruner":
            continue  # an "auto" that is not decided yet
        if isinstance(value, BasePruner):
            nested = _pruner_text(value)
            if nested is None:
                return None
            parts.append(f"{name}={nested}")
        elif isinstance(value, int | float | str | None):
            parts.append(f"{name}={_literal(value)}")
    text = f"{cls.__name__}({', '.join(parts)})"
    try:
        again = vars(pruner(text))
    except BadInput:
        return None
    return text if all(again.get(name) == value for name, value in _arguments(given).items()) else None


def _innermost(given: BasePruner) -> BasePruner:
    wrapped = getattr(given, "_wrapped_pruner", None)
    return given if wrapped is None or not isinstance(wrapped, BasePruner) else _innermost(wrapped)


def _arguments(given: BasePruner) -> dict[str, object]:
    """The arguments of a pruner as it keeps them; what it wraps is compared as text."""
    names = {f"_{name}" for name in inspect.signature(type(given)).parameters}
    return {
        name: value
        for name, value in vars(given).items()
        if name in names and not isinstance(value, BasePruner)
    }


def _literal(value: object) -> str:
    """As ``repr``, but an infinity as a number that overflows: a literal has no name for it."""
    return repr(value).replace("inf", "1e999") if isinstance(value, float) else repr(value)


def _is_default_tpe(given: BaseSampler) -> bool:
    """Whether it is a TPE sampler as ``create_study`` makes it; its seed does not matter."""
    if type(kept(given)) is not type(kept(optuna.samplers.TPESampler())):
        return False
    plain = vars(optuna.samplers.TPESampler())
    compared = (bool, int, float, str, tuple, type, FunctionType, type(None))
    own = {name: value for name, value in vars(given).items() if name in plain}
    return all(
        value == plain[name]
        for name, value in own.items()
        if isinstance(value, compared) or plain[name] is None
    )
