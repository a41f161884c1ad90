"""The training loop that limit, revealed networks and autodiff networks share.

One jitted program a training step, compiled once per shape; steps are a loop on the host, between which progress is
shown and a run can be interrupted. Rates are traced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from nfd_jax import optimizers, parametrization
from nfd_jax._errors import finite_float, positive_int
from nfd_jax._types import Array, Float, PyTree, Scalar
from nfd_jax.architecture import ResNet, check_resnet
from nfd_jax.task import Task, check_task

MEMORY_BUDGET = 2**29  # bytes that members trained side by side may take; more is slower, caches being small


class Sweep(NamedTuple):
    """What an observe function sees of one training step.

    `features` h_0 to h_L and `gradients` g_0 to g_L are `(L + 1, P, width)`. For one output g is gamma n times the
    output gradient, so that g_L = V; for several it is gamma^2 n times the gradient of the loss, whose mean over the
    batch is included. gamma is the richness.
    """

    features: Float[Array, "layers batch width"]
    gradients: Float[Array, "layers batch width"]
    outputs: Float[Array, "batch outputs"]


Observe = Callable[[Sweep], dict[str, Array]]


@dataclass(frozen=True)
class Settings:
    """What a compiled step depends on besides shapes."""

    model: ResNet
    parametrization: str
    branch: float
    loss: str
    trained: tuple[str, ...]
    richness: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    observe: Observe | None = None


class Record(NamedTuple):
    """What is kept of one step, as seen before its update."""

    outputs: Float[Array, "batch outputs"]
    loss: Scalar
    observed: dict[str, Array]


class Method(NamedTuple):
    """How a state is trained: hashable functions that the loop compiles.

    `step(settings, state, step, rate, inputs, targets) -> (state, Record)`
    `evaluate(settings, state, step, inputs, targets) -> Record`
    """

    step: Callable[..., tuple[PyTree, Record]]
    evaluate: Callable[..., Record]


class Run(NamedTuple):
    """Stacked records; steps along the first axis after that of the members."""

    outputs: np.ndarray
    loss: np.ndarray
    observed: dict[str, np.ndarray]


@partial(jax.jit, static_argnames=("function", "settings", "members"), donate_argnames="state")
def _jitted_step(
    function: Callable, settings: Settings, members: bool, state: PyTree, step: Array, rate: Array, x: Array, y: Array
) -> tuple[PyTree, Record]:
    one = partial(function, settings)
    return (jax.vmap(one, in_axes=(0, None, None, None, None)) if members else one)(state, step, rate, x, y)


@partial(jax.jit, static_argnames=("function", "settings", "members"))
def _jitted_evaluate(
    function: Callable, settings: Settings, members: bool, state: PyTree, step: Array, x: Array, y: Array
) -> Record:
    one = partial(function, settings)
    return (jax.vmap(one, in_axes=(0, None, None, None)) if members else one)(state, step, x, y)


@partial(jax.jit, donate_argnames="state")
def _only_member(state: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.reshape(x.shape[1:]), state)


def run(
    method: Method,
    settings: Settings,
    state: PyTree,
    inputs: np.ndarray,
    targets: np.ndarray,
    rates: np.ndarray,
    *,
    members: bool,
    progress: tqdm,
) -> Run:
    """Train for `len(rates)` steps. With `members`, every array of `state` has a leading axis of members.

    `state` is given up: its memory is reused. `progress` advances by one a step and once at the end.
    """
    dtype = jnp.zeros(()).dtype
    x, y = jnp.asarray(inputs, dtype), jnp.asarray(targets, dtype)
    records = []
    for step, rate in enumerate(np.asarray(rates, dtype)):
        state, record = _jitted_step(method.step, settings, members, state, np.int32(step), rate, x, y)
        records.append(jax.tree.map(np.asarray, record))
        with np.errstate(over="ignore"):  # of members about to diverge
            progress.set_postfix(loss=f"{np.mean(records[-1].loss):.4g}", refresh=False)
        progress.update()
    final = _jitted_evaluate(method.evaluate, settings, members, state, np.int32(len(rates)), x, y)
    progress.update()
    axis = 1 if members else 0
    every = [*records, jax.tree.map(np.asarray, final)]
    observed = {name: np.stack([r.observed[name] for r in records], axis) for name in records[0].observed}
    return Run(np.stack([r.outputs for r in every], axis), np.stack([r.loss for r in every], axis), observed)


def run_members(
    method: Method,
    settings: Settings,
    create: Callable[[Array], PyTree],
    seeds: tuple[int, ...],
    member_bytes: int,
    inputs: np.ndarray,
    targets: np.ndarray,
    rates: np.ndarray,
    *,
    description: str,
    progress: bool | None,
) -> Run:
    """Train one member a seed, as many side by side as `MEMORY_BUDGET` has room for; `create` makes them from keys.

    Chunks are of one size, so that they share a compiled program; the last is filled up with members thrown away.
    """
    chunks = -(-len(seeds) // max(1, MEMORY_BUDGET // member_bytes))
    together = -(-len(seeds) // chunks)
    filled = [*seeds, *(seeds[-1:] * (chunks * together - len(seeds)))]
    runs = []
    with progress_bar(description, chunks * (len(rates) + 1), progress) as bar:
        for start in range(0, len(filled), together):
            state = create(jnp.stack([jax.random.key(seed) for seed in filled[start : start + together]]))
            if together > 1:
                runs.append(run(method, settings, state, inputs, targets, rates, members=True, progress=bar))
            else:  # a batch of one compiles and runs slower, and copies what is updated in place without it
                only = _only_member(state)
                found = run(method, settings, only, inputs, targets, rates, members=False, progress=bar)
                runs.append(jax.tree.map(lambda x: x[None], found))

    def join(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(arrays)[: len(seeds)]

    observed = {name: join([r.observed[name] for r in runs]) for name in runs[0].observed}
    return Run(join([r.outputs for r in runs]), join([r.loss for r in runs]), observed)


def progress_bar(description: str, total: int, show: bool | None) -> tqdm:
    """A bar that appears after two seconds; `show=None` leaves it out where output is not a terminal."""
    disable = None if show is None else not show
    return tqdm(total=total, desc=description, unit="step", delay=2, leave=False, disable=disable)


class Problem(NamedTuple):
    """Validated arguments that every solver shares."""

    settings: Settings
    rates: np.ndarray
    arguments: dict[str, Any]


def prepare(
    task: Task,
    model: ResNet,
    *,
    steps: int,
    learning_rate: optimizers.Rate,
    parametrization_name: str = "depth_mup",
    train_input: bool,
    train_readout: bool,
    richness: float,
    momentum: float,
    weight_decay: float,
    observe: Observe | None = None,
) -> Problem:
    """Check the arguments of a run before anything is compiled; `arguments` are those that a record keeps."""
    check_task(task)
    check_resnet(model, finite=True)
    rates = optimizers.rates(learning_rate, positive_int("steps", steps))
    trained = {"input": train_input, "hidden": True, "readout": train_readout}
    settings = Settings(
        model=model,
        parametrization=parametrization_name,
        branch=parametrization.branch_scale(parametrization_name, int(model.depth), model.horizon),
        loss=task.loss,
        trained=tuple(role for role, wanted in trained.items() if wanted),
        richness=finite_float("richness", richness, strict=True),
        momentum=finite_float("momentum", momentum),
        weight_decay=finite_float("weight_decay", weight_decay),
        observe=observe,
    )
    arguments = {
        "depth": model.depth,
        "activation": model.activation,
        "horizon": model.horizon,
        "parametrization": parametrization_name,
        "steps": steps,
        "learning_rate": rates.tolist(),
        "trained": list(settings.trained),
        "richness": richness,
        "momentum": momentum,
        "weight_decay": weight_decay,
    }
    return Problem(settings, rates, arguments)
