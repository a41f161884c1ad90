"""Docstrings are plain text with `code`, indented formulas and - lists: what reStructuredText would take for markup
becomes literal."""

import re

from sphinx.application import Sphinx

CODE = re.compile(r"(``.+?``|`[^`]+`|\*\*[^*]+\*\*)", re.DOTALL)
MARKUP = re.compile(r"\*(?!\s)|\||(?<=\w)_(?!\w)")
ARGUMENT = re.compile(r"(\w+): ")
INDENT = 4


def indent(line: str) -> int:
    """Of a line that is not empty."""
    return len(line) - len(line.lstrip())


def plain(lines: list[str]) -> list[str]:
    """Text whose stars, bars and underscores mean themselves, outside of code and bold."""
    parts = CODE.split("\n".join(lines))
    marked = (part if place % 2 else MARKUP.sub(r"\\\g<0>", part) for place, part in enumerate(parts))
    return "".join(marked).split("\n")


def arguments(lines: list[str]) -> list[str]:
    """The lines below "Args:" as a list; what tyro reads looks like this, all else is a list already."""
    made, deep = [], None
    for line in lines:
        if deep is not None and line.strip() and indent(line) <= deep:
            deep = None
        if deep is not None and line.strip():
            item = indent(line) == deep + INDENT
            text = ARGUMENT.sub(r"- `\1`: ", line.strip(), count=1) if item else f"  {line.strip()}"
            made.append(" " * deep + text)
        elif line.strip() == "Args:":
            deep = indent(line)
            made += [" " * deep + "**Arguments:**", ""]
        else:
            made.append(line)
    return made


def prepared(app, what, name, obj, options, lines: list[str]) -> None:
    """Indented blocks behind an empty line are literal, all else is plain."""
    chunks: list[tuple[bool, list[str]]] = [(False, [])]
    above, behind_empty = 0, False
    for line in arguments(lines):
        if line.strip():
            deep = indent(line)
            literal = deep > above if chunks[-1][0] else behind_empty and deep >= above + INDENT
            if literal and not chunks[-1][0]:
                chunks[-1][1].extend([" " * above + "::", ""])
            if literal != chunks[-1][0]:
                chunks.append((literal, []))
            above = above if literal else deep
        behind_empty = not line.strip()
        chunks[-1][1].append(line)
    lines[:] = [line for literal, chunk in chunks for line in (chunk if literal else plain(chunk))]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", prepared)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
