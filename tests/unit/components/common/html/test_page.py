"""A whole page: safe, alone, readable."""

import html.parser
import math
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from vthink.components.common.html import blocks, charts, images
from vthink.components.common.html import page as page_module
from vthink.components.common.html.blocks import Filter, FilteredItem
from vthink.components.common.html.charts import Bar
from vthink.components.common.html.images import Span, Track
from vthink.components.common.video.config import VideoConfig
from vthink.components.grpo.rollout_table import rollout_table
from vthink.tests.unit.components.grpo.tiny_training import rollouts_of

ATTACK = "<script>alert('x')</script>\" onmouseover=\"alert(1)"


def tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    found = []

    class Collector(html_parser):
        def handle_starttag(self, tag, attributes):
            found.append((tag, dict(attributes)))

    Collector().feed(html)
    return found


html_parser = html.parser.HTMLParser


def picture(value: int = 128) -> bytes:
    return images.jpeg(np.full((56, 56, 3), value, np.uint8))


def every_block(text: str) -> Markup:
    return page_module.joined(
        [
            page_module.paragraph(text),
            page_module.chip(text),
            blocks.table([text], [[text], [1.5], [3]], caption=text),
            charts.bars([Bar(label=text, value=0.5, low=0.4, high=0.6, note=text)]),
            images.timeline(8, [Track(label=text, spans=[Span(start_s=1, end_s=2, text=text)])]),
            blocks.filtered_list(
                [Filter(key="kind", label=text, choices=[("a", text)])],
                [FilteredItem(content=page_module.paragraph(text), values={"kind": ["a"]})],
            ),
            images.frame_strip([picture()], [0.0]),
            rollout_table(rollouts_of(ATTACK), VideoConfig(), ("accuracy", "format")),
        ]
    )


def test_no_text_becomes_markup_in_any_block():
    page = page_module.page(ATTACK, [(ATTACK, every_block(ATTACK)), ("plain text", ATTACK)], subtitle=ATTACK)
    found = tags(page)
    assert [tag for tag, _ in found].count("script") == 1  # the page's own
    assert not [attributes for _, attributes in found if "onmouseover" in attributes]
    assert "&lt;script&gt;" in page


def test_markup_given_on_purpose_is_kept():
    assert "<b>yes</b>" in page_module.page("t", [("", Markup("<b>yes</b>"))])


def test_the_page_asks_for_nothing_from_outside_and_forbids_foreign_scripts():
    page = page_module.page("t", [("", every_block("x"))])
    for _, attributes in tags(page):
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "http://" not in page
    assert "https://" not in page
    policy = next(a["content"] for t, a in tags(page) if t == "meta" and "Policy" in (a.get("http-equiv") or ""))
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline'; script-src" in policy


def test_the_page_fits_a_phone_and_both_colour_schemes():
    page = page_module.page("t", [])
    assert "width=device-width" in page
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1234, "1,234"),
        (0.12345, "0.123"),
        (12345.6, "1.235e+04"),
        (math.nan, "–"),
        (True, "True"),
        ("x", "x"),
    ],
)
def test_numbers_are_shortened_for_reading(value, expected):
    assert page_module.number(value) == expected


def test_the_templates_lie_beside_the_module():
    folder = Path(page_module.__file__).parent
    assert all((folder / name).is_file() for name in ("page.jinja", "blocks.jinja", "page.css", "page.js"))
