"""Files that appear whole or not at all, in folders that are known to take them, and what tells that they are whole."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from nfd_jax._checks import folder_path

ABANDONED = 24 * 3600  # seconds after which an unfinished file counts as left behind


def writable_folder(name: str, folder: str | Path) -> Path:
    """The folder, made if missing and cleared of what killed writes left; a ValueError that names the argument where
    nothing can be written there."""
    path = folder_path(name, folder)
    probe = path / f".write-test-{platform.node()}-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"{name} folder {str(folder)!r} can't be written ({error.strerror or error}); choose another"
        ) from error
    for partial in path.glob(".*.partial"):
        writer, _, process = partial.name.removesuffix(".partial").rpartition("-")
        host = platform.node() if writer.endswith(f".{platform.node()}") else ""
        if is_left_behind(partial, host, process, ABANDONED):
            partial.unlink(missing_ok=True)
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a file, which takes its place when all of it is on the disk. A ValueError that names it where it
    can't be written, for want of space above all."""
    partial = partial_of(path)
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} can't be written ({error.strerror or error}); make room or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """Where a file is written before it takes its place: of this process alone."""
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.partial")


def is_left_behind(path: Path, host: str, process: str, seconds: float | int) -> bool:
    """Whether the process of a host that made a file is gone, or has not touched it for so long."""
    if host == platform.node() and process.isdecimal() and os.name == "posix":  # elsewhere signal 0 would be one
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except OSError:  # of another user
            pass
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > seconds
    return False


def checksum(arrays: Mapping[str, Any]) -> str:
    """Of names, shapes and numbers, in any order; text counts as it reads."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.kind in "OUS":
            digest.update(repr((name, array.shape, [str(each) for each in array.ravel()])).encode())
        else:
            array = array.astype(array.dtype.newbyteorder("<"))
            digest.update(repr((name, array.shape, array.dtype.str)).encode() + array.tobytes())
    return digest.hexdigest()
