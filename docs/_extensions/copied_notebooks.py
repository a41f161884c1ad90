"""The notebooks of `notebooks/` as pages: Sphinx reads only what lies under `docs/`."""

import shutil
from pathlib import Path

from sphinx.application import Sphinx


def copied(app: Sphinx) -> None:
    """All that are there, as they are stored."""
    folder = Path(app.srcdir) / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for notebook in sorted((Path(app.srcdir).parent / "notebooks").glob("*.ipynb")):
        shutil.copy2(notebook, folder)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", copied)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
