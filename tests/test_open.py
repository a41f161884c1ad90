"""What is added from outside, in the lines of the documentation: it works in the solvers, and its numbers are right."""

import dataclasses
import inspect
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nfd_jax as nfd
from nfd_jax import studies
from nfd_jax.io import cli
from nfd_jax.parametrization import L

HOW_TO = Path(__file__).parents[1] / "docs" / "how_to"


@pytest.fixture
def model():
    return nfd.ResNet(depth=2)


def test_a_loss(task, model):
    def huber(outputs, targets):
        return optax.losses.huber_loss(outputs, targets).sum(axis=1)

    run = nfd.solve_limit(nfd.Task(task.inputs, task.targets, loss=huber), model, steps=3)
    far = np.abs(run.outputs - task.targets)[..., 0]
    by_hand = np.where(far > 1, far - 0.5, far**2 / 2).mean(axis=1)
    np.testing.assert_allclose(run.loss, by_hand, rtol=1e-10)
    assert run.loss[-1] < run.loss[0]


def test_an_activation(task):
    def wave(x):
        return x + jnp.sin(x)

    run = nfd.train_networks(task, nfd.ResNet(depth=4, activation=wave), width=64, steps=3)
    assert run.settings["activation"].startswith(f"{wave.__qualname__} ")
    start = nfd.analytic.initial_kernels(lambda x: x + np.sin(x), task.inputs @ task.inputs.T / task.dimension, 4)
    variance = np.diag(start.features[-1]) / 64  # of outputs at the start
    ratio = (run.outputs[:, 0, :, 0] ** 2).mean(axis=0) / variance  # chi^2 of 8 over 8, but for O(1/n)
    assert np.all((ratio > 0.03) & (ratio < 5))


def test_a_block(task):
    def gated(x):
        return x * jax.nn.sigmoid(x)

    deep = nfd.ResNet(depth=4, block=("rms_norm", gated, ()))  # h + b W2 gated(W1 norm(h))
    run = nfd.solve_network(task, deep, width=64, steps=3)
    assert run.loss[:, -1].mean() < run.loss[:, 0].mean()
    rows = nfd.Task(np.arange(1, 4)[:, None] * task.inputs[:1], np.ones(3))  # branches don't see the size of h
    outputs = nfd.train_networks(rows, dataclasses.replace(deep, depth=1), width=64, steps=1).outputs[:, 0, :, 0]
    np.testing.assert_allclose(np.diff(outputs, 2), 0, atol=1e-12)
    assert np.abs(np.diff(outputs)).max() > 0.01


def test_an_optimizer(task, model):
    lion = nfd.Optimizer.of(optax.scale_by_lion(), family="adam")  # every entry moves by about its rate
    run = nfd.train_networks(task, model, width=64, steps=3, learning_rate=0.01, optimizer=lion)
    heavy = nfd.Optimizer.of(optax.trace(0.9), family="sgd", linear=True)  # for revealed matrices too
    limit = nfd.solve_limit(task, model, steps=3, optimizer=heavy)
    assert np.all(run.mean("loss")[-1] < run.mean("loss")[0])
    named = nfd.solve_limit(task, model, steps=3, momentum=0.9)
    np.testing.assert_allclose(limit.outputs, named.outputs, rtol=1e-9, atol=1e-12)


def test_a_row_of_the_table(task, model):
    row = nfd.alpha_gamma(0.75, 0.25, name="mine")  # branches times L^-0.75
    twice = dataclasses.replace(row.hidden, sgd=row.hidden.sgd * nfd.Power(factor=2.0))
    row = dataclasses.replace(row, hidden=twice)  # print(row) shows it
    run = nfd.train_networks(task, model, width=64, steps=3, parametrization=row)
    assert str(row).splitlines()[0] == f"mine: branches times sqrt(T) {L**-0.75}, rates times eta"
    named = nfd.train_networks(
        task,
        dataclasses.replace(model, branch_scale=2**-0.75),
        width=64,
        steps=3,
        learning_rate=0.5 * 2 * 2**0.5,  # of depth_mup, whose hidden rate is n: n L^(1/2) here, twice
    )
    np.testing.assert_allclose(run.outputs, named.outputs, rtol=1e-9, atol=1e-12)


