"""The files of CIFAR-10, in its python and its binary version. Pickles are read without running any code in them."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

_PIXELS = 3 * 32 * 32
_RECORD = 1 + _PIXELS  # bytes of the binary version: a label, then the pixels
_FILES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_SUBFOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
_AGAIN = "extract it again from the archive of www.cs.toronto.edu/~kriz/cifar.html"


def read_split(folder: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images of a split, `(N, 3072)`, and their labels."""
    paths = _paths(folder, split)
    parts = [_read_binary(path) if path.suffix else _read_pickle(path) for path in paths]
    _check_counts(paths, [len(labels) for _, labels in parts])
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _paths(name: Any, split: str) -> list[Path]:
    """The files of a split, of the first version that is complete."""
    if not isinstance(name, str | Path):
        raise TypeError(f"folder must be a path, got {name!r} of type {type(name).__name__}")
    folder = Path(name)
    if not folder.is_dir():
        what = "is a file; extract archives first and" if folder.is_file() else "doesn't exist;"
        raise ValueError(f"folder {str(folder)!r} {what} give the folder that holds the files of CIFAR-10")
    partial = None
    for subfolder, suffix in product(_SUBFOLDERS, ("", ".bin")):
        paths = [folder / subfolder / f"{file}{suffix}" for file in _FILES[split]]
        missing = [path for path in paths if not path.is_file()]
        if not missing:
            return paths
        if len(missing) < len(paths) and partial is None:
            partial = missing
    if partial is not None:
        raise ValueError(f"{str(partial[0])!r} is missing, while other files of the {split} split are there; {_AGAIN}")
    names = " to ".join(sorted({_FILES[split][0], _FILES[split][-1]}))
    raise ValueError(
        f"folder {str(folder)!r} has no file of the {split} split of CIFAR-10; give the folder that holds {names}, "
        f"with or without .bin, or the one above {_SUBFOLDERS[1]} or {_SUBFOLDERS[2]}"
    )


def _check_counts(paths: list[Path], counts: list[int]) -> None:
    """Files of the set all have as many images, so that one with fewer is cut."""
    meta = paths[0].parent / "batches.meta"
    stated = _unpickled(meta).get("num_cases_per_batch") if meta.is_file() else None
    if stated is not None:
        source = f"{meta.name} states"
    elif paths[0].suffix:  # sizes tell without reading, also for the other split
        every = [paths[0].with_name(f"{name}.bin") for names in _FILES.values() for name in names]
        stated, source = max(path.stat().st_size // _RECORD for path in every if path.is_file()), "another file has"
    else:
        stated, source = max(counts), "another file has"
    for path, count in zip(paths, counts, strict=True):
        if count != stated:
            raise ValueError(f"{str(path)!r} has {count} images, while {source} {stated!r}; {_AGAIN}")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{str(path)!r} can't be read ({error.strerror}); {_AGAIN}") from error


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a file of the binary version."""
    content = _bytes(path)
    if not content or len(content) % _RECORD:
        raise ValueError(
            f"{str(path)!r} has {len(content)} bytes, which is no positive multiple of the {_RECORD} of an image: "
            f"it is cut, or not of CIFAR-10; {_AGAIN}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    return records[:, 1:], _labels(path, records[:, 0].tolist())


def _read_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a file of the python version."""
    batch = _unpickled(path)
    missing = {"data", "labels"} - batch.keys()
    if missing:
        listed = ", ".join(map(repr, batch)) or "nothing"
        raise ValueError(f"{str(path)!r} must hold 'data' and 'labels', got {listed[:200]}; {_AGAIN}")
    images, labels = _image_array(path, batch["data"]), batch["labels"]
    if not isinstance(labels, list) or len(labels) != len(images):
        given = f"{len(labels)} labels" if isinstance(labels, list) else type(labels).__name__
        raise ValueError(f"{str(path)!r} must hold a list of {len(images)} labels, one an image, got {given}; {_AGAIN}")
    return images, _labels(path, labels)


def _labels(path: Path, labels: list[Any]) -> np.ndarray:
    wrong = [index for index, label in enumerate(labels) if label not in range(10)]
    if wrong:
        raise ValueError(
            f"{str(path)!r} must have labels from 0 to 9, got {str(labels[wrong[0]])[:40]} at image {wrong[0]}: "
            f"it is damaged, or not of CIFAR-10; {_AGAIN}"
        )
    return np.array(labels, dtype=np.int64)


@dataclass(eq=False)
class _Part:
    """What a pickle asks numpy to make: the arguments and state are kept, and numpy is never called with them."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


_MAKERS = ("_reconstruct", "_frombuffer", "ndarray", "dtype")
# where numpy 1 and 2 have the makers of arrays
_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")


class _Unpickler(pickle.Unpickler):
    """Numbers, strings, lists, dictionaries and the parts of arrays; every other name is refused, so no code runs."""

    def find_class(self, module: str, name: str) -> Any:
        # functions are made anew: a pickle may set attributes of what it gets, and must not reach another one's
        if module in _MODULES and name in _MAKERS:
            return lambda *arguments: _Part(name, arguments)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, _encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of CIFAR-10 needs")


def _unpickled(path: Path) -> dict[str, Any]:
    """The dictionary in a file of the python version, whose keys are bytes where Python 2 wrote them."""
    file = io.BytesIO(_bytes(path))
    try:
        content = _Unpickler(file, encoding="bytes").load()
    except Exception as error:  # damaged bytes raise almost any
        raise ValueError(f"{str(path)!r} is no file of CIFAR-10, or is damaged or cut ({error}); {_AGAIN}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} must hold a dictionary, got {type(content).__name__}; {_AGAIN}")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def _image_array(path: Path, data: Any) -> np.ndarray:
    """The array that a part describes."""
    match data:
        case _Part("_reconstruct", _, (_, shape, _Part("dtype", (kind, *_)), fortran, bytes(content))):
            pass
        case _Part("_frombuffer", (bytes(content) | bytearray(content), _Part("dtype", (kind, *_)), shape, order)):
            fortran = order == "F"
        case _:
            raise ValueError(f"{str(path)!r} must hold an array 'data', got {type(data).__name__}; {_AGAIN}")
    count = len(content) // _PIXELS
    if kind not in ("u1", b"u1") or shape != (count, _PIXELS) or count == 0 or len(content) != count * _PIXELS:
        raise ValueError(
            f"{str(path)!r} must hold 'data' of shape (N, {_PIXELS}) and type 'u1', got shape {shape!r} and type "
            f"{kind!r} in {len(content)} bytes; {_AGAIN}"
        )
    return np.frombuffer(content, np.uint8).reshape(count, _PIXELS, order="F" if fortran else "C")
