"""Tables and lists."""

from markupsafe import Markup
from vthink.components.common.html import blocks
from vthink.components.common.html.blocks import Filter, FilteredItem


def test_filter_buttons_count_the_entries_they_would_show():
    entries = [FilteredItem(content=Markup("x"), values={"outcome": [o]}) for o in ("right", "right", "wrong")]
    filters = [Filter(key="outcome", label="Outcome", choices=[("right", "right"), ("wrong", "wrong")])]
    html = blocks.filtered_list(filters, entries)
    assert "right <small>2</small>" in html
    assert "wrong <small>1</small>" in html
    assert 'data-outcome="wrong"' in html


def test_a_cell_of_markup_is_sorted_by_its_words():
    html = blocks.table(["", "n"], [[Markup('<button data-show="{}">show</button>'), 3]], sortable=True)
    assert html.count('data-sort="show"') == 1
    assert '<td data-sort="show"><button data-show="{}">show</button></td>' in html