def test_an_observable(task, model):
    @nfd.observables.axes(alignment=("layer", "sample"))
    def alignment(snapshot):
        return {"alignment": jnp.mean(snapshot.features * snapshot.gradients, axis=-1)}

    run = nfd.solve_network(task, model, width=64, steps=3, observe=alignment).to_dataset().alignment
    assert run.dims == ("seed", "snapshot", "layer", "sample")
    outputs = nfd.solve_network(task, model, width=64, steps=3).outputs[..., 0]
    np.testing.assert_allclose(run[:, :, -1], outputs, rtol=1e-9, atol=1e-12)  # <h_L, V>
    np.testing.assert_allclose(run[:, :, 0], outputs, rtol=1e-9, atol=1e-12)  # ReLU networks are homogeneous


STUDY_FILE = """\
import dataclasses

import numpy as np

import nfd_jax as nfd
from nfd_jax.studies import Finding, Study, about

Sizes = dataclasses.make_dataclass("Sizes", ["widths"], frozen=True)


def measure(width):
    run = nfd.train_networks(nfd.datasets.digits(4), nfd.ResNet(2), width=width, steps=1)
    return {"start": (("seed",), run.outputs[:, 0, 0, 0])}


def conclude(results):
    values = np.stack([record.start for _, record in results.along("width")], axis=1)
    slope = nfd.statistics.fit_slope(results.sizes.widths, np.abs(values))
    return [Finding("f_0 ~ n^p", "central limit theorem", about(-0.5, 0.25), slope)]


STUDY = Study(
    name="start",
    claim="outputs at the start are of size n^-1/2",
    sizes={"laptop": Sizes((64, 256))},
    cells=lambda sizes: [{"width": width} for width in sizes.widths],
    measure=measure,
    conclude=conclude,
)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current one, with a study in it."""
    (tmp_path / "my_study.py").write_text(STUDY_FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_study", None)


def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["nfd-jax", *arguments])
    cli.main()


def test_a_study(folder, monkeypatch, capsys):
    """By its file, by its module and by an entry point: one set of records."""
    command(monkeypatch, "study", "my_study.py", "--output", "out")
    first = capsys.readouterr().out
    assert "start: outputs at the start are of size n^-1/2" in first
    assert "f_0 ~ n^p" in first
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["start", "start.nc", "start.txt"]
    monkeypatch.setattr(nfd, "train_networks", lambda *_, **__: pytest.fail("measured again"))
    command(monkeypatch, "study", "my_study:STUDY", "--output", "out")
    assert capsys.readouterr().out == first
    point = EntryPoint("mine", "my_study:STUDY", studies.GROUP)
    monkeypatch.setattr(studies, "entry_points", lambda group: [point] if group == point.group else [])
    command(monkeypatch, "claims", "mine", "--output", "out")
    assert "f_0 ~ n^p" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere",
            "unknown study 'nowhere'; choose one of 'width', .*'persistence', or say where it is: my_module:STU",
        ),
        ("nowhere:STUDY", "study 'nowhere:STUDY' is read from 'nowhere', which raises ModuleNotFoundError"),
        ("nowhere.py", "study 'nowhere.py' is read from 'nowhere.py', which raises FileNotFoundError"),
        ("my_study.py:OTHER", "which raises AttributeError: .* has no attribute 'OTHER'"),
        ("my_study.py:measure", "'my_study.py:measure' must be an nfd_jax.studies.Study, got function"),
        ("same.py", "study 'same.py' has the name 'width' of another, and would share its records; rename it"),
    ],
)
def test_what_is_no_study(folder, monkeypatch, name, message):
    (folder / "same.py").write_text(STUDY_FILE.replace('"start",', '"width",'))
    with pytest.raises(SystemExit, match=f"nfd-jax: .*{message}"):
        command(monkeypatch, "study", name, "--output", "out")
    assert not (folder / "out").exists()


def test_a_scale_that_a_study_does_not_have(folder, monkeypatch):
    with pytest.raises(SystemExit, match=r"study 'my_study\.py': unknown scale 'smoke'; choose one of 'laptop'"):
        command(monkeypatch, "study", "my_study.py", "--scale", "smoke", "--output", "out")


def test_the_documentation_says_the_same():
    """Every line of code of its pages is one of a test, but for imports and what they print."""
    tested = {line.strip() for line in inspect.getsource(sys.modules[__name__]).splitlines()}
    for page, count in (("add_your_own.md", 6), ("study.md", 1)):
        blocks = re.findall(r"```python\n(.*?)```", (HOW_TO / page).read_text(), re.DOTALL)
        given = blocks[1:] if page == "add_your_own.md" else blocks[:1]
        assert len(given) == count
        for block in given:
            lines = {line.strip() for line in block.splitlines()}
            assert {line for line in lines if not line.startswith("import ")} <= tested | {""}
