"""What a user's function is, by name and contents: the same in every process, another for other code or constants."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import jax
import numpy as np

PLAIN = (bool, int, float, complex, str, bytes, type(...))


def described(function: Callable[..., Any]) -> str:
    """Its name and a digest of its code, defaults, and what it closes over or is bound to.

    Functions that it calls by a global name count by that name only.
    """
    inner = inspect.unwrap(function.func if isinstance(function, partial) else function)
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    digest = hashlib.sha256()
    for part in _parts(function, {}):
        digest.update(part + b"\0")
    return f"{name} {digest.hexdigest()[:8]}"


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    """Everything that makes a value what it is, in order; nothing is followed twice. `seen` keeps what it names."""
    yield type(value).__qualname__.encode()
    if value is None or isinstance(value, PLAIN):
        yield repr(value).encode()
        return
    if id(value) in seen:
        return
    seen[id(value)] = value
    if not isinstance(value, type) and callable(value):
        value = inspect.unwrap(value)  # of jax.jit and its like
    for part in _contents(value):
        if isinstance(part, bytes):
            yield part
        else:
            yield from _parts(part, seen)


def _contents(value: Any) -> list[Any]:
    """Bytes, and other values."""
    for kinds, contents in CONTENTS:
        if isinstance(value, kinds):
            return contents(value)
    if hasattr(value, "__qualname__") or isinstance(value, ModuleType):  # classes and what is built in: by name
        return [f"{getattr(value, '__module__', '')}.{value.__name__}".encode()]
    return [vars(value)] if hasattr(value, "__dict__") else [re.sub(r" at 0x\w+", "", repr(value)).encode()]


def _of_function(function: FunctionType) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    return [function.__module__, function.__code__, function.__defaults__, function.__kwdefaults__, *cells]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _of_array(array: Any) -> list[Any]:
    array = np.asarray(array)
    return [repr((array.shape, array.dtype)).encode(), array.tobytes()]


CONTENTS: tuple[tuple[Any, Callable[[Any], list[Any]]], ...] = (
    (FunctionType, _of_function),
    (CodeType, lambda code: [code.co_code, *code.co_names, *code.co_consts]),
    (MethodType, lambda method: [method.__func__, method.__self__]),
    (partial, lambda function: [function.func, function.args, function.keywords]),
    ((np.ndarray, np.generic, jax.Array), _of_array),
    (Mapping, lambda mapping: [part for item in mapping.items() for part in item]),
    ((list, tuple), list),
    ((set, frozenset), lambda found: sorted(repr(part).encode() for part in found)),
)
