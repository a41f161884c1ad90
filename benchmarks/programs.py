"""The compiled training steps of the public solvers, and what they take by the compiler's own account."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax

from nfd_jax.runtime import loop


class _Captured(Exception):  # noqa: N818
    """Carries a compiled step out of the call that would have run it."""


def compiled_step(solve: Callable[[], object]) -> jax.stages.Compiled:
    """The program of the first training step of this call of a solver, which ends there."""
    chunk: Any = loop.run_chunk

    def capture(*args: Any, **kwargs: Any) -> None:
        raise _Captured(chunk.lower(*args, **kwargs).compile())

    with mock.patch.object(loop, "run_chunk", capture):
        try:
            solve()
        except _Captured as captured:
            return captured.args[0]
    raise RuntimeError("the solver took no training step")


def total_bytes(compiled: jax.stages.Compiled) -> int:
    """Memory of a program: arguments, temporary arrays, and outputs that take no argument's place."""
    found: Any = compiled.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return held + found.temp_size_in_bytes
