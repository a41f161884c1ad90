"""Tests run notebooks at small size, and `make test` only those of a few seconds."""

import os

import pytest
from execute import notice_replies

QUICK = ("explore",)

os.environ.setdefault("NFD_SMALL", "1")  # kernels inherit it
notice_replies()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.suffix == ".ipynb" and item.path.stem not in QUICK:
            item.add_marker(pytest.mark.slow)
