"""Pass rates: what they count, that they are repeatable, and that an interrupted run asks nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.folder import ModelCard
from vthink.components.common.model.generation import Completion, Sampling, sample
from vthink.components.common.model.load import LoadedModel, tokens_per_second
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.rows.files import read_samples
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.rows.sample import Sample
from vthink.components.common.video.config import VideoConfig
from vthink.components.data_prep import difficulty
from vthink.components.data_prep.difficulty import pass_rates, rate_counts, rate_rows

SAMPLING = Sampling(max_new_tokens=3, temperature=1.0, seed=1)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    video = VideoConfig(num_frames=8, min_pixels=56 * 56, max_pixels=56 * 56)
    built, processor = build_tiny(TinyModelConfig(), video, 0)
    return LoadedModel(
        built.eval(),
        ChatEncoder(processor, "compact/1", video, tokens_per_second(built)),
        ModelCard(prompt="compact/1", video=video),
        folder=Path(),
    )


def test_a_pass_rate_is_the_share_of_right_rollouts_whatever_shares_the_batch(
    model: LoadedModel, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = prepared.split("train")
    graded: list[tuple[str, bool]] = []

    def grade(row: Sample, answer: str | None) -> bool:
        # An untrained model is never right; what counts here is that the grader decides, per rollout.
        right = len(graded) % 3 == 0
        graded.append((row.id, right))
        return right

    monkeypatch.setattr(difficulty, "is_correct", grade)
    rates = dict(pass_rates(model, split, [0, 1, 5], 4, SAMPLING, batch_size=8))
    for index in (0, 1, 5):
        mine = [right for name, right in graded if name == split.samples[index].id]
        assert rates[index] == sum(mine) / 4
    monkeypatch.undo()

    seen: list[list[str]] = []

    def record(*args: Any, **options: Any) -> Any:
        found = sample(*args, **options)
        seen.extend([[completion.text for completion in group] for group in found])
        return found

    monkeypatch.setattr(difficulty, "sample", record)
    list(pass_rates(model, split, [0, 1, 5], 4, SAMPLING, batch_size=12))
    list(pass_rates(model, split, [5], 4, SAMPLING, batch_size=4))
    assert seen[2] == seen[3]
    assert seen[0] != seen[2]


def test_a_rollout_is_read_as_evaluation_reads_it(
    model: LoadedModel, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = prepared.split("train")
    texts = [f"<think>It is seen.</think> The answer is {split.samples[0].answer}.", "nothing to see"]
    group = [Completion(token_ids=[1], text=text, finish_reason="stop") for text in texts]
    monkeypatch.setattr(difficulty, "sample", lambda *_: [group])
    assert dict(pass_rates(model, split, [0], 2, SAMPLING)) == {0: 0.5}


def test_rows_are_written_with_their_rate_and_other_splits_as_they_are(
    model: LoadedModel, prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out/rated.jsonl"
    asked: list[int] = []

    def stop_half_way(*args: Any) -> Any:
        for index, rate in pass_rates(*args):
            if len(asked) == 10:
                raise KeyboardInterrupt
            asked.append(index)
            yield index, rate

    arguments = (model, "tiny", prepared, output, 2, SAMPLING)
    with monkeypatch.context() as patch:
        patch.setattr(difficulty, "pass_rates", stop_half_way)
        with pytest.raises(KeyboardInterrupt):
            rate_rows(*arguments)
    assert not output.exists()
    (journal,) = output.parent.iterdir()
    journal.write_bytes(journal.read_bytes()[:-20])  # the last line was cut off while being written
    train = prepared.split("train")
    told: list[tuple[int, int]] = []
    assert rate_rows(*arguments, progress=lambda done, total: told.append((done, total))) == len(train) - 9
    assert told[0] == (9, len(train))
    assert told[-1] == (len(train), len(train))
    assert list(output.parent.iterdir()) == [output]
    rows = [row for row in read_samples(output) if isinstance(row, Sample)]
    by_id = {row.id: row for row in rows}
    assert len(by_id) == len(rows) == sum(len(prepared.split(name)) for name in prepared.split_names)
    for row in train.samples:
        rated = by_id[row.id]
        assert 0 <= rated.metadata["pass_rate"] <= 1
        assert (rated.metadata["pass_rate_rollouts"], rated.metadata["pass_rate_policy"]) == (2, "tiny")
        assert rated.model_copy(update={"metadata": row.metadata}) == row
    assert [by_id[row.id] for row in prepared.split("test").samples] == list(prepared.split("test").samples)
    assert sum(rate_counts(output).values()) == len(train)
