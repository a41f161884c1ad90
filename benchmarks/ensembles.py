"""How much faster are ensembles of finite networks than PyTorch's, on the same work in one run?

Seeds x learning rates of MLPs (3 hidden layers) and ResNets (32 blocks), ReLU, all layers trained by plain SGD on
batches of 32 digits, squared loss. Four sides, all from the same initial weights, on the same batches: `train_members`,
and in PyTorch a loop over members ("eager", what people run), the same loop with `torch.compile`d steps ("compile"),
and all members at once by `torch.func.vmap`. Times are those of whole runs after a first one; ours include drawing the
weights, PyTorch's do not. All use as many threads as there are CPUs. Without PyTorch only our side is measured.

The floor, one for all sides, is the greater of two times: operations over the rate of large matrix products, and
bytes (each weight read forward, read backward and written) over the rate of large copies, each by the faster library.
Heavy cells train fewer members, as many as a budget of seconds has room for; steps are never fewer, and times are per
member and step. At the defaults a run takes about 10 minutes on 2 cores.

    pip install 'nfd_jax[benchmark]'
    python benchmarks/ensembles.py --widths 64 256 --models mlp
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from timing import save

import nfd_jax as nfd
from nfd_jax.dynamics.module import Shape, create_network
from nfd_jax.models import AbstractModel
from nfd_jax.parametrization import Role
from nfd_jax.solvers.networks import Networks

HAS_TORCH = find_spec("torch") is not None
if TYPE_CHECKING or HAS_TORCH:
    import torch  # pyright: ignore[reportMissingImports]

MODELS = {"mlp": nfd.MLP(3, "relu"), "resnet": nfd.ResNet(32, "relu")}
OURS = "train_members"


@dataclass(frozen=True)
class Sizes:
    """The work that all sides do.

    Args:
        models: Of "mlp" and "resnet".
        widths: Widths n.
        seeds: Seeds.
        rates: Learning rates; there are seeds x rates members.
        steps: Training steps.
        batch: Samples of a step.
        repeats: Timed repeats of each side, in turn; medians are reported.
        seconds: Budget of one run of one side, at 20 GFLOP/s; fewer members where it is exceeded, at least 2.
        output: A JSON file for the results.
    """

    models: tuple[str, ...] = ("mlp", "resnet")
    widths: tuple[int, ...] = (64, 256, 1024)
    seeds: int = 16
    rates: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    steps: int = 100
    batch: int = 32
    repeats: int = 2
    seconds: float = 4.0
    output: Path | None = None


class Work:
    """One cell: a model, a width, its members, and what they are trained on."""

    def __init__(self, sizes: Sizes, model: AbstractModel, width: int) -> None:
        self.model, self.width, self.batch = model, width, sizes.batch
        self.task = nfd.datasets.digits(8 * sizes.batch, range(10)).minibatches(sizes.batch)
        d, c, hidden = self.task.dimension, self.task.outputs, model.matrices * width**2
        self.weights = hidden + width * (d + c)
        self.operations = sizes.batch * (6 * hidden + 4 * width * d + 6 * width * c)  # a member and step
        room = sizes.seconds * 20e9 / (self.operations * sizes.steps)
        every = [(seed, rate) for seed in range(sizes.seeds) for rate in sizes.rates]
        self.members = every[: max(2, int(room))]
        self.seeds = tuple(seed for seed, _ in self.members)
        self.rates = np.array([rate for _, rate in self.members])
        recipe = nfd.Training(sizes.steps, 1.0, train_input=True, train_readout=True, evaluate_at=(sizes.steps,))
        self.networks = Networks.of(self.task, model, recipe, width, "tied", "dense")
        self.problem = self.networks.problem
        self.member_steps = len(self.members) * sizes.steps

    def train(self) -> np.ndarray:
        """Our side: the members' losses on all samples after training."""
        rates = self.rates[:, None] * self.problem.rates
        recorded = self.networks.train(self.seeds, rates=rates, progress=False)
        return np.asarray(recorded.train[-1]["loss"][-1])


