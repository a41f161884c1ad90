"""Notebooks as they are stored: executed from top to bottom, clean, and small; nbmake runs them."""

import ast
import importlib
import re
import sys
import time
from base64 import b64decode
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.output_widget import OutputWidget

WIDGET = """
import ipywidgets
from IPython.display import display
display(ipywidgets.interactive(lambda x: print(x), x=ipywidgets.IntSlider(3)))
"""
FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
STORED = [pytest.param(path, id=path.stem) for path in NOTEBOOKS]
PLACES = re.compile(r"(?<![\w.])/(home|root|work|tmp|usr|opt|Users|private|var|mnt)/|[A-Z]:\\\\|\.py:\d+|0x[0-9a-f]{8}")
NOISE = re.compile(r"warning|it/s|\d+%\|", re.IGNORECASE)
LARGEST = 200 * 1024  # bytes of a figure


def stored(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(output):
    """Everything of an output that is text."""
    return [output.get("text", ""), *(data for kind, data in output.get("data", {}).items() if kind != "image/png")]


@pytest.mark.parametrize("path", STORED)
def test_stored_notebooks_are_whole_and_clean(path):
    cells = stored(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs, "no outputs: python notebooks/execute.py stores them"
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        for text in map(str, texts(output)):
            assert not PLACES.search(text), text
            assert not NOISE.search(text), text
    assert not [cell for cell in cells if cell.metadata]


@pytest.mark.parametrize("path", STORED)
def test_what_notebooks_import_is_there(path):
    """Also that of notebooks which take longer, and are run by `make test-all`."""
    nodes = [node for cell in stored(path) for node in ast.walk(ast.parse(cell.source))]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    for module, name in [(node.module, each.name) for node in imports for each in node.names]:
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


@pytest.mark.parametrize("path", STORED)
def test_figures_are_small_pictures(path):
    figures = [
        each.data["image/png"] for cell in stored(path) for each in cell.outputs if "image/png" in each.get("data", {})
    ]
    assert figures or path.stem == "your_own_model"
    for figure in map(b64decode, figures):
        assert figure[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(figure) < LARGEST


@pytest.mark.parametrize(
    "text", ["/work/x/y.py", "at C:\\\\Users", "UserWarning: no", "50%|#####", "<f at 0x7f00aa11bb22>"]
)
def test_what_is_not_clean_is_noticed(text):
    assert PLACES.search(text) or NOISE.search(text)


def test_every_notebook_has_a_small_size():
    for path in NOTEBOOKS:
        assert any('"NFD_SMALL" in os.environ' in cell.source for cell in stored(path)), path.name


def test_widgets_are_asked_for_in_explore_alone():
    users = [path.stem for path in NOTEBOOKS if any("ipywidgets" in cell.source for cell in stored(path))]
    assert users == ["explore"]
    assert "ipywidgets" not in sys.modules


def test_replies_are_noticed_while_a_widget_is_sent_what_was_printed(monkeypatch):
    """One that arrives just before that is taken in with it, and would be seen when the time for the cell is over."""
    monkeypatch.syspath_prepend(FOLDER)
    execute, send = importlib.import_module("execute"), OutputWidget.send
    monkeypatch.setattr(OutputWidget, "send", lambda *content: (time.sleep(1), send(*content)))
    execute.notice_replies()  # of what is sent late
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(WIDGET)])
    began = time.monotonic()
    NotebookClient(notebook, timeout=60).execute()
    assert time.monotonic() - began < 50
