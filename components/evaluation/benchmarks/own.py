"""A set of one's own, described by a YAML file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from ...common.config import Section, describe
from ...common.errors import UserError
from ...common.rows.files import RowError, parse_row
from ..scores import ACCURACY
from .benchmark import Benchmark
from .entries import Entry, Question, choice, open_answer


class OwnFields(Section):
    """Where a row of one's own annotation file keeps what; every value is the name of a field."""

    id: str | None = None
    """Id of the question; null: its row."""
    video: str = "video"
    """The video, as `OwnSet.videos` needs it."""
    question: str = "question"
    """The question."""
    options: str | None = None
    """Options, as a list or by letter; null: there are none."""
    answer: str = "answer"
    """The true option (its letter or its text), number or text."""
    kind: str | None = None
    """The breakdown."""
    start_s: str | None = None
    """Start of the part that is shown, in seconds."""
    end_s: str | None = None
    """Its end."""


class OwnSet(Section):
    """A set of one's own, as a short YAML file describes it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,60}$")
    """Name of the set."""
    title: str = ""
    """Name in reports."""
    annotations: str
    """Name of the annotation file (``.json``, ``.jsonl`` or ``.parquet``), wherever in the folder it is."""
    videos: str = "{video}"
    """Where a video is, e.g. ``videos/{video}.mp4``."""
    problem_type: Literal["numerical", "ocr", "free_form", "regression"] | None = None
    """How questions without options are graded; null: by number where the answer is one, else as free text."""
    fields: OwnFields | None = None
    """Names of the fields; null: the file holds rows of ours (README.md), with evidence where it is known."""


def own_set(path: Path) -> Benchmark:
    """The benchmark that a YAML file describes.

    Raises:
        UserError: the file is not there or not as `OwnSet` says.
    """
    try:
        described = OwnSet.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, OwnSet)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    if described.fields is not None and "{video}" not in described.videos:
        raise UserError(f"{path}: 'videos' must hold {{video}}, got '{described.videos}'")
    read = partial(_own_row, described) if described.fields else _own_sample
    return Benchmark(
        name=described.name,
        title=described.title or described.name,
        asks=f"the questions of {described.annotations}",
        source=str(path.name),
        files=((described.annotations,),),
        read=read,
        scores={"accuracy": ACCURACY},
    )


def _own_sample(entry: Entry) -> Iterator[Question]:
    row = parse_row({key: value for key, value in entry.data.items() if key != "media_id"}, entry.number)
    if isinstance(row, RowError):
        raise UserError(f"{entry.file}, row {row.line}: {row.reason}")
    yield Question(row, (row.media.uri.removeprefix("./"),))


def _own_row(described: OwnSet, entry: Entry) -> Iterator[Question]:
    fields = described.fields
    assert fields is not None
    videos = [described.videos.replace("{video}", entry.text(fields.video))]
    about: dict[str, Any] = {
        "identity": entry.text(fields.id) if fields.id else str(entry.number),
        "question": entry.text(fields.question),
        "kind": entry.maybe(fields.kind) if fields.kind else None,
    }
    options = entry.options(fields.options) if fields.options else {}
    if options:
        yield choice(
            entry,
            videos,
            options=options,
            answer=entry.letter(fields.answer, options),
            start_s=entry.seconds(fields.start_s) if fields.start_s else None,
            end_s=entry.seconds(fields.end_s) if fields.end_s else None,
            **about,
        )
    else:
        answer = entry.text(fields.answer)
        yield open_answer(entry, videos, answer=answer, problem_type=described.problem_type, **about)
