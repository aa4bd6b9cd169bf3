"""``vthink init``: from somebody's own rows to a configuration that runs."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from ...components.common.config import STAGES
from ...components.common.errors import UserError
from ...components.common.storage.config import StorageConfig
from ...components.common.storage.s3 import Storage
from ...components.data_prep.formats.columns import MEDIA, columns_of
from ...components.data_prep.formats.read import read_objects
from ..config import load
from ..init import draft, rows_of_folder
from ..preflight.rows import examine_rows
from ..run.state import is_enabled
from .data import chosen_columns, shown_sample

_FIELDS = {"video": "the video's file", "question": "the question", "answer": "the answer"}


def init(
    config: Annotated[Path, Argument(help="The YAML file to write.")] = Path("my.yaml"),
    rows: Annotated[str, Option("--rows", metavar="FILE|FOLDER", help="A table of yours, or a folder of videos.")] = "",
    preset: Annotated[str | None, Option(help="To extend; default: laptop, or with GPUs that of a paper.")] = None,
    columns: Annotated[list[str] | None, Option("--column", metavar="FIELD=COLUMN", help="As in data.columns.")] = None,
    force: Annotated[bool, Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a small, commented configuration for your own rows, and say which commands to run next.

    Rows are .csv, .tsv, .json, .jsonl or .parquet (a path, s3:// or hf://); of a folder of videos each clip.mp4 has its
    caption in clip.txt, or its questions in clip.json, beside it. Held out by video: validation and test."""
    if not rows:
        raise UserError("--rows FILE: a table with the columns video, question, answer, or a folder of videos")
    if config.suffix not in (".yaml", ".yml"):
        raise UserError(f"{config}: a configuration is written as .yaml")
    if config.exists() and not force:
        raise UserError(f"{config}: is there already; --force writes over it")
    source, chosen = rows, chosen_columns(columns)
    if Path(rows).is_dir():
        source = str(config.with_suffix(".rows.jsonl"))
        print(f"{source}: {rows_of_folder(Path(rows), Path(source))} rows of the videos in {rows}")
    elif "://" not in rows:
        chosen = _ask_for_columns(Path(rows), chosen)
    storage = Storage(StorageConfig()) if source.startswith("s3://") else None
    name = re.sub(r"[^a-z0-9_-]+", "-", config.stem.lower()).strip("-_")[:40].strip("-_") or "mine"
    made = draft(name, source, preset, chosen, storage)
    config.write_text(made.text, "utf-8")
    if made.report.columns:
        print(f"columns: {made.report.columns}")
    for sample in made.report.examples:
        print(f"  {shown_sample(sample)}")
    for problem in made.report.problems[:20]:
        print(f"{source}:{problem.line}: {problem.detail or problem.reason}")
    print(f"{config}: {made.report.rows - made.report.bad} of {made.report.rows} rows can be used")
    made_config = load(config)
    for finding in examine_rows(made_config, [stage for stage in STAGES if is_enabled(made_config, stage)], storage):
        if finding.verdict == "bad":
            print(f"  still to do: {finding.detail}")
    print("next:")
    if made.report.bad:
        print(f"  vthink data validate {source}")
    for command in (f"run --config {config} --dry-run", f"run --config {config}", "serve"):
        print(f"  vthink {command}")


def _ask_for_columns(path: Path, chosen: dict[str, str | tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
    """The columns that cannot be told by their names; asked for where a person is there to answer."""
    if not path.is_file() or not sys.stdin.isatty():
        return chosen
    first = next((value for _, value in read_objects(path) if isinstance(value, dict)), {})
    known = columns_of(first, chosen)
    if "media" in first or {"problem_id", "mcq"} & first.keys():
        return chosen
    for field, what in _FIELDS.items():
        if field not in known and not (field == "video" and known.keys() & set(MEDIA)):
            column = typer.prompt(f"Which column holds {what} ({', '.join(first)})?")
            chosen = chosen | {field: column}
    return chosen
