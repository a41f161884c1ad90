"""Labelled results on disk: netCDF files with the provenance of every number, never half-written."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import xarray as xr

from nfd_jax.runtime.files import checksum, replacing

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


def save(dataset: xr.Dataset, path: Path, arguments: Mapping[str, Any]) -> Path:
    """Write the dataset with its provenance as netCDF; the file appears whole or not at all."""
    complete = dataset.assign_attrs(provenance(arguments) | {"checksum": checksum(_arrays(dataset))})
    with replacing(path) as partial:
        complete.to_netcdf(partial, engine="h5netcdf")
    return path


def load(path: str | Path) -> xr.Dataset:
    """A dataset written by `save`, read into memory. ValueError, which names the file, for one that is cut, changed or
    of another kind."""
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            dataset = opened.load()
    except Exception as error:  # of whatever kind h5py raises for a file that is not whole
        raise ValueError(
            f"{str(path)!r} is not a whole record of nfd_jax ({type(error).__name__}: {error}); remove it"
        ) from error
    if dataset.attrs.get("checksum") != checksum(_arrays(dataset)):
        raise ValueError(f"{str(path)!r} does not hold what was written to it; remove it")
    return dataset


def _arrays(dataset: xr.Dataset) -> dict[str, Any]:
    """All variables and coordinates, with the names of their axes."""
    return {f"{name} {values.dims}": values.values for name, values in dataset.variables.items()}
