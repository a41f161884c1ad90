"""What a search for the largest stable rates found: rates by width, their power law, its prediction, and verdicts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nfd_jax._text import in_columns
from nfd_jax.statistics import Estimate, Slope, fit_slope
from nfd_jax.verdict import Verdict

TRAINS, FINITE, BOUNDED = "trains", "stays finite", "stays bounded"
BOUND = 10.0  # times what it was: a loss that is not bounded, a quantity that has left
RULES = {  # the first one is primary
    TRAINS: "the loss, averaged over the last quarter of the steps, has come at least half the way from the start, or "
    "from that of outputs of 0 where that is lower, to what it is at the best rate",
    FINITE: "the loss stays finite",
    BOUNDED: f"the loss never exceeds {BOUND:g} times that at the start",
}
NOTHING = "nothing"  # left: the loss just does not fall


def settled(loss: np.ndarray) -> np.ndarray:
    """The mean loss over the last quarter of the steps, of losses `(..., steps + 1)`; infinite where any is not
    finite."""
    finite, last = np.isfinite(loss).all(axis=-1), loss[..., -max(1, loss.shape[-1] // 4) :]
    return np.where(finite, np.where(np.isfinite(last), last, 0.0).mean(axis=-1), np.inf)


def obeys(rule: str, loss: np.ndarray, best: np.ndarray, trivial: float) -> np.ndarray:
    """Which losses `(..., seeds, steps + 1)` are stable by a rule, where the best rate settles at `best (seeds,)` and
    outputs of 0 have the loss `trivial`; where that is no worse than the best, they are what is learned."""
    start = loss[..., 0]
    if rule == TRAINS:
        before = np.where(trivial > best, np.minimum(start, trivial), start)
        return np.asarray(settled(loss) <= (before + best) / 2)
    finite = np.isfinite(loss).all(axis=-1)
    bounded = loss.max(axis=-1) <= start + (BOUND - 1) * np.abs(start)
    return np.asarray(finite & bounded if rule == BOUNDED else finite)


def brackets(rule: str, losses: np.ndarray, trivial: float) -> tuple[np.ndarray, np.ndarray]:
    """For every seed the last stable rate and the first one that is not, as places along the rates in rising order, of
    losses `(rates, seeds, steps + 1)`: above the best rate by the primary rule, and above the first by the others.
    -1 and 0 where the first is not stable, and the number of rates as the second place where all are."""
    reached = settled(losses)
    stable = obeys(rule, losses, reached.min(axis=0), trivial)
    places = np.arange(len(losses))[:, None]
    first = reached.argmin(axis=0) if rule == TRAINS else np.zeros(losses.shape[1], int)
    broken = ~stable & (places >= first)
    high = np.where(broken.any(axis=0), broken.argmax(axis=0), len(losses))
    return high - 1, high


@dataclass(frozen=True, eq=False)
class WidthRates:
    """The largest stable rates of networks of one width, one a seed: `rates (seeds,)` by rule, NaN where no rate of the
    search breaks it, and what `left (seeds,)` first, an octave above the largest by the primary rule."""

    width: int
    rates: Mapping[str, np.ndarray]
    left: tuple[str, ...]

    @property
    def log(self) -> Estimate:
        """Mean logarithm by the primary rule."""
        return _mean(np.log(self.rates[TRAINS]))

    def cells(self) -> list[str]:
        """A line of the table."""
        counts = Counter(self.left).most_common()
        shares = ", ".join(f"{name} {count}/{len(self.left)}" for name, count in counts)
        rules = [_factor(_mean(np.log(self.rates[rule]))) for rule in RULES]
        return [str(self.width), *rules, shares]


@dataclass(frozen=True, eq=False)
class StableRate:
    """The largest stable rate of a training code at several widths, its exponent in n, and a prediction that was put to
    the test: `table()` (also by `print`), `plot(path)`.

    `found`: of every width, in order. `tested`: of the width `predicted` from them. `expected`: the exponent that was
    promised, if any; `allowance`: for corrections of finite size, in an exponent.
    """

    title: str
    found: tuple[WidthRates, ...]
    tested: WidthRates
    expected: float | None
    allowance: float

    @property
    def slope(self) -> Slope:
        """The exponent p of rate ~ n^p by the primary rule, with its interval over seeds."""
        return self.slope_by(TRAINS)

    def slope_by(self, rule: str) -> Slope:
        """The exponent by one of the rules; not a number where a rate is not."""
        rates = self._rates(rule)
        if not np.isfinite(rates).all():
            return Slope(math.nan, math.nan, len(rates) - 1)
        return fit_slope(self.widths, rates, average="log")

    @property
    def widths(self) -> tuple[int, ...]:
        """Of `found`."""
        return tuple(each.width for each in self.found)

    def _rates(self, rule: str) -> np.ndarray:
        return np.stack([each.rates[rule] for each in self.found], axis=1)

    @property
    def predicted(self) -> Estimate:
        """The logarithm of the rate at the width of `tested`, from the power law of the others."""
        at = np.log(self.widths)
        centred, logs = at - at.mean(), np.log(self._rates(TRAINS))
        slopes = logs @ centred / np.sum(centred**2)  # of independent networks, so that any may stand side by side
        return _mean(logs.mean(axis=1) + slopes * (math.log(self.tested.width) - at.mean()))

    @property
    def verdict(self) -> Verdict | None:
        """How the promised exponent stands: supported where the whole interval lies within it and the allowance,
        contradicted where none of it does, undecided where seeds do not suffice; None where none was promised."""
        if self.expected is None:
            return None
        return _judged(self.slope, self.expected - self.allowance, self.expected + self.allowance)

    @property
    def prediction(self) -> Verdict:
        """How the prediction stands at the width where it was tested: within the allowance of an exponent."""
        ours, theirs = self.predicted, self.tested.log
        error = math.hypot(ours.standard_error, theirs.standard_error)
        off = self.allowance * abs(math.log(self.tested.width) - float(np.mean(np.log(self.widths))))
        return _judged(Estimate(theirs.value - ours.value, error, ours.freedom), -off, off)

    def table(self) -> str:
        """Rates at every width by every rule with their 95 % intervals, the law, and the prediction."""
        head = ("width", *(f"largest rate that {rule}" for rule in RULES), "left first")
        lines = in_columns([head, *(each.cells() for each in (*self.found, self.tested))])
        laws = [f"{rule}: {self.slope_by(rule)}" for rule in RULES]
        promised = (
            "" if self.verdict is None else f"; promised {self.expected:+.2f} ± {self.allowance:g}: {self.verdict}"
        )
        at = f"n = {self.tested.width}"
        test = f"predicted {_factor(self.predicted)}, found {_factor(self.tested.log)}: {self.prediction}"
        rules = [f"{name}: {text}" for name, text in RULES.items()]
        return "\n".join([self.title, *rules, lines, f"rate ~ n^p: {'; '.join(laws)}{promised}", f"{at}: {test}"])

    def __str__(self) -> str:
        return self.table()

    def plot(self, path: str | Path) -> Path:
        """Write rates against width as a figure, with the law and its prediction."""
        from nfd_jax.io import plotting  # a slow import, only needed here

        return plotting.save(plotting.stable_rates(self), Path(path))


def _mean(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5), len(values) - 1)


def _factor(log: Estimate) -> str:
    """A positive number with its interval, from those of its logarithm."""
    if not math.isfinite(log.value):
        return "none"
    low, high = (math.exp(min(end, 700.0)) for end in log.interval)
    return f"{math.exp(log.value):.3g} ({low:.3g} to {high:.3g})"


def _judged(measured: Estimate, least: float, most: float) -> Verdict:
    low, high = measured.interval
    if not (math.isfinite(low) and math.isfinite(high)):
        return Verdict.UNDECIDED
    if least <= low and high <= most:
        return Verdict.SUPPORTED
    return Verdict.CONTRADICTED if high < least or low > most else Verdict.UNDECIDED
