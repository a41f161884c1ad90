"""Data sets as tasks: handwritten digits that come with scikit-learn, CIFAR-10 from its files, Gaussian teachers."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from nfd_jax._checks import boolean, check_array, finite_array, finite_float, one_of, positive_int, positive_ints
from nfd_jax._functions import blamed
from nfd_jax.seeds import check_seed
from nfd_jax.task import Loss, Task, check_loss

SPLITS = ("train", "test")


def digits(
    samples: int = 16,
    classes: Sequence[int] = (0, 1),
    *,
    loss: Loss = "mse",
    split: str = "train",
    seed: int = 0,
    normalise: bool = True,
) -> Task:
    """Handwritten digits (8 x 8 pixels, d = 64) of the given classes, as many of each as possible.

    **Arguments:**

    - `samples`: P. Samples alternate between the classes, so that P = 16 with two classes takes 8 of each.
    - `classes`: at least two distinct digits from 0 to 9.
    - `loss`: `"mse"`, `"cross_entropy"` or a function of one's own, as for `Task`.
    - `split`: `"train"` or `"test"`, disjoint: of every class, the last third of its shuffled images is for tests.
    - `seed`: which images are drawn.
    - `normalise`: scale every image to |x|^2 = d; otherwise pixels are the raw ones, 0 to 16.

    Two classes give targets -1 and +1 and one output, more give one-hot targets; cross-entropy gives one output a
    class.
    """
    from sklearn.datasets import load_digits  # a slow import, only needed here

    def read() -> tuple[np.ndarray, np.ndarray]:
        images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
        return images, labels

    return _drawn("digit", read, samples, classes, loss, split, seed, normalise, divide=True)


def cifar10(
    folder: str | Path,
    samples: int = 16,
    classes: Sequence[int] = (0, 1),
    *,
    loss: Loss = "mse",
    split: str = "train",
    seed: int = 0,
    normalise: bool = True,
) -> Task:
    """CIFAR-10 (32 x 32 pixels in three colours, d = 3072), from its files in a folder; nothing is downloaded.

    **Arguments:**

    - `folder`: holds the files of the python version (`data_batch_1` to `_5`, `test_batch`) or those of the binary
      version (the same with `.bin`), or is one above `cifar-10-batches-py` or `cifar-10-batches-bin`.
      Both versions give the same task.
    - `samples`, `classes`, `loss`: as for `digits`. The classes are 0 airplane, 1 automobile, 2 bird, 3 cat, 4 deer,
      5 dog, 6 frog, 7 horse, 8 ship and 9 truck.
    - `split`: `"train"` draws from the 50,000 training images, `"test"` from the 10,000 others.
      Only the files of the split are read.
    - `seed`: which images are drawn.
    - `normalise`: scale every image to |x|^2 = d; otherwise pixels are the raw ones, 0 to 255. They are not centred
      either way: all are positive, so any two images have a large inner product.

    Targets are those of `digits`. Raises ValueError where a file is missing, cut or not CIFAR-10. A file is cut when
    it has fewer images than `batches.meta` states. Where that is absent, as in the binary version, it is cut when it
    has a part of a record, or fewer images than another: of the split, or in the binary version of the folder. Files
    all cut alike between two records pass then. Files of the python version are pickles; no code in them is run.
    """

    def read() -> tuple[np.ndarray, np.ndarray]:
        paths = _cifar_paths(folder, split)
        parts = [_read_binary(path) if path.suffix else _read_pickle(path) for path in paths]
        _check_counts(paths, [len(labels) for _, labels in parts])
        return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])

    return _drawn("class", read, samples, classes, loss, split, seed, normalise)


def gaussian(
    samples: int = 16,
    dimension: int = 32,
    *,
    teacher: str | Callable[[np.ndarray], Any] = "sign",
    indices: int = 1,
    noise: float = 0.0,
    split: str = "train",
    seed: int = 0,
) -> Task:
    """Standard Gaussian inputs scaled to |x|^2 = d, with a teacher y = g(z_1, ..., z_k) of k indices z_i = w_i . x.

    The directions w_i are random and orthonormal. So z has mean zero and covariance one, and is close to normal
    where d is large: its coordinates have the fourth moment 3 d / (d + 2).

    **Arguments:**

    - `samples`: P.
    - `dimension`: d.
    - `teacher`: g. One link of every index, summed over them and divided by sqrt(k): `"sign"`, `"linear"`, `"relu"`,
      `"hermite2"` (z^2 - 1) / sqrt(2), `"hermite3"` (z^3 - 3 z) / sqrt(6). All indices together: `"product"`
      z_1 ... z_k, `"parity"` its sign, `"staircase"` z_1 + z_1 z_2 + ... + z_1 ... z_k. Or a function that takes z,
      `(P, k)`, to targets, `(P,)` or `(P, c)`.
    - `indices`: k, at most d.
    - `noise`: standard deviation of the Gaussian noise added to the targets of this split. A test split without it
      has the clean targets of the same teacher.
    - `split`: `"train"` or `"test"`, of independent inputs and noise, and of one teacher.
    - `seed`: of inputs, directions and noise.

    Squared loss. Directions depend on `dimension` and `seed` only, the first of them are those of fewer indices, and
    the first samples those of fewer samples.
    """
    count = positive_int("samples", samples)
    d, k = positive_int("dimension", dimension), positive_int("indices", indices)
    if k > d:
        raise ValueError(f"indices={k} orthonormal directions don't fit dimension={d}; ask for at most as many")
    check_array(f"samples={count} of dimension={d}", count, d)
    check_array(f"indices={k} of dimension={d}", k, d)
    deviation, link = finite_float("noise", noise), _link(teacher)
    streams = np.random.default_rng(check_seed("seed", seed)).spawn(5)
    draws, errors = streams[1:3] if one_of("split", split, SPLITS) == "train" else streams[3:]
    inputs = draws.standard_normal((count, d))
    directions, triangle = np.linalg.qr(streams[0].standard_normal((k, d)).T)
    directions *= np.sign(np.diag(triangle))  # the first is along its Gaussian vector, not opposite
    z = inputs @ directions * (d**0.5 / np.linalg.norm(inputs, axis=1, keepdims=True))
    with blamed(f"teacher must take z of shape {z.shape} to targets, got {teacher!r}, which"):
        made = link(z)
    targets = finite_array("targets of teacher", made, (1, 2))
    if len(targets) != count:
        raise ValueError(f"teacher must give one target a sample, {count}, got shape {targets.shape}; keep the rows")
    if deviation > 0:
        targets = targets + deviation * errors.standard_normal(targets.shape)
    return Task(inputs, targets, normalise=True)


# ------------------------------------------------------------------ drawing images of some classes


def _drawn(
    kind: str,
    read: Callable[[], tuple[np.ndarray, np.ndarray]],
    samples: int,
    classes: Sequence[int],
    loss: Loss,
    split: str,
    seed: int,
    normalise: bool,
    *,
    divide: bool = False,
) -> Task:
    """The task of `digits` and `cifar10`: `read` gives images and labels, of both splits where it is to `divide` them.

    Arguments are checked before anything is read.
    """
    positive_int("samples", samples)
    one_of("split", split, SPLITS)
    check_loss(loss, 1)
    boolean("normalise", normalise)
    chosen = positive_ints("classes", classes, minimum=-math.inf)
    if len(set(chosen)) != len(chosen) or len(chosen) < 2 or any(c not in range(10) for c in chosen):
        plural = {"digit": "digits", "class": "classes"}[kind]
        raise ValueError(f"classes must be at least two distinct {plural} from 0 to 9, got {chosen!r}")
    generator = np.random.default_rng(check_seed("seed", seed))
    images, labels = read()
    pools = []
    for label in chosen:
        indices = generator.permutation(np.flatnonzero(labels == label))
        cut = 2 * len(indices) // 3
        pools.append(indices if not divide else indices[:cut] if split == "train" else indices[cut:])
    counts = [len(range(position, samples, len(chosen))) for position in range(len(chosen))]
    for label, pool, count in zip(chosen, pools, counts, strict=True):
        if count > len(pool):
            raise ValueError(
                f"samples={samples} needs {count} {split} images of {kind} {label}, but there are {len(pool)}; "
                "ask for fewer samples or more classes"
            )
    position = np.arange(samples)
    which = position % len(chosen)
    picked = np.array([pools[c][i // len(chosen)] for i, c in zip(position, which, strict=True)])
    if loss == "cross_entropy":
        return Task(images[picked], which, loss=loss, classes=len(chosen), normalise=normalise)
    targets = 2.0 * which - 1.0 if len(chosen) == 2 else np.eye(len(chosen))[which]
    return Task(images[picked], targets, loss=loss, normalise=normalise)


# ------------------------------------------------------------------ the files of CIFAR-10

_PIXELS = 3 * 32 * 32
_RECORD = 1 + _PIXELS  # bytes of the binary version: a label, then the pixels
_FILES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_SUBFOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
_AGAIN = "extract it again from the archive of www.cs.toronto.edu/~kriz/cifar.html"


def _cifar_paths(name: Any, split: str) -> list[Path]:
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
        found = ", ".join(map(repr, batch)) or "nothing"
        raise ValueError(f"{str(path)!r} must hold 'data' and 'labels', got {found[:200]}; {_AGAIN}")
    images, labels = _image_array(path, batch["data"]), batch["labels"]
    if not isinstance(labels, list) or len(labels) != len(images):
        found = f"{len(labels)} labels" if isinstance(labels, list) else type(labels).__name__
        raise ValueError(f"{str(path)!r} must hold a list of {len(images)} labels, one an image, got {found}; {_AGAIN}")
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


# ------------------------------------------------------------------ links of teachers

_OF_ONE_INDEX: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sign": np.sign,
    "linear": lambda z: z,
    "relu": lambda z: np.maximum(z, 0.0),
    "hermite2": lambda z: (z**2 - 1) / 2**0.5,
    "hermite3": lambda z: (z**3 - 3 * z) / 6**0.5,
}
_OF_ALL_INDICES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "product": lambda z: z.prod(axis=1),
    "parity": lambda z: np.sign(z).prod(axis=1),
    "staircase": lambda z: z.cumprod(axis=1).sum(axis=1),
}


def _link(teacher: str | Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    """From z, `(P, k)`, to targets."""
    if callable(teacher):
        return teacher
    one_of("teacher", teacher, (*_OF_ONE_INDEX, *_OF_ALL_INDICES))
    if teacher in _OF_ALL_INDICES:
        return _OF_ALL_INDICES[teacher]
    return lambda z: _OF_ONE_INDEX[teacher](z).sum(axis=1) / z.shape[1] ** 0.5