class Torch:
    """PyTorch on the same work: plain modules, plain SGD, a rate for every role."""

    def __init__(self, work: Work) -> None:
        self.work, model = work, work.model
        self.shape = Shape(work.width, work.task.dimension, work.task.outputs)
        sizes = {"width": work.width, "depth": int(model.depth), "dimension": work.task.dimension}
        row, roles = work.problem.row, (Role.INPUT, Role.HIDDEN, Role.READOUT)
        self.scales = [row[role].multiplier(**sizes) for role in roles]
        self.role_rates = [row[role].sgd(**sizes) for role in roles]
        self.branch, self.skip = model.branch(row), model.structure.skip
        inputs, targets, batches = work.task.inputs, work.task.targets, work.problem.data.batches
        self.inputs, self.targets = (torch.tensor(x, dtype=torch.float32) for x in (inputs, targets))
        self.batches = [(self.inputs[i], self.targets[i]) for i in torch.tensor(batches)]
        draw = jax.jit(lambda key: create_network(key, model, row, self.shape))
        drawn = {seed: draw(jax.random.key(seed)) for seed in set(work.seeds)}
        self.initial = {seed: self.weights_of(network) for seed, network in drawn.items()}
        torch._dynamo.reset()
        self.compiled = torch.compile(self.loss)  # when it is first called

    @staticmethod
    def weights_of(network: Any) -> list[torch.Tensor]:
        """Input, hidden and readout matrices, `(out, in)`."""
        hidden = np.concatenate([np.asarray(forward) for forward, _ in network.hidden])
        arrays = [np.asarray(network.input), *hidden, np.asarray(network.readout).T]
        return [torch.tensor(np.ascontiguousarray(array)) for array in arrays]

    def loss(self, weights: list[torch.Tensor], inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Of a network with these weights."""
        first, *hidden, last = weights
        a, b, c = self.scales
        h = a * torch.nn.functional.linear(inputs, first)
        for matrix in hidden:
            image = (self.branch * b) * torch.nn.functional.linear(torch.relu(h), matrix)
            h = h + image if self.skip else image
        outputs = c * torch.nn.functional.linear(h if self.skip else torch.relu(h), last)
        return 0.5 * ((outputs - targets) ** 2).sum(dim=1).mean()

    def role_rate(self, index: int) -> float:
        """That of a weight by its place in the list."""
        first, hidden, last = self.role_rates
        return first if index == 0 else last if index == self.work.model.matrices + 1 else hidden

    def loop(self, loss: Callable[..., torch.Tensor]) -> np.ndarray:
        """The members one after the other; forward and backward pass of `loss`."""
        losses = []
        for seed, rate in self.work.members:
            weights = [weight.clone().requires_grad_() for weight in self.initial[seed]]
            groups = [{"params": [w], "lr": rate * self.role_rate(i)} for i, w in enumerate(weights)]
            if len(weights) > 2:  # one group a role
                groups = [groups[0], {"params": weights[1:-1], "lr": groups[1]["lr"]}, groups[-1]]
            optimizer = torch.optim.SGD(groups)
            for inputs, targets in self.batches:
                optimizer.zero_grad()
                loss(weights, inputs, targets).backward()
                optimizer.step()
            with torch.no_grad():
                losses.append(self.loss(weights, self.inputs, self.targets).item())
        return np.array(losses)

    def eager(self) -> np.ndarray:
        """What people run."""
        return self.loop(self.loss)

    def compile(self) -> np.ndarray:
        """The loop over members with compiled forward and backward passes."""
        return self.loop(self.compiled)

    def vmap(self) -> np.ndarray:
        """All members at once."""
        weights = [torch.stack(stack) for stack in zip(*(self.initial[s] for s in self.work.seeds), strict=True)]
        rates = torch.tensor(self.work.rates, dtype=torch.float32)[:, None, None]
        gradient = torch.func.vmap(torch.func.grad(self.loss), in_dims=(0, None, None))
        for inputs, targets in self.batches:
            for index, (weight, change) in enumerate(zip(weights, gradient(weights, inputs, targets), strict=True)):
                weight -= change.mul_(rates * self.role_rate(index))
        return torch.func.vmap(self.loss, in_dims=(0, None, None))(weights, self.inputs, self.targets).numpy()


def fastest(run: Callable[[], Any], repeats: int = 10) -> float:
    """Seconds of the fastest of a few runs."""
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def machine_rates() -> dict[str, tuple[float, float]]:
    """Operations and bytes a second of large products and copies, by both libraries; the best of a few."""
    n, large = 1024, 2**25
    square, line = jnp.ones((n, n)), jnp.ones(large)
    multiply, add = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    runs = {"jax": (lambda: multiply(square, square).block_until_ready(), lambda: add(line).block_until_ready())}
    if HAS_TORCH:
        matrix, vector, target = torch.ones((n, n)), torch.ones(large), torch.zeros(large)
        runs["torch"] = (lambda: matrix @ matrix, lambda: target.copy_(vector))
    return {name: (2 * n**3 / fastest(product), 8 * large / fastest(copy)) for name, (product, copy) in runs.items()}


def timed(run: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    """Seconds, seconds of CPU time of this process, and the losses."""
    start, cpu = time.perf_counter(), time.process_time()
    losses = run()
    return time.perf_counter() - start, time.process_time() - cpu, losses


def measure(sizes: Sizes, name: str, width: int) -> list[dict[str, Any]]:
    """All sides of one cell."""
    work = Work(sizes, MODELS[name], width)
    sides: dict[str, Callable[[], np.ndarray]] = {OURS: work.train}
    if HAS_TORCH:
        other = Torch(work)
        sides |= {"eager": other.eager, "compile": other.compile, "vmap": other.vmap}
    first, failed = {}, {}
    for side, run in list(sides.items()):
        try:
            first[side] = timed(run)[0]
        except Exception as error:  # a compiler that is missing, or memory: the other sides are measured all the same
            if side == OURS:
                raise
            failed[side] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
            del sides[side]
    rates, runs = machine_rates(), {side: [] for side in sides}
    for _ in range(sizes.repeats):
        for side, run in sides.items():
            runs[side].append(timed(run))
    again = machine_rates()
    rates = {library: tuple(map(max, rates[library], again[library])) for library in rates}
    rows: list[dict[str, Any]] = [
        {"model": name, "width": width, "side": s, "failed": why} for s, why in failed.items()
    ]
    for side, found in runs.items():
        operations, moved = map(max, zip(*rates.values(), strict=True))  # a slow library's own rates would flatter it
        floor = max(work.operations / operations, 12 * work.weights / moved)
        seconds = statistics.median(run[0] for run in found)
        rows.append(
            {
                "model": name,
                "width": width,
                "members": len(work.members),
                "side": side,
                "seconds": seconds / work.member_steps,
                "cpu": statistics.median(run[1] for run in found) / work.member_steps,
                "over_ours": statistics.median(a[0] / b[0] for a, b in zip(found, runs[OURS], strict=True)),
                "floor": floor,
                "over_floor": seconds / work.member_steps / floor,
                "bound": "operations" if work.operations / operations >= 12 * work.weights / moved else "bytes",
                "operations_rate": operations,
                "copy_rate": moved,
                "first_call": first[side],
                "loss": float(np.mean(found[-1][2])),
                "loss_difference": float(np.max(np.abs(found[-1][2] - runs[OURS][-1][2]))),
            }
        )
    return rows


def same_cell(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows are of the same work."""
    return all(row[key] == other[key] for key in ("model", "width"))


def ahead(row: dict[str, Any], ours: dict[str, Any]) -> str:
    """Why a side is faster than ours: by less work of the processors, or by keeping more of them busy."""
    cores, own = (side["cpu"] / side["seconds"] for side in (row, ours))
    return (
        f"{row['model']} {row['width']}: {row['side']} is ahead, with {row['cpu'] / ours['cpu']:.2f} times our CPU "
        f"time; it keeps {cores:.1f} CPUs busy, we {own:.1f}"
    )


def main(sizes: Sizes) -> None:
    """Print one row a side of every cell."""
    threads = os.cpu_count() or 1
    if not HAS_TORCH:
        print("PyTorch is not installed (pip install 'nfd_jax[benchmark]'): its sides are skipped")
    else:
        torch.set_num_threads(threads)
    print(
        f"{sizes.seeds} seeds x {len(sizes.rates)} rates, batch {sizes.batch}, {sizes.steps} steps, {threads} threads, "
        f"jax {jax.__version__}, torch {torch.__version__ if HAS_TORCH else 'none'}; times of a member and step"
    )
    head = (
        f"{'model':>7} {'n':>5} {'members':>7} {'side':>13} {'time':>10} {'CPU time':>10} {'/ ours':>7} {'/ floor':>8} "
        f"{'floor':>10} {'first call':>10} {'mean loss':>9} {'difference':>10}"
    )
    print(head, "-" * len(head), sep="\n")
    rows = []
    for name in sizes.models:
        for width in sizes.widths:
            for row in measure(sizes, name, width):
                rows.append(row)
                if "failed" in row:
                    print(f"{name:>7} {width:>5} {row['side']:>21} failed: {row['failed']}")
                    continue
                print(
                    f"{name:>7} {width:>5} {row['members']:>7} {row['side']:>13} {1e6 * row['seconds']:>8.0f}us "
                    f"{1e6 * row['cpu']:>8.0f}us {row['over_ours']:>7.2f} {row['over_floor']:>8.1f} "
                    f"{1e6 * row['floor']:>8.0f}us {row['first_call']:>9.1f}s {row['loss']:>9.4f} "
                    f"{row['loss_difference']:>10.1e}",
                    flush=True,
                )
    for row in rows:
        if "failed" not in row and row["over_ours"] < 1:
            print(ahead(row, next(other for other in rows if same_cell(row, other) and other["side"] == OURS)))
    save(sizes.output, sizes, rows)


if __name__ == "__main__":
    main(tyro.cli(Sizes))
