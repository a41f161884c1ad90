"""Provenance: what made a record. It decides no numbers, `identity` says what does; it is for those who ask later."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import jax

from nfd_jax.runtime import identity

PACKAGES = ("nfd_jax", "jax", "jaxlib", "equinox", "optax", "numpy", "xarray")
SOURCE = Path(__file__).parents[1]  # of the package


def provenance() -> dict[str, str]:
    """Code, command, versions, device, precision and time, as strings that netCDF and JSON can hold.

    `commit`, and `clean` (whether the package had no changes beyond it), where the package is in a git checkout of its
    own; an installed one has its version alone.
    """
    return {
        **checkout(SOURCE),
        "revision": str(identity.REVISION),
        "command": shlex.join(sys.orig_argv),
        "versions": json.dumps({name: version(name) for name in PACKAGES}),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device(),
        "processes": str(jax.process_count()),
        "x64": str(jax.config.read("jax_enable_x64")),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device() -> str:
    """How many of which kind this process sees."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].platform} ({devices[0].device_kind})"


@cache  # once a process: what was imported then is what runs
def checkout(folder: Path) -> dict[str, str]:
    """The commit of a folder that git tracks, and whether it has no changes; nothing of any other, or without git."""
    # a hook of git sets variables that lead to another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else another's repository, with an environment in it
        return {"commit": git("rev-parse", "HEAD"), "clean": str(not git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return {}
