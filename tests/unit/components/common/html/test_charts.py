"""Bars."""

import math
import re

from vthink.components.common.html import charts
from vthink.components.common.html.charts import Bar


def test_bars_stay_inside_their_scale():
    html = charts.bars([Bar(label="a", value=3.0, low=-1.0, high=9.0), Bar(label="b", value=math.nan)])
    assert all(float(x) <= 100 for x in re.findall(r"([\d.]+)%", html))
