"""Labelled results on disk: netCDF files with the provenance of every number, never half-written."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import xarray as xr

from nfd_jax.checkpoint import partial_of

PACKAGES = ("nfd_jax", "jax", "jaxlib", "equinox", "optax", "numpy", "xarray")


def provenance(arguments: Mapping[str, Any]) -> dict[str, str]:
    """What made a result: arguments, versions, device, precision and time, as strings that netCDF can hold."""
    devices = jax.devices()
    return {
        "arguments": json.dumps(dict(arguments), default=str),
        "versions": json.dumps({name: version(name) for name in PACKAGES}),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{len(devices)} x {devices[0].platform} ({devices[0].device_kind})",
        "processes": str(jax.process_count()),
        "x64": str(jax.config.read("jax_enable_x64")),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def output_folder(path: str | Path) -> Path:
    """The folder, made if missing; a ValueError that names it if nothing can be written there."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # a process of another machine may have the same name
    except OSError as error:
        raise ValueError(
            f"output folder {str(folder)!r} can't be written ({error.strerror or error}); choose another with --output"
        ) from error
    return folder


def save(dataset: xr.Dataset, path: Path, arguments: Mapping[str, Any]) -> Path:
    """Write the dataset with its provenance as netCDF; the file appears whole or not at all."""
    complete = dataset.assign_attrs(provenance(arguments))
    partial = partial_of(path)
    complete.to_netcdf(partial, engine="h5netcdf")
    partial.replace(path)
    return path


def load(path: str | Path) -> xr.Dataset:
    """A dataset written by `save`, read into memory."""
    with xr.open_dataset(path, engine="h5netcdf") as dataset:
        return dataset.load()
