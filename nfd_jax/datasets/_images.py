"""Images of some classes as tasks: handwritten digits that come with scikit-learn, CIFAR-10 from its files."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from nfd_jax._checks import boolean, one_of, positive_int, positive_ints
from nfd_jax.datasets._cifar10 import read_split
from nfd_jax.seeds import check_seed
from nfd_jax.task import Loss, Task, check_loss

SPLITS = ("train", "test")


def digits(
    samples: int | None = 16,
    classes: Sequence[int] = (0, 1),
    *,
    loss: Loss = "mse",
    split: str = "train",
    seed: int = 0,
    normalise: bool = True,
) -> Task:
    """Handwritten digits (8 x 8 pixels, d = 64) of the given classes, as many of each as possible.

    **Arguments:**

    - `samples`: P. Samples alternate between the classes, so that P = 16 with two classes takes 8 of each. None takes
      as many as there are, until a class is short of its turn.
    - `classes`: at least two distinct digits from 0 to 9.
    - `loss`: `"mse"`, `"cross_entropy"` or a function of one's own, as for `Task`.
    - `split`: `"train"` or `"test"`, disjoint: of every class, the last third of its shuffled images is for tests.
    - `seed`: which images are drawn.
    - `normalise`: scale every image to |x|^2 = d; otherwise pixels are the raw ones, 0 to 16.

    Two classes give targets -1 and +1 and one output, more give one-hot targets; cross-entropy gives one output a
    class.
    """
    return _drawn("digit", _read_digits, samples, classes, loss, split, seed, normalise, divide=True)


@functools.cache
def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # a slow import, only needed here

    images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    return images, labels


def cifar10(
    folder: str | Path,
    samples: int | None = 16,
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

    return _drawn("class", lambda: read_split(folder, split), samples, classes, loss, split, seed, normalise)


def _drawn(
    kind: str,
    read: Callable[[], tuple[np.ndarray, np.ndarray]],
    samples: int | None,
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
    if samples is not None:
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
    if samples is None:
        samples = min(len(chosen) * len(pool) + position for position, pool in enumerate(pools))
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
