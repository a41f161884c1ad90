"""What the project says of itself, once: versions, hooks, and the commands of CONTRIBUTING.md."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def test_commands_of_contributing_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
    asked = set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE))
    assert {"lint", "test", "benchmarks", "release-check"} <= asked <= targets
    assert all((ROOT / script).exists() for script in re.findall(r"^(\.ci/\w+)", text, re.MULTILINE))
    assert targets <= set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())


def test_hooks_are_local_and_those_of_make_lint():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", text) == ["local"]
    hooked = {re.sub(r" --force-exclude", "", entry) for entry in re.findall(r"entry: \.venv/bin/(.+)", text)}
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    assert hooked == {line.removesuffix(" .") for line in re.findall(r"\$\(BIN\)/(.+)", lint)}


def test_versions_are_stated_once():
    """The package's own in pyproject.toml, from where `__version__` has it; lower bounds as exact versions."""
    assert "version:" not in (ROOT / "CITATION.cff").read_text().replace("cff-version:", "")
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
    extras = [each for listed in PROJECT["optional-dependencies"].values() for each in listed]
    for requirement in (*PROJECT["dependencies"], *extras):
        if requirement.startswith("nfd_jax["):
            assert requirement.removeprefix("nfd_jax[").removesuffix("]") in PROJECT["optional-dependencies"]
            continue
        assert re.fullmatch(r"[\w-]+>=[\d.]+(,!=[\d.]+)*,<[\d.]+", requirement), requirement
