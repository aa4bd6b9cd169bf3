"""What a curation would take."""

from __future__ import annotations

from vthink.components.data_prep.config import CurationConfig
from vthink.components.data_prep.curation.curate import estimate

from .conftest import captions


def test_a_dry_run_counts_the_fewest_and_the_most_calls(tmp_path):
    good = {"timestamps": [[0, 1], [1, 2]], "sentences": ["x", "y"]}
    source = captions(tmp_path, {"a": good, "b": good, "c": {}})
    prices = {"usd_per_million_input_tokens": 1.0, "usd_per_million_output_tokens": 2.0}
    config = CurationConfig.load({"teacher": prices, "judge": prices, "max_malformed": 1, "max_regenerations": 2})
    found = estimate(source, tmp_path / "out.jsonl", config)
    assert (found.items, found.decided) == (3, 1)
    assert found.min_calls == 2 * (1 + 1 + 1)
    assert found.max_calls == 2 * (2 + 2 * 3 + 3)
    assert 0 < found.min_usd < found.max_usd
    assert not (tmp_path / "out.journal.jsonl").exists()
