"""No figure without a text for those who do not see it: a warning, which fails the strict build."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def described(app: Sphinx, doctree: nodes.document) -> None:
    """Of a page: figures of notebooks, which are drawn by the code above them, say so."""
    notebook = app.env.docname.startswith("notebooks/")
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            if notebook:
                image["alt"] = "Figure drawn by the code above; its title and labels are in that code."
            else:
                logger.warning("the figure %s has no alt text", image["uri"], location=image)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", described)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
