"""The package reads from top to bottom: imports go upward only, and abstract classes are the only ones inherited."""

import abc
import ast
import importlib
import inspect
from pathlib import Path

import equinox as eqx
import pytest

import nfd_jax

FOLDER = Path(nfd_jax.__file__).parent
SHARED = ("__init__", "panels", "findings", "study", "limits")  # by all studies; these know nothing of each other
CLAIMS = tuple(f"studies.{path.stem}" for path in sorted((FOLDER / "studies").glob("*.py")) if path.stem not in SHARED)
ORDER = (
    "_types",
    "_errors",
    "files",
    "identity",
    "seeds",
    "functions",
    "activations",
    "memory",
    "task",
    "datasets",
    "trajectory",
    "parametrization",
    "optimizers",
    "statistics",
    "scaling",
    "plotting",
    "coordinates",
    "basis",
    "quasi",
    "noise",
    "matrices",
    "architecture",
    "expansion",
    "sharding",
    "checkpoint",
    "threads",
    "engine",
    "explicit",
    "network",
    "particles",
    "multilevel",
    "limit",
    "finite",
    "training",
    "sharpness",
    "sweeps",
    "observables",
    "analytic",
    "comparison",
    "records",
    "studies.panels",
    "studies.findings",
    "studies.study",
    "studies.limits",
    *CLAIMS,
    "cluster",
    "cli",
)


def imported(path):
    """Names of all modules imported anywhere in a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path.name}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(path):
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "nfd_jax":
            folder = parts[1:2] == ["studies"]
            yield ".".join(parts[1 : 3 if folder else 2])


def test_every_module_has_its_place():
    found = (path.relative_to(FOLDER).with_suffix("").parts for path in FOLDER.rglob("*.py"))
    files = {".".join(parts) for parts in found if parts[-1] != "__init__"}
    assert files == set(ORDER)
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_upward(module):
    above = {*ORDER[: ORDER.index(module)], "studies"}
    if module in CLAIMS:  # knows no other study, and uses the package as its users do
        above = above - set(CLAIMS) | {""}
    found = set(own_modules(FOLDER / f"{module.replace('.', '/')}.py"))
    assert found <= above, f"{module} imports {found - above}, which are not above it"


def test_an_upward_module_is_noticed(tmp_path):
    """The reader finds every form of import."""
    source = (
        "import nfd_jax.cli\nfrom nfd_jax import limit\nfrom nfd_jax.task import Task\n"
        "def f():\n    from nfd_jax import engine as e\n"
    )
    path = tmp_path / "module.py"
    path.write_text(source)
    assert set(own_modules(path)) == {"cli", "limit", "task", "engine"}


def test_only_plotting_imports_matplotlib():
    users = {
        path.stem for path in FOLDER.rglob("*.py") if any(name.split(".")[0] == "matplotlib" for name in imported(path))
    }
    assert users == {"plotting"}


def classes():
    for module in ORDER:
        loaded = importlib.import_module(f"nfd_jax.{module}")
        for _, value in inspect.getmembers(loaded, inspect.isclass):
            if value.__module__ == loaded.__name__ and issubclass(value, eqx.Module):
                yield value


def test_abstract_classes_and_final_ones():
    """A class is abstract, says so in its name and can't be made, or it is final: nothing inherits from it."""
    found = list(classes())
    assert {value.__name__ for value in found} >= {"AbstractNoise", "AbstractMatrices", "PlainNoise", "Layers"}
    for value in found:
        assert value.__name__.startswith("Abstract") == inspect.isabstract(value)
        for base in value.__mro__[1:]:
            if base.__module__.startswith("nfd_jax"):
                assert base.__name__.startswith("Abstract"), f"{value.__name__} inherits from {base.__name__}"
        if inspect.isabstract(value):
            assert isinstance(value, abc.ABCMeta)
            with pytest.raises(TypeError):
                value()
