"""Claims: processes with one folder tell each other which record each is making, so that none is made twice.

A claim is a file beside the record, made exclusively, with the host, the process and the time; its maker touches it
while it works. It is over when that process is gone or has given no sign of life for `LIMIT` seconds, and then another
one takes the claim of the next number: of several that want to, one can make that file.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

from nfd_jax.runtime.files import is_left_behind

LIMIT = 900.0  # seconds without a sign of life, which cover what clocks of hosts differ by
SIGN = 30.0  # seconds between two


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether this process is the one to make the record at `path`; while the context lasts, no other is."""
    own = _taken(path)
    if own is None:
        yield False
        return
    over = Event()
    signs = Thread(target=_give_signs, args=(_claim(path, own), over), daemon=True)
    signs.start()
    try:
        yield True
    finally:
        over.set()
        signs.join()
        for number in range(own + 1):  # its own is the last: nobody takes one in between
            with suppress(OSError):
                _claim(path, number).unlink()


def holder(path: Path) -> str:
    """Who has claimed a record, for people; empty where nobody has."""
    held = [text for number in range(2) if (text := _read(_claim(path, number)))]
    return ", ".join(f"{key} {value}" for key, value in held[-1].items()) if held else ""


def _claim(path: Path, number: int) -> Path:
    return path.with_name(f".{path.name}.claim-{number}")


def _taken(path: Path) -> int | None:
    """The number of the claim that this process has made; None where another's lives."""
    maker = {"host": platform.node(), "process": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    for number in itertools.count():
        file = _claim(path, number)
        try:
            with open(file, "x") as opened:
                json.dump(maker, opened)
        except FileExistsError:
            found = _read(file)
            if not is_left_behind(file, str(found.get("host", "")), str(found.get("process", "")), LIMIT):
                return None
        except OSError as error:
            raise ValueError(
                f"{str(file)!r} can't be written ({error.strerror or error}); make room or choose another folder"
            ) from error
        else:
            return number
    return None


def _read(file: Path) -> dict[str, object]:
    """What a claim says; nothing where it is only just being made, or is gone."""
    with suppress(OSError, ValueError):
        return dict(json.loads(file.read_text()))
    return {}


def _give_signs(file: Path, over: Event) -> None:
    while not over.wait(SIGN):
        with suppress(OSError):
            os.utime(file)
