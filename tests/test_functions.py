"""A function is what it does: its code, its constants, what it closes over; not where it lies in memory."""

import functools
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfd_jax._functions import described


def leaky(slope, x):
    return jnp.where(x > 0, x, slope * x)


def scaled(slope, offset=0.0):
    return lambda x: slope * x + offset


def recursive(x):
    return recursive(x)


class Gain(eqx.Module):
    slope: jax.Array
    other: float = 1.0

    def __call__(self, x):
        return self.slope * x * self.other

    def method(self, x):
        return self.slope * x


GAIN = np.array([1.0, 2.0])

DISTINCT = [
    jnp.tanh,
    jax.nn.relu,
    jnp.sin,
    leaky,
    lambda x: 2 * x,
    lambda x: 3 * x,
    lambda x: (lambda y: 2 * y)(x),
    lambda x: (lambda y: 3 * y)(x),
    lambda x: x + 2,
    scaled(2.0),
    scaled(3.0),
    scaled(2.0, 1.0),
    scaled(GAIN),
    scaled(2 * GAIN),
    scaled(jnp.asarray(GAIN)),
    scaled({"a": 1.0}),
    scaled({"a": 2.0}),
    functools.partial(leaky, 0.1),
    functools.partial(leaky, 0.2),
    jax.jit(functools.partial(leaky, 0.3)),
    Gain(jnp.ones(2)),
    Gain(jnp.zeros(2)),
    Gain(jnp.ones(2), 2.0),
    Gain(jnp.ones(2)).method,
    Gain(jnp.zeros(2)).method,
    recursive,
    scaled(np),
    scaled([GAIN, GAIN]),
    scaled([GAIN, 2 * GAIN]),
]


def test_other_functions_have_other_descriptions():
    found = [described(function) for function in DISTINCT]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "make",
    [
        lambda: scaled(2.0),
        lambda: scaled(GAIN.copy()),
        lambda: functools.partial(leaky, 0.1),
        lambda: Gain(jnp.ones(2)),
        lambda: Gain(jnp.ones(2)).method,
        lambda: lambda x: {"a", "b", "c"} and x,
    ],
)
def test_copies_have_the_same(make):
    assert make() is not make()
    assert described(make()) == described(make())


def test_wrapped_functions_are_what_they_wrap():
    assert described(jax.jit(leaky)).split()[0] == "leaky"
    assert described(functools.partial(leaky, 0.1)).split()[0] == "leaky"


def test_every_process_says_the_same():
    """Whatever its hashes of strings and its addresses."""
    program = (
        "import functools, jax; from nfd_jax._functions import described; import test_functions as here\n"
        "print(*map(described, here.DISTINCT), sep='|')"
    )
    folder = __file__.rpartition("/")[0]
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join([folder, *sys.path]), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
