"""Several processes, on one machine or many, joined into one run over all their devices."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import jax

from nfd_jax._checks import positive_int

WAYS = (
    "under SLURM, Open MPI or another launcher that jax knows, --distributed is enough (srun nfd-jax ... "
    "--distributed); elsewhere start every process with --coordinator HOST:PORT --processes N --process-id I, "
    "I from 0 to N - 1, HOST:PORT a free port of the machine of process 0"
)


@dataclass(frozen=True)
class Cluster:
    """The processes that run this command together; by default this one alone.

    Args:
        distributed: Join the processes that SLURM, Open MPI or another launcher known to jax has started.
        coordinator: Without a launcher: HOST:PORT, a free port of the machine of process 0.
        processes: Without a launcher: how many processes there are.
        process_id: Without a launcher: which of them this is, from 0.
    """

    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        given = (self.coordinator, self.processes, self.process_id)
        if given == (None, None, None):
            return
        if self.coordinator is None or self.processes is None or self.process_id is None:
            names = ("--coordinator", "--processes", "--process-id")
            missing = ", ".join(name for name, value in zip(names, given, strict=True) if value is None)
            raise ValueError(f"--coordinator, --processes and --process-id go together, missing {missing}: {WAYS}")
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f"coordinator must be HOST:PORT, got {self.coordinator!r}")
        positive_int("processes", self.processes)
        if not 0 <= self.process_id < self.processes:
            raise ValueError(f"process_id must be at least 0 and below {self.processes}, got {self.process_id}")

    def join(self) -> bool:
        """Join before anything is computed; whether this process is the one that shows and writes results.

        Waits for all processes; where some never come, jax ends the others after its five minutes. On CPU they talk
        through gloo, jax's own default. ValueError where there is no cluster.
        """
        if not self.distributed and self.coordinator is None:
            return True
        if self.coordinator is not None:
            # jax ends a process that waits in vain without an exception: say beforehand what for
            where = f"process {self.process_id} of {self.processes} joins at {self.coordinator}"
            print(f"nfd-jax: {where}", file=sys.stderr, flush=True)
        try:
            jax.distributed.initialize(self.coordinator, self.processes, self.process_id)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"no cluster to join ({error}): {WAYS}") from error
        return jax.process_index() == 0
