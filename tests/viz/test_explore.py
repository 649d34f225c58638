"""The page in a notebook's frame."""

from __future__ import annotations

import html
import re
from pathlib import Path

import refdiff
from refdiff.viz import attention_page, explore


def test_the_frame_holds_the_page(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint)
    made = explore(model, 'a "b" </iframe>', layer=1, pair=0, height=700)
    expected = attention_page(made.maps, prompt='a "b" </iframe>', model=tiny_checkpoint.name, layer=1, pair=0)
    assert made.page == expected
    shown = made._repr_html_()
    (inside,) = re.findall(r'srcdoc="([^"]*)"', shown)
    assert html.unescape(inside) == expected
    assert re.sub(r'srcdoc="[^"]*"', "", shown).count("<") == 2
    assert 'height="700"' in shown
    assert 'sandbox="allow-scripts"' in shown
    assert repr(made).startswith("Exploration of 16 tokens, 2 layers of 2 pairs")
    made.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == expected
