"""The registry of benchmarks: published sets, each with a reader of its files and its scores; and sets of one's own.

A reader tolerates what the published files really hold (letters missing before options, options that are null, answers
with text behind the letter) and refuses everything else with file, row and field: a file that is read halfway would be
another benchmark under the same name. What each benchmark asks, how its scores are defined and which traps it has
stands in ``components/evaluation/README.md``. Nothing here needs torch.

Adding a benchmark is an entry of ``public_sets.yaml`` with its reader, listed here, or a module of one's own:
``my_module:BENCHMARK`` is taken wherever a name is."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from ...common.config import Section, describe
from ...common.errors import UserError
from ...common.registry import Registry
from ...common.rows.files import RowError, parse_row
from ..scores import ACCURACY
from . import long_videos, temporal
from . import public_sets as public
from .benchmark import Benchmark, Entry, Question

_LIST = (
    *(public.VIDEO_HOLMES, public.CG_BENCH, public.CG_BENCH_REASONING, public.VRBENCH, public.VRBENCH_SUMMARY),
    *(public.VIDEOMMMU, public.VSI_BENCH, public.MMVU, public.MVBENCH, public.TEMPCOMPASS, public.VIDEOMME),
    *(long_videos.LVBENCH, long_videos.LONGVIDEOBENCH, long_videos.MLVU),
    *(temporal.CHARADES_STA, temporal.ACTIVITYNET, temporal.TIMELENS),
)

BENCHMARKS: Registry[Benchmark] = Registry("benchmark", Benchmark, {benchmark.name: benchmark for benchmark in _LIST})
"""The benchmarks there are, by name."""


def find_benchmark(name: str) -> Benchmark:
    """A benchmark by its name or ``my_module:BENCHMARK``, or a set of one's own by its YAML file.

    Raises `UserError`: there is none, with the nearest name; or the file has a mistake."""
    if name.endswith((".yaml", ".yml")):
        return own_set(Path(name))
    try:
        return BENCHMARKS.get(name)
    except UserError as error:
        raise UserError(f"{error}; your own set: a .yaml file that describes it") from None


def benchmark_key(name: str) -> str:
    """A benchmark's name in metrics and files: ``video_holmes`` for ``video-holmes``."""
    return re.sub(r"\W+", "_", name).strip("_")


# -- sets of one's own --------------------------------------------------------------------------------------


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
    """The benchmark that a YAML file describes. Raises `UserError`: the file is not there or not as `OwnSet` says."""
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
    return Benchmark(
        name=described.name,
        title=described.title or described.name,
        asks=f"the questions of {described.annotations}",
        source=path.name,
        files=((described.annotations,),),
        read=partial(_own_row, described, described.fields) if described.fields else _own_sample,
        scores={"accuracy": ACCURACY},
    )


def _own_sample(entry: Entry) -> Iterator[Question]:
    row = parse_row({key: value for key, value in entry.data.items() if key != "media_id"}, entry.number)
    if isinstance(row, RowError):
        raise UserError(f"{entry.file}, row {row.line}: {row.reason}")
    yield Question(row, (row.media.uri.removeprefix("./"),))


def _own_row(described: OwnSet, fields: OwnFields, entry: Entry) -> Iterator[Question]:
    options = entry.options(fields.options) if fields.options else {}
    yield entry.question(
        [described.videos.replace("{video}", entry.text(fields.video))],
        identity=entry.text(fields.id) if fields.id else str(entry.number),
        text=entry.text(fields.question),
        options=options,
        answer=entry.letter(fields.answer, options) if options else entry.text(fields.answer),
        kind=entry.maybe(fields.kind) if fields.kind else None,
        problem_type=described.problem_type,
        start_s=entry.seconds(fields.start_s) if fields.start_s else None,
        end_s=entry.seconds(fields.end_s) if fields.end_s else None,
    )
