"""Cases of parametrized tests that `make test` leaves to `make test-all`."""

import pytest


def slow(*values):
    """A case that is slow: another of the same test is not."""
    return pytest.param(*values, marks=pytest.mark.slow)


def quick(names, *chosen):
    """All of these names; those that are not chosen are slow."""
    if unknown := set(chosen) - set(names):
        raise ValueError(f"{unknown} are none of {list(names)}")
    return [name if name in chosen else slow(name) for name in names]
