"""Seeds: every bit counts, in both precisions alike, and keys of small seeds are jax's own."""

import jax
import numpy as np
import pytest

import nfd_jax as nfd
from nfd_jax.seeds import labels, seed_key

SMALL = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
LARGE = (2**32, 2**32 + 1, 2**33, 2**63, 2**64 - 1)


def data(key):
    return np.asarray(jax.random.key_data(key)).tolist()


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys(implementation):
    """Different for different seeds, the same in float32 and float64, and for seeds of 32 bits those of jax."""
    found = {}
    with jax.default_prng_impl(implementation):
        for x64 in (False, True):
            with jax.enable_x64(x64):
                found[x64] = [data(seed_key(seed)) for seed in (*SMALL, *LARGE)]
                assert found[x64][: len(SMALL)] == [data(jax.random.key(seed)) for seed in SMALL]
    assert found[False] == found[True]
    assert len({str(key) for key in found[True]}) == len(found[True])


@pytest.mark.parametrize("name", ["solve_network", "train_networks"])
def test_members_of_large_seeds_are_networks_of_their_own(task, name):
    with jax.enable_x64(False):
        run = getattr(nfd, name)(task, nfd.ResNet(1), width=8, steps=1, seeds=[0, 2**32, 2**63])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not np.allclose(run.outputs[one], run.outputs[other], rtol=1e-3, atol=0)
    np.testing.assert_array_equal(run.to_dataset().seed, np.array([0, 2**32, 2**63], np.uint64))


def test_large_seeds_of_the_limit(task):
    with jax.enable_x64(False):
        one, other = (
            nfd.solve_limit(task, nfd.ResNet(1), particles=16, noise="plain", steps=1, seed=seed).outputs
            for seed in (0, 2**32)
        )
    assert not np.allclose(one, other, rtol=1e-3, atol=0)


def test_labels_keep_every_bit():
    for seeds in (SMALL, LARGE, (0, 2**63)):
        assert [int(seed) for seed in labels(seeds)] == list(seeds)
