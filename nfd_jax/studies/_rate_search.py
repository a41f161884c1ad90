"""A search for the borders of stable rates, and for the best rate, of every seed by itself: where to look, and what is
found there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nfd_jax.tools._stability import RULES, brackets, settled


def search(
    losses: Callable[[np.ndarray], np.ndarray],
    lowest: float,
    octaves: float,
    count: int,
    rounds: int,
    shares: np.ndarray,
    trivial: float,
) -> tuple[np.ndarray, np.ndarray]:
    """All log2 rates that were tried, `(rates, seeds)` in rising order, and what `losses` gave for them,
    `(rates, seeds, evaluations)`.

    In the first of the `rounds` there are `count` of them over some octaves, in the others as many where `closer` says.
    `shares (seeds,)`: of every seed the part of a step of the grid by which its own is moved.
    """
    logs = lowest + octaves * spread(count, shares)
    every = losses(logs)
    for _ in range(rounds - 1):
        more = closer(logs, every, trivial, spread(count, shares))
        logs, every = np.concatenate([logs, more]), np.concatenate([every, losses(more)])
        order = logs.argsort(axis=0)
        logs = np.take_along_axis(logs, order, axis=0)
        every = np.take_along_axis(every, order[..., None], axis=0)
    return logs, every


def spread(count: int, shares: np.ndarray) -> np.ndarray:
    """`(count, seeds)` places between 0 and 1, of every seed its share of a step beyond even ones."""
    return np.asarray((np.arange(count)[:, None] + shares) / count)


def closer(logs: np.ndarray, losses: np.ndarray, trivial: float, places: np.ndarray) -> np.ndarray:
    """Where each seed is to look next, at `places` between 0 and 1 `(rates, seeds)`, in turn of: the bracket of each
    rule's border, and the neighbours of the best rate, which stand in for a bracket that there is not."""
    last, best = len(logs) - 1, settled(losses).argmin(axis=0)
    around = np.stack([best - 1, best + 1])
    windows = [*(np.stack(brackets(rule, losses, trivial)) for rule in RULES), around]
    found = np.empty_like(places)
    for number, window in enumerate(windows):
        known = (window[0] >= 0) & (window[1] <= last)
        low, high = np.take_along_axis(logs, np.where(known, window, around).clip(0, last), axis=0)
        own = slice(number, None, len(windows))
        found[own] = low + (high - low) * places[own]
    return found


def border(logs: np.ndarray, losses: np.ndarray, rule: str, trivial: float) -> np.ndarray:
    """Of every seed the largest rate that is stable by a rule, the middle of its bracket: infinite where all are, and
    not a number where none is."""
    low, high = brackets(rule, losses, trivial)
    pair = (np.clip(low, 0, None), np.clip(high, None, len(logs) - 1))
    middle = sum(np.take_along_axis(logs, place[None], axis=0)[0] for place in pair) / 2
    return np.where(low < 0, np.nan, np.where(high == len(logs), np.inf, 2.0**middle))


def best(logs: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """The rate at the bottom of the parabola, in the logarithms, through the best rate and its neighbours; not a number
    where it is at an end of the grid or beside one that is not finite, the rate itself where no parabola bends up."""
    found = []
    for x, losses in zip(logs.T, reached.T, strict=True):
        place = int(losses.argmin())
        if place in (0, len(x) - 1) or not np.isfinite(losses[place]):
            found.append(np.nan)
            continue
        near, y = x[place - 1 : place + 2], np.log(np.maximum(losses[place - 1 : place + 2], 1e-30))
        bend, slope, _ = np.polyfit(near - x[place], y, 2) if np.isfinite(y).all() else (0.0, 0.0, 0.0)
        shift = -slope / (2 * bend) if bend > 0 else 0.0
        found.append(2.0 ** (x[place] + np.clip(shift, near[0] - x[place], near[-1] - x[place])))
    return np.array(found)
