"""Functions of a user's: called and traced so that errors say whose they are, and described by name and contents, the
same in every process, another for other code or constants."""

from __future__ import annotations

import dis
import hashlib
import inspect
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import jax
import numpy as np

PLAIN = (bool, int, float, complex, str, bytes, type(...))
LIBRARIES = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@contextmanager
def blamed(what: str, way_out: str = "", kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Whatever a function of a user's raises within, of some kinds, as a TypeError that begins with `what` it is."""
    try:
        yield
    except kinds as error:
        message = str(error).partition("\n")[0]  # jax's go on for pages
        raise TypeError(f"{what} raises {type(error).__name__}: {message}{way_out}") from error


def check_traced(
    what: str,
    way_out: str,
    function: Any,
    program: Callable[..., Any],
    shapes: Sequence[tuple[int, ...]],
    made: tuple[int, ...],
) -> None:
    """TypeError, beginning with `what` a function has to do, unless `program`, which calls and differentiates it, takes
    arrays of `shapes` to one of shape `made`, all in the precision of the run. Nothing is compiled."""
    what, way_out = f"{what}, got {function!r}, which", f"; {way_out}"
    dtype = jax.dtypes.canonicalize_dtype(float)
    with blamed(what, way_out):
        result = jax.eval_shape(program, *(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))
    shape, kind = getattr(result, "shape", type(result).__name__), getattr(result, "dtype", "no array")
    if (shape, kind) != (made, dtype):
        raise TypeError(f"{what} makes {shape}, {kind} from {', '.join(map(str, shapes))}, {dtype}{way_out}")


def check_hashable(name: str, function: Any) -> None:
    """TypeError unless a function can be a key."""
    try:
        hash(function)
    except TypeError:
        message = f"{name} must be hashable to be compiled once, got {function!r}; say it as a def"
        raise TypeError(message) from None


def described(function: Callable[..., Any]) -> str:
    """Its name and a digest of its code, defaults, what it closes over or is bound to, and the globals that it reads:
    numbers, arrays, collections of them, and functions, these followed likewise unless they belong to a library.

    A library's functions are known by its version, objects of other kinds by their type.
    """
    inner = inspect.unwrap(function.func if isinstance(function, partial) else function)
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    digest = hashlib.sha256()
    for part in _parts(function, {}):
        digest.update(part + b"\0")
    return f"{name} {digest.hexdigest()[:8]}"


def plain(argument: Any) -> Any:
    """As a record keeps it: functions, in sequences too, by name and contents."""
    if isinstance(argument, tuple | list):
        return [plain(each) for each in argument]
    return described(argument) if callable(argument) else argument


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
    code = function.__code__
    read = [] if _is_of_a_library(function.__module__) else [_global(function, name) for name in _global_names(code)]
    return [function.__module__, code, function.__defaults__, function.__kwdefaults__, *cells, *read]


def _global_names(code: CodeType) -> list[str]:
    """Of the globals that code reads, that of functions within it included."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [_global_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return sorted(names.union(*inner))


def _global(function: FunctionType, name: str) -> Any:
    """The value of a global, or the name of its type where it is of a kind whose contents decide no number."""
    value = function.__globals__.get(name)
    kinds = (type(None), *PLAIN, *(kind for kind, _ in CONTENTS), ModuleType)
    return value if callable(value) or isinstance(value, kinds) else type(value).__qualname__


def _is_of_a_library(module: str | None) -> bool:
    """Whether a module belongs to this package, to Python or to an installed package."""
    if module is None:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    installed = file is not None and any(Path(file).resolve().is_relative_to(folder) for folder in LIBRARIES)
    return installed or module.partition(".")[0] == "nfd_jax"


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _of_array(array: Any) -> list[Any]:
    array = np.asarray(array)
    return [repr((array.shape, array.dtype)).encode(), array.tobytes()]


def _of_set(values: Any) -> list[Any]:
    return sorted(repr(part).encode() for part in values)


CONTENTS: tuple[tuple[type, Callable[[Any], list[Any]]], ...] = (
    (FunctionType, _of_function),
    (CodeType, lambda code: [code.co_code, *code.co_names, *code.co_consts]),
    (MethodType, lambda method: [method.__func__, method.__self__]),
    (partial, lambda function: [function.func, function.args, function.keywords]),
    *((kind, _of_array) for kind in (np.ndarray, np.generic, jax.Array)),
    (Mapping, lambda mapping: [part for item in mapping.items() for part in item]),
    *((kind, list) for kind in (list, tuple)),
    *((kind, _of_set) for kind in (set, frozenset)),
)
