"""Make the records that the pages of claims are generated from: `python docs/collect.py results/studies`.

Of every study that a folder of results holds (`nfd-jax study`, `nfd-jax claims`) it writes `docs/measured/NAME.json`,
what was found with its provenance, and a small figure a panel, `docs/figures/claims/NAME-1.svg` and so on, with a text
for those who do not see it. All is made anew of the cells, and nothing is measured: a study of which a cell is missing
is refused.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import tyro

from nfd_jax import studies
from nfd_jax.io import plotting, records

DOCS = Path(__file__).parent
PROVENANCE = ("device", "x64", "python")
SVG = {"svg.fonttype": "none", "svg.hashsalt": "nfd_jax"}  # text as text, and the same file of the same numbers
SIZE = (5.2, 4.0)  # inches: what is readable on a telephone


def finding(found: studies.Finding) -> dict[str, Any]:
    """One line of a table, with its numbers as they are."""
    numbers = {"measured": found.measured.value, "half_width": found.measured.half_width()}
    return {
        "quantity": found.quantity,
        "source": found.source,
        "predicted": found.predicted.text,
        **{name: float(number) if math.isfinite(number) else None for name, number in numbers.items()},
        "verdict": found.verdict.value,
    }


def described(panel: Any) -> str:
    """What a panel shows, in words."""
    if isinstance(panel, studies.Map):
        return f"{' '.join(panel.title.split())}: a map over {panel.x_label} and {panel.y_label}"
    labels = [line.label for line in (*panel.lines, *panel.levels) if line.label and not line.label.startswith("_")]
    named = f" Lines: {'; '.join(labels)}." if labels else ""
    return f"{panel.title}: {panel.y_label} against {panel.x_label}.{named}"


def drawn(report: studies.Report) -> list[dict[str, str]]:
    """The panels as files, with their texts."""
    folder, name = DOCS / "figures" / "claims", report.study.name
    for old in folder.glob(f"{name}-*.svg"):
        old.unlink()
    found = []
    for number, panel in enumerate(report.study.draw(report.results), 1):
        figure = plotting.panels("", [panel])
        figure.set_size_inches(*SIZE)
        file = f"{name}-{number}.svg"
        with matplotlib.rc_context(SVG):
            figure.savefig(folder / file, metadata={"Date": None})
        found.append({"file": file, "alt": described(panel)})
    return found


def reported(path: Path) -> tuple[studies.Report, dict[str, str]]:
    """The report of the cells beside a saved record, and what the record says of its making."""
    saved = records.load(path)
    made = json.loads(saved.attrs["arguments"])
    study = studies.STUDIES[made["study"]]

    @functools.wraps(study.measure)
    def refuse(**cell: Any) -> Any:
        raise LookupError(f"a cell of {study.name!r} is missing; run nfd-jax study {study.name} again: {cell}")

    report = studies.run(
        replace(study, measure=refuse), made["scale"], folder=path.parent, sizes=made["sizes"], progress=False
    )
    versions = json.loads(saved.attrs["versions"])
    return report, {name: saved.attrs[name] for name in PROVENANCE} | {"jax": versions["jax"]}


def write(path: Path) -> None:
    """The record and the figure of one study."""
    report, made = reported(path)
    study = report.study
    record = {
        "number": study.number,
        "claim": study.claim,
        "source": study.source,
        "setting": study.setting,
        "warnings": report.warnings(),
        "scale": report.scale,
        "sizes": vars(report.results.sizes),
        "revision": study.revision,
        "made": made,
        "panels": drawn(report),
        "findings": [finding(found) for found in report.findings],
    }
    target = DOCS / "measured" / f"{study.name}.json"
    target.write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    print(f"{study.title}: {len(report.findings)} findings")


def main(folder: tyro.conf.Positional[Path], only: Annotated[tuple[str, ...], tyro.conf.Positional] = ()) -> None:
    """Collect finished studies.

    Args:
        folder: Of results, with NAME.nc and NAME/cells of every study.
        only: Names of studies; by default all that are there.
    """
    there = [name for name in studies.STUDIES if (folder / f"{name}.nc").exists()]
    for name in only or there:
        write(folder / f"{name}.nc")
    if not (only or there):
        raise SystemExit(f"no record of a study in {str(folder)!r}; make some with nfd-jax claims")


if __name__ == "__main__":
    tyro.cli(main)
