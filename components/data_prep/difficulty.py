"""How hard each question is for a policy: the share of its rollouts that answer right.

``metadata.pass_rate`` is what `DataPrepConfig.min_pass_rate`, ``max_pass_rate`` and ``order`` go by. A question that is
always or never answered right has no advantages in a group, and GRPO learns nothing from it.
"""

import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..common.answers.grading import is_correct
from ..common.answers.reading import read_answer
from ..common.answers.responses import parse_response
from ..common.model.generation import Completion, Sampling, sample
from ..common.model.load import LoadedModel
from ..common.rows.files import read_samples, to_line
from ..common.rows.prepared import PreparedSet, Split
from ..common.rows.sample import Sample
from ..common.storage.names import fingerprint
from .dataset.data_card import pass_rate


def pass_rates(
    model: LoadedModel, split: Split, indices: Sequence[int], rollouts: int, sampling: Sampling, batch_size: int = 64
) -> Iterator[tuple[int, float]]:
    """Ask the questions at ``indices`` of ``split`` ``rollouts`` times each; yields index and share of right answers in
    [0, 1], which depends on the row, the model and ``sampling`` (temperature above 0) alone. ``batch_size``: rows
    (questions × rollouts) decoded at once."""
    per_batch = max(1, batch_size // rollouts)
    for start in range(0, len(indices), per_batch):
        chosen = indices[start : start + per_batch]
        items = [split[index] for index in chosen]
        prompts = [model.encoder.encode_sample(item) for item in items]
        keys = [zlib.crc32(item.sample.id.encode()) for item in items]
        completions = sample(model.model, model.encoder, prompts, sampling, rollouts, batch_size, keys)
        for index, item, group in zip(chosen, items, completions, strict=True):
            right = sum(_is_right(item.sample, completion) for completion in group)
            yield index, right / rollouts


def _is_right(row: Sample, completion: Completion) -> bool:
    """Whether a rollout answers right, read as evaluation reads it."""
    cut_off = completion.finish_reason == "length"
    return is_correct(row, read_answer(row, parse_response(completion.text), cut_off=cut_off))


def rate_rows(
    model: LoadedModel,
    policy: str,
    data: PreparedSet,
    output: Path,
    rollouts: int,
    sampling: Sampling,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write all rows of a prepared set, those of the training split with their pass rate; how many were rated now.

    A run that was cut off goes on: what has been rated is in a file beside ``output`` (``.jsonl``; appears when it is
    whole). ``policy``: which model it is, for ``metadata.pass_rate_policy``; ``progress``: called with (rows rated,
    rows to rate)."""
    how = (sampling.temperature, sampling.top_p, sampling.max_new_tokens, sampling.seed)
    settings = fingerprint(data.manifest.fingerprint, policy, rollouts, *how)
    split = data.split("train")
    journal = output.with_name(f".{output.name}.{settings}.part")
    output.parent.mkdir(parents=True, exist_ok=True)
    done = _finished(journal)
    todo = [index for index, row in enumerate(split.samples) if row.id not in done]
    with journal.open("a", encoding="utf-8") as file:
        progress(len(done), len(split))
        for number, (index, rate) in enumerate(pass_rates(model, split, todo, rollouts, sampling), 1):
            row = split.samples[index]
            about = {"pass_rate": rate, "pass_rate_rollouts": rollouts, "pass_rate_policy": policy}
            rated = row.model_copy(update={"metadata": {**row.metadata, **about}})
            file.write(to_line(rated) + "\n")
            file.flush()
            os.fsync(file.fileno())
            progress(len(done) + number, len(split))
        for name in data.split_names:
            if name != "train":
                file.writelines(to_line(row) + "\n" for row in data.split(name).samples if row.id not in done)
    journal.replace(output)
    return len(todo)


def _finished(journal: Path) -> set[str]:
    """Ids of the rows that an earlier run has rated; a line of it that was cut off is removed."""
    done: set[str] = set()
    journal.touch()
    whole = journal.with_name(f"{journal.name}.whole")
    with journal.open("rb") as file, whole.open("w", encoding="utf-8") as rows:
        for row in read_samples(file):
            if isinstance(row, Sample):
                rows.write(to_line(row) + "\n")
                done.add(row.id)
    whole.replace(journal)
    return done


def rate_counts(output: Path) -> dict[str, int]:
    """How many rows were never, sometimes and always answered right."""
    rates = (pass_rate(row) for row in read_samples(output) if isinstance(row, Sample))
    counts = Counter(
        "never" if rate == 0 else "always" if rate == 1 else "sometimes" for rate in rates if rate is not None
    )
    return {name: counts[name] for name in ("never", "sometimes", "always")}
