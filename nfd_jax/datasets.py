"""Data sets as tasks: the handwritten digits that come with scikit-learn, and Gaussian inputs with a teacher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nfd_jax._errors import one_of, positive_int
from nfd_jax.task import Task


def digits(
    samples: int = 16,
    classes: Sequence[int] = (0, 1),
    *,
    loss: str = "mse",
    split: str = "train",
    seed: int = 0,
    normalise: bool = True,
) -> Task:
    """Handwritten digits (8 x 8 pixels, d = 64) of the given classes, as many of each as possible.

    **Arguments:**

    - `samples`: P. Samples alternate between the classes, so that P = 16 with two classes takes 8 of each.
    - `classes`: at least two distinct digits from 0 to 9.
    - `loss`: `"mse"` or `"cross_entropy"`.
    - `split`: `"train"` or `"test"`, disjoint: of every class, the last third of its shuffled images is for tests.
    - `seed`: which images are drawn.
    - `normalise`: scale every image to |x|^2 = d; otherwise pixels are the raw ones, 0 to 16.

    Two classes give targets -1 and +1 and one output under squared loss,
    more give one-hot targets; cross-entropy gives one output a class.
    """
    from sklearn.datasets import load_digits  # a slow import, only needed here

    positive_int("samples", samples)
    one_of("split", split, ("train", "test"))
    chosen = tuple(classes)
    if len(set(chosen)) != len(chosen) or len(chosen) < 2 or any(c not in range(10) for c in chosen):
        raise ValueError(f"classes must be at least two distinct digits from 0 to 9, got {chosen!r}")
    images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    generator = np.random.default_rng(positive_int("seed", seed, minimum=0))
    pools = []
    for digit in chosen:
        indices = generator.permutation(np.flatnonzero(labels == digit))
        cut = 2 * len(indices) // 3
        pools.append(indices[:cut] if split == "train" else indices[cut:])
    counts = [len(range(position, samples, len(chosen))) for position in range(len(chosen))]
    for digit, pool, count in zip(chosen, pools, counts, strict=True):
        if count > len(pool):
            raise ValueError(
                f"samples={samples} needs {count} {split} images of digit {digit}, but there are {len(pool)}; "
                "ask for fewer samples or more classes"
            )
    position = np.arange(samples)
    which = position % len(chosen)
    picked = np.array([pools[c][i // len(chosen)] for i, c in zip(position, which, strict=True)])
    if loss == "cross_entropy":
        return Task(images[picked], which, loss=loss, classes=len(chosen), normalise=normalise)
    targets = 2.0 * which - 1.0 if len(chosen) == 2 else np.eye(len(chosen))[which]
    return Task(images[picked], targets, loss=loss, normalise=normalise)


def gaussian(samples: int = 16, dimension: int = 32, *, seed: int = 0) -> Task:
    """Standard Gaussian inputs scaled to |x|^2 = d, with the single-index teacher y = sign(w . x), w Gaussian.

    **Arguments:** `samples` P, `dimension` d, `seed` of inputs and teacher. One output, squared loss.
    """
    generator = np.random.default_rng(positive_int("seed", seed, minimum=0))
    shape = (positive_int("samples", samples), positive_int("dimension", dimension))
    inputs = generator.standard_normal(shape)
    return Task(inputs, np.sign(inputs @ generator.standard_normal(dimension)), normalise=True)
