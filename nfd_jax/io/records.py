"""Labelled results on disk: netCDF files with the provenance of every number, never half-written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from nfd_jax.runtime import provenance as made
from nfd_jax.runtime.files import checksum, replacing


def provenance(arguments: Mapping[str, Any]) -> dict[str, str]:
    """What made a result: its arguments, and what `runtime.provenance` says of code, command and device."""
    return {"arguments": json.dumps(dict(arguments), default=str)} | made.provenance()


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
