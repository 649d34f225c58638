"""Sphinx's settings for the reference pages; `python notebooks/reference/build.py` makes their sources and calls it."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import docstrings  # noqa: E402  (a folder of scripts, not a package)
from sphinx.util.inspect import TypeAliasForwardRef  # noqa: E402

import refdiff  # noqa: E402

project = "refdiff"
author = copyright = "refdiff maintainers"
version = release = refdiff.__version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
suppress_warnings = ["config.cache"]

# the notebooks show the outputs that they have; build.py of the folder above holds them to a fresh run
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "deflist", "attrs_block"]
myst_heading_anchors = 4

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"Array": "Array", "Inputs": "Inputs", "Numpy": "Numpy", "Scores": "Scores", "Ids": "Ids"}
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# lines of a file change with every commit, so that the anchors to them are not looked for
linkcheck_anchors = False
linkcheck_timeout = 20
linkcheck_retries = 2

html_theme = "furo"
html_title = "refdiff"
html_static_path = [str(HERE / "static")]
html_css_files = ["reference.css"]
html_js_files = ["reference.js"]
html_copy_source = False
html_show_sphinx = False
templates_path = [str(HERE / "templates")]
html_sidebars = {
    "**": [
        "sidebar/brand.html", "sidebar/search.html", "sidebar/scroll-start.html", "article.html",
        "sidebar/navigation.html", "sidebar/scroll-end.html",
    ]
}  # fmt: skip
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

# one file of MathJax, kept beside the pages: they need no network
mathjax_path = "mathjax/tex-svg.js"


# in a union Sphinx shows an alias by its repr
TypeAliasForwardRef.__repr__ = lambda self: self.name  # type: ignore[method-assign]


def setup(app):  # type: ignore[no-untyped-def]
    """Connect what makes pages of docstrings, and put MathJax beside the pages."""

    def process(app, what, name, obj, options, lines):  # type: ignore[no-untyped-def]
        lines[:] = docstrings.convert(lines)

    def copy_mathjax(app, error):  # type: ignore[no-untyped-def]
        spec = importlib.util.find_spec("sphinx-mathjax-offline")
        source = Path(spec.origin).parent / "static" / "mathjax" / "tex-svg.js"  # type: ignore[union-attr, arg-type]
        target = Path(app.outdir) / "_static" / "mathjax" / "tex-svg.js"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

    def lead_back(app, page, template, context, doctree):  # type: ignore[no-untyped-def]
        # viewcode takes all names of a file for those of one module; some are public in another
        if page.startswith("_modules/"):
            known = app.env.domains.python_domain.objects
            context["body"] = re.sub(r'(?<=#)refdiff[\w.]+(?=")', lambda m: public(m[0], known), context["body"])

    def public(name, known):  # type: ignore[no-untyped-def]
        ends = [name.split(".", cut)[-1] for cut in range(name.count(".") + 1)]  # the longest first
        return next((n for end in ends for n in known if n == end or n.endswith(f".{end}")), name)

    app.connect("html-page-context", lead_back)

    def signature(app, what, name, obj, options, signature, returned):  # type: ignore[no-untyped-def]
        return signature and signature.replace("<factory>", "..."), returned  # or it is not read as one

    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", process)
    app.connect("build-finished", copy_mathjax)
