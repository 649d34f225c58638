"""The page to explore attention in: page.html, page.css and the scripts beside this file, with the numbers put in."""

from refdiff.viz.page.build import attention_page

__all__ = ["attention_page"]
