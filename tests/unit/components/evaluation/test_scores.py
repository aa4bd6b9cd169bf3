import numpy as np
import pytest
from vthink.components.evaluation.item import Item
from vthink.components.evaluation.scores import Score, accuracy, kind_part
from vthink.components.evaluation.statistics import Resampling


def test_an_interval_of_a_mean_of_means_is_that_of_the_mean_where_the_parts_are_alike():
    rng = np.random.default_rng(0)
    items = [
        Item(
            id=str(i),
            video=f"v{i // 10}",
            condition="ordered",
            problem_type="multiple_choice",
            kind=f"k{i % 2}",
            metrics={"accuracy": float(rng.random() < 0.4 + 0.02 * (i // 100))},
        )
        for i in range(500)
    ]
    resampling = Resampling(resamples=4000)
    flat = Score("", accuracy).estimate(items, resampling)
    nested = Score("", accuracy, kind_part).estimate(items, resampling)
    assert flat is not None
    assert nested is not None
    assert nested.value == pytest.approx(flat.value)
    assert (nested.low, nested.high) == pytest.approx((flat.low, flat.high), abs=0.01)
    assert flat.high - flat.low > 0.05
