"""A page for every claim, and a table of all, from the studies and from the records in `docs/measured/`.

A record is what `docs/collect.py` makes of a finished study. What the page of a claim says of its source and setting is
what was measured then; where the code has moved on since, the page says so.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from nfd_jax import studies
from nfd_jax.statistics import shown

VERDICTS = [verdict.value for verdict in studies.Verdict]
PAPERS = {
    "NFD": "https://arxiv.org/abs/2512.21075",
    "TP6": "https://arxiv.org/abs/2310.02244",
    "DHT": "https://arxiv.org/abs/2309.16620",
    "FSF": "https://arxiv.org/abs/2311.18718",
    "Haas et al.": "https://arxiv.org/abs/2505.22491",
    "CompleteP": "https://arxiv.org/abs/2505.01618",
}
POWER = re.compile(r"\^(?:\(([^()\s]+)\)|([-+]?\w+(?:[./]\d+)?))")
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|$~])")


def text(words: str) -> str:
    """Words of a study, none of them markup; powers are raised."""
    return POWER.sub(raised, SPECIAL.sub(r"\\\1", words))


def raised(power: re.Match[str]) -> str:
    """n^-1/2, and n^(-1/2), as they are written by hand."""
    return f"{{sup}}`{(power[1] or power[2]).replace('-', '−')}`"


def cited(source: str) -> str:
    """A source with links to the papers it names."""
    return re.sub("|".join(map(re.escape, PAPERS)), lambda found: f"[{found[0]}]({PAPERS[found[0]]})", text(source))


def counted(findings: list[dict[str, Any]]) -> str:
    """How many findings of each verdict there are."""
    counts = Counter(found["verdict"] for found in findings)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])


def sizes(record: dict[str, Any]) -> str:
    """The sizes of the grid in one line of code."""
    return json.dumps(record["sizes"], ensure_ascii=False)


def row(found: dict[str, Any]) -> str:
    """One finding as a line of a table."""
    nan = float("nan")
    measured = shown(*(nan if found[name] is None else found[name] for name in ("measured", "half_width")))
    cells = text(found["quantity"]), found["verdict"], text(measured), text(found["predicted"]), cited(found["source"])
    return f"| {' | '.join(cells)} |"


def image(panel: dict[str, str]) -> str:
    """One panel, with its text."""
    return f":::{{image}} ../figures/claims/{panel['file']}\n:alt: {panel['alt']}\n:::"


def measured_part(study: studies.Study, record: dict[str, Any]) -> list[str]:
    """Verdicts, figure and numbers of a page."""
    made = record["made"]
    precision = "float64" if made["x64"] == "True" else "float32"
    moved = (study.claim, study.setting, study.revision) != tuple(
        record[name] for name in ("claim", "setting", "revision")
    )
    return [
        *([":::{warning}\nThe study has changed since this was measured.\n:::\n"] if moved else []),
        f"**Verdicts**: {counted(record['findings'])}. ([What a verdict means](../claims.md).)",
        "",
        *(f"> {text(warning)}\n" for warning in record["warnings"]),
        *(["::::{container} panels", *map(image, record["panels"]), "::::", ""] if record["panels"] else []),
        f"Measured at {record['scale']} scale on {made['device']}, {precision}, jax {made['jax']}; bars are 95 %.",
        "",
        "| quantity | verdict | measured (95 %) | predicted | source |",
        "|---|---|---|---|---|",
        *map(row, record["findings"]),
        "",
        f"Sizes: `{sizes(record)}`",
    ]


def page(study: studies.Study, record: dict[str, Any] | None) -> str:
    """The page of one claim."""
    told = record or {"claim": study.claim, "source": study.source, "setting": study.setting}
    return "\n".join(
        [
            f"# {study.number} · {study.name}",
            "",
            f"**Claim** ({cited(told['source'])}): {text(told['claim'])}.",
            "",
            f"**Measured here**: {text(told['setting'])}.",
            "",
            f"```console\n$ nfd-jax study {study.name}\n```",
            "",
            *(measured_part(study, record) if record else ["Its record is not in this copy of the documentation."]),
            "",
            f"The code: {{py:mod}}`nfd_jax.studies.{module(study)}`.",
            "",
        ]
    )


def module(study: studies.Study) -> str:
    """Where a study is defined."""
    return next(each.__name__.rpartition(".")[2] for each in studies.MODULES if each.STUDY is study)


def table(records: dict[str, dict[str, Any] | None]) -> str:
    """All claims, a line each, and the list of their pages."""
    lines = ["| | claim | source | verdicts |", "|---|---|---|---|"]
    every: list[dict[str, Any]] = []
    for name, record in records.items():
        study = studies.STUDIES[name]
        findings = record["findings"] if record else []
        every += findings
        claim = f"[{name}](claims/{name}.md): {text(study.claim)}"
        lines.append(f"| {study.number} | {claim} | {cited(study.source)} | {counted(findings) or 'no record here'} |")
    pages = "\n".join(f"claims/{name}" for name in records)
    return "\n".join([*lines, f"\nIn all {counted(every)}.\n", f":::{{toctree}}\n:hidden:\n\n{pages}\n:::\n"])


def write(path: Path, written: str) -> None:
    """Where it differs, so that a page that has not changed is not read again."""
    if not path.exists() or path.read_text() != written:
        path.write_text(written)


def generated(app: Sphinx) -> None:
    """The pages, before any is read."""
    docs = Path(app.srcdir)
    (docs / "claims").mkdir(exist_ok=True)
    numbered = sorted(studies.STUDIES.values(), key=lambda study: study.number or 0)
    files = {study.name: docs / "measured" / f"{study.name}.json" for study in numbered if study.number}
    records = {name: json.loads(file.read_text()) if file.exists() else None for name, file in files.items()}
    for name, record in records.items():
        write(docs / "claims" / f"{name}.md", page(studies.STUDIES[name], record))
    write(docs / "claims" / "table.md", table(records))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", generated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
