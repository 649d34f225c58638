"""The interactive attention page: page.html, page.css and the scripts in this folder, filled with the numbers."""

from refdiff.viz.page.build import attention_page

__all__ = ["attention_page"]
