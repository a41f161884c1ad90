"""Verdict: how a prediction stands after a measurement, of studies and of coordinate checks."""

from __future__ import annotations

import enum


class Verdict(enum.StrEnum):
    """What an interval allows: to say that the prediction holds, that it does not, or neither."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"
