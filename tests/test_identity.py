"""What makes records of one run those of another: settings of jax, revisions, and whether a file is whole."""

import ast
import importlib.util
import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfd_jax as nfd
from nfd_jax.runtime import files, identity
from nfd_jax.studies import STUDIES

GOLDEN = Path(__file__).parent / "numerics.json"


def small_runs():
    """Final losses of small runs that between them use every part of the numerical core."""
    task = nfd.datasets.digits(3)
    three = nfd.datasets.digits(6, classes=(0, 1, 2), loss="cross_entropy").minibatches(2)
    limit = {"steps": 3, "particles": 256, "progress": False}
    shared = {"steps": 3, "width": 24, "seeds": 2, "progress": False}
    both = {"train_input": True, "train_readout": True}
    runs = {
        "limit": nfd.solve_limit(task, nfd.ResNet(3), **limit),
        "decoupled, plain": nfd.solve_limit(task, nfd.ResNet(3), closure="decoupled", noise="plain", **limit),
        "compressed": nfd.solve_limit(task, nfd.ResNet(2, "tanh"), resolution=0.1, **limit),
        "network": nfd.solve_network(three, nfd.ResNet(2, "tanh", block="inner"), momentum=0.5, **both, **shared),
        "untied mlp": nfd.solve_network(task, nfd.MLP(3), backward="untied", weight_decay=0.1, **shared),
        "adam": nfd.train_networks(task, nfd.ResNet(2, block="post", centred=True), optimizer="adam", **both, **shared),
        "untied": nfd.train_networks(task, nfd.ResNet(2, "gelu"), backward="untied", **shared),
    }
    return {name: np.asarray(run.loss[..., -1]).ravel().tolist() for name, run in runs.items()}


def test_other_numbers_need_another_revision():
    """After a change on purpose raise identity.REVISION; `python tests/test_identity.py` writes the new numbers."""
    kept, found = json.loads(GOLDEN.read_text()), small_runs()
    assert kept["revision"] == identity.REVISION
    assert kept["losses"].keys() == found.keys()
    for name, losses in found.items():
        # some thousand roundings: other versions of jax and processors sum in another order
        np.testing.assert_allclose(losses, kept["losses"][name], rtol=1e-10, err_msg=name)


def functions_of(path):
    """The functions of a module of studies by name, with those that it imports from modules beside it."""
    tree = ast.parse(path.read_text())
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        name = node.module if isinstance(node, ast.ImportFrom) else None
        beside = path.with_name(f"{(name or path.stem).rpartition('.')[2]}.py")
        if beside != path and beside.exists():
            theirs = functions_of(beside)
            found |= {alias.name: theirs[alias.name] for alias in node.names if alias.name in theirs}
    return found


def code_of(measure):
    """What `measure` and the functions of studies that it reaches do, comments and docstrings apart."""
    functions = functions_of(Path(inspect.getfile(measure)))
    reached, found = [measure.__name__], {}
    while reached:
        name = reached.pop()
        if name in functions and name not in found:
            node = functions[name]
            node.body = node.body[1:] if ast.get_docstring(node) else node.body
            found[name] = ast.unparse(node)
            reached += [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
    return files.checksum(found)[:16]


def test_other_measurements_need_another_revision_of_the_study():
    """Raise its revision where the numbers change; either way `python tests/test_identity.py` writes the new code."""
    kept = json.loads(GOLDEN.read_text())["studies"]
    found = {name: [study.revision, code_of(study.measure)] for name, study in STUDIES.items()}
    assert found == kept


def test_comments_void_no_record(tmp_path, monkeypatch):
    """Neither do docstrings, nor what only draws; a number that `measure` reaches by another function does, also by one
    of a module beside it."""
    source = "from measuring import helper\n\ndef measure(x):\n    {0}\n    return helper(x)\n\n"
    source += "def draw():\n    {2}\n"
    found = []
    for place, parts in enumerate([('"a"', 2, "pass"), ("# b", 2, "return 1"), ("# b", 3, "pass")]):
        (tmp_path / "measuring.py").write_text(f"def helper(x):\n    return {parts[1]} * x\n")
        path = tmp_path / f"module{place}.py"
        path.write_text(source.format(*parts))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path)
            spec.loader.exec_module(module)
        found.append(code_of(module.measure))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    "setting",
    [
        jax.default_prng_impl("rbg"),
        jax.default_matmul_precision("float32"),
        jax.threefry_partitionable(not jax.config.jax_threefry_partitionable),
        jax.enable_x64(False),
    ],
)
def test_settings_of_jax_that_change_numbers_make_other_records(setting, tmp_path):
    task = nfd.datasets.digits(2)

    def run():
        return nfd.train_networks(task, nfd.ResNet(1), width=4, steps=1, seeds=1, checkpoint=tmp_path)

    before = identity.environment()
    run()
    with setting:
        assert identity.environment() != before
        with pytest.raises(ValueError, match="is of a run with"):
            run()


