"""The documentation: its code runs, every public name is on a page, its docstring says what it needs, and records of
claims are whole."""

import dataclasses
import doctest
import importlib
import inspect
import itertools
import json
import pkgutil
import re
from pathlib import Path

import jax
import pytest

import nfd_jax as nfd
from nfd_jax import studies
from nfd_jax.verdict import Verdict

DOCS = Path(__file__).parents[1] / "docs"
FENCE = re.compile(r"^(% slow\n)?```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = [path for folder in (".", "how_to") for path in sorted((DOCS / folder).glob("*.md"))]
BLOCKS = {path: FENCE.findall(path.read_text()) for path in PAGES}
WITH_CODE = [path for path, blocks in BLOCKS.items() if blocks]


def code(path, *, slow):
    """The blocks of a page as one program; from the first that is marked slow on only where they are asked for."""
    quick = itertools.takewhile(lambda block: not block[0], BLOCKS[path])
    return "\n".join(block for _, block in (BLOCKS[path] if slow else quick))


def name_of(path):
    return str(path.relative_to(DOCS))


@pytest.mark.parametrize("path", [path for path in WITH_CODE if code(path, slow=False)], ids=name_of)
def test_code_of_pages_runs(path, capsys):
    exec(compile(code(path, slow=False), name_of(path), "exec"), {"__name__": "page"})


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in WITH_CODE if any(slow for slow, _ in BLOCKS[path])], ids=name_of)
def test_slow_code_of_pages_runs(path, capsys):
    with jax.numpy_dtype_promotion("standard"):  # as users have it: optax itself adds integers to floats
        exec(compile(code(path, slow=True), name_of(path), "exec"), {"__name__": "page"})


def test_pages_have_code():
    """So that a change of the marks can't leave nothing to run."""
    assert len(WITH_CODE) >= 9
    assert sum(len(blocks) for blocks in BLOCKS.values()) >= 25


MODULES = ("observables", "plotting", "datasets", "parametrization", "analytic", "statistics", "studies")


def public(module):
    """What a module offers: its `__all__`, or what it defines without an underscore."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    }


OBJECTS = {name: value for name, value in public(nfd).items() if name != "__version__" and not inspect.ismodule(value)}
for each in MODULES:
    OBJECTS |= {f"{each}.{name}": value for name, value in public(getattr(nfd, each, studies)).items()}
DESCRIBED = {name: value for name, value in OBJECTS.items() if callable(value)}


def listed():
    """Names that the pages of the API ask autodoc for, and modules whose members it takes."""
    text = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    names = set(re.findall(r"auto(?:function|class|data):: nfd_jax\.(\S+)", text))
    return names, set(re.findall(r"automodule:: nfd_jax\.(\S+)\n(?!   :no-members:)", text))


def test_every_public_name_is_on_a_page():
    names, modules = listed()
    missing = [name for name in (*OBJECTS, "__version__") if name not in names and name.split(".")[0] not in modules]
    assert not missing
    assert not [name for name in names if not hasattr(nfd, name)]
    assert set(MODULES) <= modules


def arguments(value):
    """What one gives: parameters of a function, fields of a dataclass or tuple; a recipe's stand in its own text."""
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value) if field.init and not field.name.startswith("_")]
    if inspect.isclass(value):
        return list(getattr(value, "_fields", ()))
    recipe = {field.name for field in dataclasses.fields(nfd.Training)}
    taken = list(inspect.signature(value).parameters.values())
    return [each.name for each in taken if each.kind is not each.VAR_KEYWORD and each.name not in recipe]


def words(name, seen=()):
    """Of a docstring, and of those of the public names it refers to."""
    value = DESCRIBED[name]
    text = inspect.getdoc(value) or ""
    fields = inspect.getsource(value) if inspect.isclass(value) else ""  # which say what they are beside them
    found = set(re.findall(r"\w+", text + fields))
    for other in DESCRIBED:
        if other not in (*seen, name) and re.search(rf"`(nfd\.)?{re.escape(other.rpartition('.')[2])}`", text):
            found |= words(other, (*seen, name))
    return found


@pytest.mark.parametrize("name", DESCRIBED)
def test_docstrings_name_every_argument(name):
    assert len(inspect.getdoc(DESCRIBED[name]) or "") > 20
    said = words(name) | {"snapshot", "task", "model"}  # which are what their types are
    assert not [each for each in arguments(DESCRIBED[name]) if each not in said]


VALIDATES = re.compile(
    r"raise (ValueError|TypeError)|\b(positive_int|finite_float|finite_array|one_of|boolean|check_\w+)\("
)


@pytest.mark.parametrize("name", [name for name, value in DESCRIBED.items() if inspect.isfunction(value)])
def test_docstrings_of_what_validates_name_its_errors(name):
    value = inspect.unwrap(DESCRIBED[name])
    if VALIDATES.search(inspect.getsource(value)):
        assert re.search(
            r"Raises|(Value|Type)Error|[Aa]rguments.* are( all)? those of", inspect.getdoc(value) or "", re.DOTALL
        )


EXAMPLES = [
    example
    for found in pkgutil.walk_packages(nfd.__path__, "nfd_jax.")
    for example in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(found.name))
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_examples_in_docstrings(example):
    assert not doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example).failed


def test_there_are_examples_in_docstrings():
    assert len(EXAMPLES) >= 6


RECORDS = sorted((DOCS / "measured").glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_records_of_claims_are_whole(path):
    record, study = json.loads(path.read_text()), studies.STUDIES[path.stem]
    assert record["number"] == study.number
    assert record["findings"]
    assert {found["verdict"] for found in record["findings"]} <= {verdict.value for verdict in Verdict}
    files = {file.name for file in (DOCS / "figures" / "claims").glob(f"{path.stem}-*.svg")}
    assert {panel["file"] for panel in record["panels"]} == files
    assert all(panel["alt"].strip() for panel in record["panels"])


def test_figures_of_claims_have_records():
    stems = {path.stem.rpartition("-")[0] for path in (DOCS / "figures" / "claims").glob("*.svg")}
    assert stems <= {path.stem for path in RECORDS}
