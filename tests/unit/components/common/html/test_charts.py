"""Bars and lines."""

import math
import re

from vthink.components.common.html import charts
from vthink.components.common.html.charts import Bar


def test_bars_stay_inside_their_scale():
    html = charts.bars([Bar(label="a", value=3.0, low=-1.0, high=9.0), Bar(label="b", value=math.nan)])
    assert all(float(x) <= 100 for x in re.findall(r"([\d.]+)%", html))


def test_a_chart_without_points_says_so():
    assert "nothing measured" in charts.line_chart({"loss": [(0, math.nan)]})
    assert charts.line_chart({"loss": [(0, 2.0), (1, math.nan), (2, 1.0)]}).count("<polyline") == 1
