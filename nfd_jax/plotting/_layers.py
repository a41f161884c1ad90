"""What was observed along the depth of a network: kernels, paths of neurons, spectra, ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from nfd_jax._checks import one_of, positive_int
from nfd_jax.plotting._drawing import DASHES, MARKERS, ORDERED, SIGNED, band, current, shades
from nfd_jax.plotting._runs import Run, along_depth, averaged, dataset_of, good, place

KERNELS = {"feature_kernel": "⟨h, h′⟩", "gradient_kernel": "⟨g, g′⟩"}
NEURONS = {"neuron_features": "h of a neuron", "neuron_gradients": "g of a neuron"}
BASES = ("forward", "backward", "updates")
ALONG = ("layer", "step")
RELATIVE = 1e-6  # eigenvalues below so many times the largest are rounding


def _when(snapshot: int) -> str:
    return "before training" if snapshot == 0 else f"step {snapshot}"


def _snapshot(values: xr.DataArray, index: int) -> tuple[xr.DataArray, int]:
    """An observed array at a snapshot, and the updates before that."""
    if "snapshot" not in values.dims:
        raise ValueError(f"{values.name} has the axes {values.dims} and was not observed along training")
    found = place(values, "snapshot", index)
    return found, index % values.sizes["snapshot"]


def kernel(
    run: Run,
    axes: Axes | None = None,
    *,
    name: str = "feature_kernel",
    snapshot: int = -1,
    layer: int = -1,
    colorbar: bool = True,
    **mesh: Any,
) -> Axes:
    """One kernel `(P, P)` as a heat map, averaged over the members that did not diverge.

    **Arguments:**

    - `run`: observed by `nfd.observables.kernels`, or by a function whose array has two axes of samples.
    - `name`: `"feature_kernel"`, `"gradient_kernel"`, `(snapshots, L + 1, P, P)`, or another such array.
    - `snapshot`: how many updates before it, counted from the last where negative; `layer`: 0 to L, likewise.
    - `colorbar`: beside the axes; `mesh`: of matplotlib's `imshow`, such as `vmin` and `vmax`.

    Kernels with negative entries, or a negative `vmin`, are drawn about zero, red above and blue below, others from
    zero on. Returns the axes. ValueError where the run lacks the kernel, the layer or the snapshot.
    """
    dataset = dataset_of(run, name)
    values, step = _snapshot(good(dataset, name), snapshot)
    axis, places, what = along_depth(values, dataset)
    matrix = place(values, axis, layer)
    matrix = (matrix.mean("seed") if "seed" in matrix.dims else matrix).values
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be one matrix (P, P) a layer, got shape {matrix.shape}")
    most = max(-mesh.get("vmin", matrix.min()), mesh.get("vmax", matrix.max()))
    signed = {"cmap": SIGNED, "vmin": -most, "vmax": most}
    axes = current(axes)
    image = axes.imshow(
        matrix, **((signed if mesh.get("vmin", matrix.min()) < 0 else {"cmap": ORDERED, "vmin": 0.0}) | mesh)
    )
    if colorbar:
        axes.figure.colorbar(image, ax=axes, shrink=0.85, label=KERNELS.get(name, name))
    axes.set(xlabel="sample", ylabel="sample", title=f"{what.split()[-1]} = {places[layer]:g}, {_when(step)}")
    return axes


def neurons(
    run: Run,
    axes: Axes | None = None,
    *,
    name: str = "neuron_features",
    along: str = "layer",
    count: int = 6,
    sample: int = 0,
    member: int = 0,
    snapshots: Sequence[int] = (0, -1),
    layer: int = -1,
    **line: Any,
) -> Axes:
    """Paths of a few neurons, one colour each: over layer time, at steps of training, or over training at a layer.

    **Arguments:**

    - `run`: observed by `nfd.observables.neurons`.
    - `name`: `"neuron_features"`, h, or `"neuron_gradients"`, g: `(snapshots, L + 1, P, neurons)`.
    - `along`: `"layer"`, the path of h_t over t at every one of `snapshots`, which differ in dashes; or `"step"`, the
      path over training at `layer`.
    - `count`: how many, the first ones; `sample`: for which; `member`: of which member of an ensemble.
    - `line`: of matplotlib's `plot`.

    Returns the axes. ValueError where the run lacks the array, or so many neurons, layers, samples or snapshots.
    """
    one_of("along", along, ALONG)
    dataset = dataset_of(run, name)
    values = good(dataset, name)
    axis = "batch_sample" if "batch_sample" in values.dims else "sample"
    values = place(place(values, "seed", member) if "seed" in values.dims else values, axis, sample)
    positive_int("count", count, maximum=values.sizes["neuron"])
    values = values.isel(neuron=slice(0, count))
    colors, axes = shades(count), current(axes)
    depth_axis, places, what = along_depth(values, dataset)
    if along == "step":
        paths = place(values, depth_axis, layer).transpose("snapshot", "neuron").values
        for path, color in zip(paths.T, colors, strict=True):
            axes.plot(dataset.snapshot.values, path, **({"color": color} | line))
        axes.set(xlabel="training step", title=f"{what.split()[-1]} = {places[layer]:g}")
    else:
        for number, snapshot in enumerate(snapshots):
            found, step = _snapshot(values, snapshot)
            paths = found.transpose(depth_axis, "neuron").values
            look: dict[str, Any] = {"linestyle": DASHES[(len(snapshots) - 1 - number) % len(DASHES)]}
            for path, color in zip(paths.T, colors, strict=True):
                axes.plot(places, path, **(look | {"color": color} | line))
            axes.plot([], [], color="0.3", **look, label=_when(step))
        axes.legend(fontsize=8)
        axes.set_xlabel(what)
    axes.set_ylabel(NEURONS.get(name, name))
    axes.grid(alpha=0.3)
    return axes


def spectrum(
    run: Run,
    axes: Axes | None = None,
    *,
    name: str = "feature_kernel",
    snapshot: int = -1,
    count: int = 6,
    **line: Any,
) -> Axes:
    """The largest eigenvalues of kernels over layer time: the squares of the singular values of h or g / sqrt(n).

    **Arguments:**

    - `run`, `name`, `snapshot`: as for `kernel`.
    - `count`: eigenvalues, from the largest down, at most P; those below 1e-6 of the largest are rounding, left out.
    - `line`: of matplotlib's `plot`.

    Lines are geometric means over the members that did not diverge, with their 95 % bands, on a logarithmic axis.
    Returns the axes. ValueError where the run lacks the kernels or the snapshot.
    """
    dataset = dataset_of(run, name)
    values, step = _snapshot(good(dataset, name), snapshot)
    axis, places, what = along_depth(values, dataset)
    leading = ("seed",) if "seed" in values.dims else ()
    matrices = values.transpose(*leading, axis, ...).values.astype(np.float64)
    if matrices.ndim != len(leading) + 3 or matrices.shape[-1] != matrices.shape[-2]:
        raise ValueError(f"{name} must be one matrix (P, P) a layer, got shape {matrices.shape}")
    positive_int("count", count, maximum=matrices.shape[-1])
    eigenvalues = np.linalg.eigvalsh(matrices)[..., ::-1][..., :count]
    eigenvalues = np.where(eigenvalues > RELATIVE * eigenvalues[..., :1], eigenvalues, np.nan)
    found = averaged(eigenvalues if leading else eigenvalues[None], "log")
    axes = current(axes)
    for number, color in enumerate(shades(count)):
        look: dict[str, Any] = {
            "color": color,
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 3,
            "label": f"{number + 1}",
        }
        axes.plot(places, found.middle[:, number], **(look | line))
        band(axes, places, found.low[:, number], found.high[:, number], color)
    axes.set_yscale("log")
    axes.set(xlabel=what, ylabel=f"eigenvalues of {KERNELS.get(name, name)}", title=_when(step))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    return axes


def ranks(run: Run, axes: Axes | None = None, *, basis: str = "forward", **line: Any) -> Axes:
    """Directions of every hidden matrix that training has revealed, against the step; one line a matrix.

    **Arguments:**

    - `run`: of revealed matrices, observed by `nfd.observables.ranks`: `(snapshots, 2 or 3, L)`.
    - `basis`: `"forward"`, directions of forward queries, `"backward"`, or `"updates"`, which a run with a resolution
      has.
    - `line`: of matplotlib's `plot`.

    Of an ensemble it is the mean. Returns the axes. ValueError where the run lacks what is asked for.
    """
    dataset = dataset_of(run, "ranks")
    values = good(dataset, "ranks")
    there = BASES[: values.sizes["basis"]]
    if one_of("basis", basis, BASES) not in there:
        raise ValueError(f"basis={basis!r} is of runs with a resolution, and this one is exact; it has {there}")
    values = values.isel(basis=BASES.index(basis))
    values = (values.mean("seed") if "seed" in values.dims else values).transpose("snapshot", "matrix")
    axes, count = current(axes), values.sizes["matrix"]
    for number, color in enumerate(shades(count)):
        label = f"matrix {number + 1}" if number in (0, count - 1) else None
        look: dict[str, Any] = {"color": color, "label": label} | line
        axes.plot(dataset.snapshot.values, values.values[:, number], **look)
    axes.set(xlabel="training step", ylabel="directions of a matrix", title=basis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return axes


def profile(
    run: Run,
    name: str,
    axes: Axes | None = None,
    *,
    snapshot: int = -1,
    label: str | None = None,
    **line: Any,
) -> Axes:
    """Any observed array along the depth, such as sizes, effective updates or responses: its mean over all axes but
    that of layers, with its 95 % band over members.

    **Arguments:**

    - `run`: one that observed `name`, with an axis of layers, matrices or blocks.
    - `snapshot`: how many updates before it, counted from the last where negative.
    - `label`, `line`: of matplotlib's `plot`.

    Returns the axes. ValueError where the run lacks the array or the snapshot, or the array an axis along the depth.
    """
    dataset = dataset_of(run, name)
    values, step = _snapshot(good(dataset, name), snapshot)
    axis, places, what = along_depth(values, dataset)
    values = values.mean([each for each in values.dims if each not in ("seed", axis)])
    found = averaged(values.values if "seed" in values.dims else values.values[None])
    axes = current(axes)
    (drawn,) = axes.plot(places, found.middle, label=_when(step) if label is None else label, **line)
    band(axes, places, found.low, found.high, drawn.get_color(), drawn.get_zorder() - 0.5)
    axes.set(xlabel=what, ylabel=name.replace("_", " "))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return axes