def test_another_revision_makes_other_records(tmp_path, monkeypatch):
    task = nfd.datasets.digits(2)

    def run():
        return nfd.sweep(task, nfd.ResNet(1), widths=[4], learning_rates=[0.1], steps=1, seeds=1, folder=tmp_path)

    run()
    run()
    monkeypatch.setattr(identity, "REVISION", identity.REVISION + 1)
    with pytest.raises(ValueError, match=r"is of a run with revision='\d+', and revision='\d+' was asked for"):
        run()


FACTOR, HELPED = 1.0, 1.0


def helper(x):
    return HELPED * x


def observe(sweep):
    return {"seen": helper(FACTOR * jnp.ones(()))}


@pytest.mark.parametrize("name", ["FACTOR", "HELPED"])
def test_globals_that_observe_reads(name, tmp_path, monkeypatch):
    """Programs and records are of what they were then, also where a function that it calls reads them."""
    task = nfd.datasets.digits(2)

    def run(**options):
        found = nfd.train_networks(task, nfd.ResNet(1), width=4, steps=1, seeds=1, observe=observe, **options)
        return found.observed["seen"][0, 0]

    assert run() == run(checkpoint=tmp_path) == 1.0
    monkeypatch.setattr(f"{__name__}.{name}", 3.0)
    assert run() == 3.0
    with pytest.raises(ValueError, match="is of a run with observe="):
        run(checkpoint=tmp_path)


def phi(x):
    return FACTOR * jnp.tanh(x)


@pytest.mark.parametrize("solve", [nfd.solve_network, nfd.train_networks])
def test_globals_that_an_activation_reads(solve, monkeypatch):
    task = nfd.datasets.digits(2)
    options = {"width": 8, "steps": 1, "seeds": 1}
    before = solve(task, nfd.ResNet(2, phi), **options).outputs
    monkeypatch.setattr(f"{__name__}.FACTOR", 0.5)
    after = solve(task, nfd.ResNet(2, phi), **options).outputs
    np.testing.assert_allclose(after, solve(task, nfd.ResNet(2, lambda x: 0.5 * jnp.tanh(x)), **options).outputs)
    assert np.abs(after - before).max() > 1e-3


# ------------------------------------------------------------------ files


def test_checksums_tell_arrays_apart():
    base = {"a": np.arange(6.0), "b": np.array(["x", "y"])}
    others = [
        base | {"a": np.arange(6.0).reshape(2, 3)},
        base | {"a": np.arange(6.0, dtype=np.float32)},
        base | {"a": np.nextafter(np.arange(6.0), 9)},
        base | {"b": np.array(["x", "z"])},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"]},
    ]
    found = [files.checksum(each) for each in (base, *others)]
    assert len(set(found)) == len(found)
    assert files.checksum(dict(reversed(base.items()))) == found[0]
    assert files.checksum(base | {"b": base["b"].astype(object)}) == found[0]


def test_what_a_killed_write_left_is_removed(tmp_path):
    """And what a process that lives is writing is not."""
    here, path = files.partial_of(tmp_path / "a.npz"), tmp_path / "a.npz"
    dead = path.with_name(here.name.replace(f"-{here.name.rpartition('-')[2]}", "-999999999.partial"))
    elsewhere = path.with_name(".a.npz.other-machine-1.partial")
    for file in (here, dead, elsewhere, path):
        file.write_bytes(b"half")
    files.writable_folder("checkpoint", tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([here, elsewhere, path])


def test_a_full_disk_is_a_clear_error_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "record"
    path.write_text("whole")

    def fill():
        with files.replacing(path) as partial:
            partial.write_text("ha")
            raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=r"record' can't be written \(No space left on device\); make room"):
        fill()
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_takes_nothing_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"checkpoint folder .*file/under' can't be written"):
        nfd.train_networks(nfd.datasets.digits(2), nfd.ResNet(1), checkpoint=tmp_path / "file" / "under")


def test_archives_of_other_contents_are_named(tmp_path):
    """With the arguments of the run and arrays that are not those that were written, or no checksum at all."""
    task = nfd.datasets.digits(2)

    def run():
        return nfd.train_networks(task, nfd.ResNet(1), width=4, steps=1, seeds=1, checkpoint=tmp_path)

    run()
    (archive,) = tmp_path.iterdir()
    with np.load(archive) as kept:
        arrays = {name: kept[name] for name in kept.files}
    name = next(name for name in arrays if name.startswith("batch/"))
    for changed in (arrays | {name: arrays[name] + 1}, {key: value for key, value in arrays.items() if key != name}):
        np.savez(archive, **changed)
        with pytest.raises(ValueError, match=f"checkpoint '{archive}' does not hold what was written to it; remove it"):
            run()
    np.savez(archive, **{key: value for key, value in arrays.items() if key != "checksum"})
    with pytest.raises(ValueError, match="is not an archive of nfd_jax"):
        run()


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    code = {name: [study.revision, code_of(study.measure)] for name, study in STUDIES.items()}
    kept = {"revision": identity.REVISION, "losses": small_runs(), "studies": code}
    GOLDEN.write_text(json.dumps(kept, indent=1) + "\n")
