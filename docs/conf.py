"""Sphinx: what `make docs` builds from these Markdown files and the package's docstrings."""

import re

from sphinx.application import Sphinx

from cxr_fast import __version__

project = "cxr_fast"
release = version = __version__
html_title = f"cxr_fast {version}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["recipes"]
# ops, runtime and reference have results of one name, by contract.
suppress_warnings = ["ref.python"]

myst_heading_anchors = 4  # headings as GitHub names them, so that a link works in both places
smartquotes = False
highlight_language = "none"  # a block without a language is not Python

autodoc_typehints_format = "short"
autodoc_type_aliases = {"npt.ArrayLike": "ArrayLike", "npt.NDArray": "NDArray"}
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
python_display_short_literal_types = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5f8b", "color-brand-content": "#1f5f8b"},
    "dark_css_variables": {"color-brand-primary": "#7fb8dd", "color-brand-content": "#7fb8dd"},
}

EVIDENCE = {
    "planted": "Drawn X-rays",
    "planted-real": "Planted in real X-rays",
    "planted-real-long": "Planted in real X-rays, trained longer",
    "siim": "Real opacities",
}


def give_tables_a_title(app: Sphinx, docname: str, source: list[str]) -> None:
    """`cxr-fast reproduce` writes tables as parts of a document; here each is a page."""
    folder, _, name = docname.removeprefix("evidence/").partition("/")
    if docname.startswith("evidence/"):
        table = re.sub(r"(\d)", r" \1", name) if name != folder else "all rules"
        source[0] = f"# {EVIDENCE.get(folder, folder)}: {table}\n\n{source[0]}"


def leave_out_bare_fields(
    app: Sphinx, what: str, name: str, thing: object, skip: bool, options: object
) -> bool:
    """Fields of tuples, whose docstring is Python's own: the class says what each one is."""
    return skip or str(getattr(thing, "__doc__", "")).startswith("Alias for field number")


def setup(app: Sphinx) -> None:
    """What pages and docstrings need before they are read."""
    app.connect("source-read", give_tables_a_title)
    app.connect("autodoc-skip-member", leave_out_bare_fields)
