"""The package reads from top to bottom: imports go upward only, and abstract classes are the only ones inherited."""

import abc
import ast
import importlib
import inspect
import subprocess
import sys
import typing
from importlib.metadata import version
from pathlib import Path

import equinox as eqx
import pytest
import xarray
from strict import STRICT

import nfd_jax

FOLDER = Path(nfd_jax.__file__).parent
LAYERS = (  # a module, or a folder for all its modules; those of one layer may import each other
    ("_types", "_checks", "_functions", "_slices", "_text"),
    ("seeds", "activations", "task", "datasets", "parametrization", "optimizers", "models", "training"),
    ("statistics", "verdict"),
    ("matrices",),
    ("dynamics",),
    ("observables", "analytic"),
    ("runtime",),
    ("solvers",),
    ("plotting",),
    ("io.records", "io.plotting"),
    ("tools",),
    ("studies._panels", "studies._findings", "studies._curves"),
    ("studies._study", "studies._limits", "studies._responses", "studies._reuse"),
    ("studies",),
    ("io",),
)
MODULES = tuple(
    ".".join(parts).removesuffix(".__init__")
    for parts in sorted(path.relative_to(FOLDER).with_suffix("").parts for path in FOLDER.rglob("*.py"))
    if parts != ("__init__",)
)


def layer(module):
    """Its number from the top: that of the module where it is named, or of its folder."""
    found = [number for number, names in enumerate(LAYERS) if module in names]
    return found[0] if found else layer(module.rpartition(".")[0])


def is_claim(module):
    return module.startswith("studies.") and not module.startswith("studies._")


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
            known = [".".join(parts[1:count]) for count in (3, 2) if ".".join(parts[1:count]) in MODULES]
            yield known[0] if known else ""


def path_of(module):
    path = FOLDER / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_upward(module):
    found = set(own_modules(path_of(module))) - {module.rpartition(".")[0]}
    below = {name for name in found - {""} if layer(name) > layer(module)}
    assert not below, f"{module} imports {below}, which are below it"
    if is_claim(module):  # knows no other study
        assert not {name for name in found if is_claim(name)} - {module}
    else:  # the package itself imports all
        assert "" not in found, f"{module} imports names of nfd_jax itself"


def test_an_upward_module_is_noticed(tmp_path):
    """The reader finds every form of import."""
    source = (
        "import nfd_jax.io.cli\nfrom nfd_jax.solvers import limit\nfrom nfd_jax.task import Task\n"
        "def f():\n    from nfd_jax.runtime import loop as e\n    import nfd_jax\n"
    )
    path = tmp_path / "module.py"
    path.write_text(source)
    assert set(own_modules(path)) == {"io.cli", "solvers.limit", "task", "runtime.loop", ""}


def test_only_plotting_imports_matplotlib():
    users = {
        module for module in MODULES if any(name.split(".")[0] == "matplotlib" for name in imported(path_of(module)))
    }
    assert "io.plotting" in users
    assert {module.split(".")[0] for module in users - {"io.plotting"}} == {"plotting"}


def test_what_is_slow_to_import_comes_with_its_first_use():
    program = (
        "import sys, nfd_jax as nfd\nassert 'plotting' in dir(nfd)\n"
        "slow = {'matplotlib', 'xarray', 'scipy.stats', 'scipy.special', 'scipy.integrate', 'scipy.optimize'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
        "nfd.plotting.loss\nassert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
        "try:\n    nfd.plottin\nexcept AttributeError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, *STRICT, "-c", program], capture_output=True, text=True)
    assert done.stdout == "module 'nfd_jax' has no attribute 'plottin'\n", done.stderr


def test_help_needs_no_plots():
    program = "import sys, nfd_jax.io.cli\nassert 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, *STRICT, "-c", program], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def classes():
    for module in MODULES:
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


# ------------------------------------------------------------------ what is public

PUBLIC = (nfd_jax, *(getattr(nfd_jax, name) for name in nfd_jax.__all__ if inspect.ismodule(getattr(nfd_jax, name))))
INSIDE = ("nfd_jax.dynamics.", "nfd_jax.matrices.", "nfd_jax.models")  # how it works, for those who read there
LATE = {"xr": xarray}  # imported where it is used


def names(module):
    """Public ones that a module of this package defines, or exports as a package."""
    if module is not nfd_jax and not hasattr(module, "__all__"):
        theirs = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        return {name for name in theirs if not name.startswith("_")}
    return {name for name, value in vars(module).items() if not inspect.ismodule(value) or name in module.__all__}


def test_all_that_is_exported_is_listed_and_described():
    public = {name for name in names(nfd_jax) if not name.startswith("_")}
    assert sorted(nfd_jax.__all__) == sorted(public | {"__version__"})
    assert len(set(nfd_jax.__all__)) == len(nfd_jax.__all__)
    for module in (*PUBLIC, importlib.import_module("nfd_jax.studies")):
        for name in getattr(module, "__all__", [name for name in sorted(names(module)) if not name.startswith("_")]):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value):
                assert inspect.getdoc(value), f"{module.__name__}.{name} has no docstring"
    assert nfd_jax.__version__ == version("nfd_jax")
    assert (FOLDER / "py.typed").exists()


def handed_out(function):
    """Classes of this package in what a function returns or takes."""
    for annotation in typing.get_type_hints(function, localns=LATE).values():
        yield from (part for part in parts(annotation) if inspect.isclass(part))


def parts(annotation):
    """An annotation and all those within it."""
    yield annotation
    for inner in typing.get_args(annotation):
        yield from parts(inner)


def test_types_of_results_are_public():
    """Of what public functions take and return, and of the fields and properties of these: under a public name."""
    public = {name for module in PUBLIC for name in names(module)}
    seen, waiting = set(), [getattr(nfd_jax, name) for name in nfd_jax.__all__]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or not getattr(value, "__module__", "").startswith("nfd_jax"):
            continue
        seen.add(id(value))
        if value.__name__ not in public:
            assert value.__module__.startswith(INSIDE), f"{value.__module__}.{value.__name__} is not public"
            continue
        if inspect.isfunction(value):
            waiting += handed_out(value)
        elif inspect.isclass(value):
            waiting += handed_out(value)  # fields
            members = [member for name, member in vars(value).items() if not name.startswith("_")]
            getters = [member.fget for member in members if isinstance(member, property)]
            for function in (*getters, *filter(inspect.isfunction, members)):
                waiting += handed_out(function)
    assert len(seen) > 20


# ------------------------------------------------------------------ what is short

LONGEST, BODY = 350, 50  # lines of a module; of a function, without its signature and docstring


def body_lines(function):
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_modules_and_functions_are_short():
    found = set()
    for module in MODULES:
        source = path_of(module).read_text()
        found |= {module} if len(source.splitlines()) > LONGEST else set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and body_lines(node) > BODY:
                found.add(f"{module}:{node.name}")
    assert not found, f"split {found}"
