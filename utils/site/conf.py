"""What Sphinx is told about the site; `python -m utils.site` builds it, and nobody else reads this file."""

import base64
import hashlib
import json
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

from utils.report import TITLE, tags

_log = logging.getLogger(__name__)

extensions = ["myst_nb"]
project, language, highlight_language = TITLE, "en", "none"
root_doc = "README"
others = ("INSTRUCTORS", "CONTRIBUTING", "data/README", "figures/README")  # pages beside the notebooks, where they are
include_patterns = ["README.md", "notebooks/[0-9][0-9]_*.ipynb", *(f"{name}.md" for name in others)]
nb_execution_mode = "off"  # the stored outputs are part of the course
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"  # the browser's own: MathJax would come from elsewhere

html_theme = "furo"
html_title = TITLE
html_static_path, html_css_files, templates_path = ["static"], ["site.css"], ["templates"]
html_copy_source = html_show_sourcelink = html_show_copyright = False
html_domain_indices = html_use_index = False
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"


def setup(app):
    """Hang our steps into Sphinx's; it calls this."""
    app.connect("source-read", _add_contents)
    app.connect("source-read", _fold_answers)
    app.connect("doctree-read", _describe_figures)
    app.add_html_math_renderer("mathml", (_write_math, None), (_write_math, None))
    # Excerpts beside the pages found are fetched, which a browser forbids on pages that no server has sent.
    app.add_js_file(None, body='if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;')


def _add_contents(app, docname, source):
    """Put the list of pages, which the side bar shows, below the front page."""
    if docname != root_doc:
        return
    pages = app.env.found_docs
    notebooks = sorted(name for name in pages if name.startswith("notebooks/"))
    for caption, names in (("Notebooks", notebooks), ("More", [name for name in others if name in pages])):
        source[0] += "\n".join(["", "", "```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```", ""])


def _fold_answers(app, docname, source):
    """Show cells tagged `solution` or `check`, which says what is right as well, only to who asks for them."""
    if app.env.doc2path(docname).suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        tag = next((tag for tag in ("solution", "check") if tag in tags(cell)), None)
        if tag and cell["cell_type"] == "code":
            cell["metadata"]["tags"].append("hide-cell")
            cell["metadata"]["mystnb"] = {"code_prompt_show": f"Show {tag}", "code_prompt_hide": f"Hide {tag}"}
        elif tag:
            text = "".join(cell["source"])
            cell["source"] = f"<details><summary>Show {tag}</summary>\n\n{text}\n\n</details>"
    source[0] = json.dumps(notebook)


def _describe_figures(app, doctree):
    """Give the figures of a notebook their alternative texts, which myst-nb passes over; miss none, load none."""
    path = app.env.doc2path(app.env.docname)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.suffix == ".ipynb" else []
    outputs = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    texts = {_name(output): output["metadata"].get("image/png", {}).get("alt", "") for output in outputs}
    for image in doctree.findall(nodes.image):
        image.setdefault("alt", texts.get(Path(image["uri"]).stem, ""))
        if not image["alt"]:
            _log.warning("a figure without alternative text: use plots.show(fig, alt=...)", location=image)
        if "://" in image["uri"]:
            _log.warning("%s lies elsewhere: without a network nobody sees it", image["uri"], location=image)


def _name(output):
    """Return what myst-nb calls the file of a picture: the hash of its bytes."""
    return hashlib.sha256(base64.b64decode("".join(output["data"]["image/png"]))).hexdigest()


def _write_math(translator, node):
    """Write a formula as MathML, which a browser draws without any script."""
    block = isinstance(node, nodes.math_block)
    try:
        formula = tex2mathml(node.astext(), as_block=block)
        translator.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    except MathError as error:
        _log.warning("a formula cannot be shown: %s Write it with other commands.", error, location=node)
    raise nodes.SkipNode
