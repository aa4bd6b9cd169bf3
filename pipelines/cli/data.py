"""``vthink data``: generate, check and prepare rows and videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import WORKSPACE, Folder, Overrides, Preset, load

UNFINISHED = 3
"""Exit code of a curation that has something left to do: the budget is spent, or calls failed."""

app = typer.Typer(help="Generate, check and prepare rows and videos.", no_args_is_help=True)


@app.command(epilog="Example: vthink data synthesize world --set data.synthesize.num_train=100")
def synthesize(
    folder: Annotated[Path, typer.Argument(help="Folder to write: rows.jsonl, videos/, images/.")],
    preset: Preset = "laptop",
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, help="Encode in so many processes.")] = 1,
) -> None:
    """Generate a video-reasoning world: real mp4 files and images, with questions whose answers are known."""
    from rich.progress import Progress

    from ...components.data_prep import synthesize as world

    config = load(preset, overrides)
    with Progress(transient=True) as progress:
        task = progress.add_task("files")
        rows = world.synthesize(
            config.data.synthesize,
            folder,
            lambda done, total: progress.update(task, completed=done, total=total),
            processes,
        )
    print(rows)


@app.command(epilog="Example: vthink data prepare world/rows.jsonl")
def prepare(
    rows: Annotated[
        str | None, typer.Argument(help=".jsonl or .parquet, a path or s3:// URI; default: data.source.")
    ] = None,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Decode the videos of rows once, and store their frames as the set that training and evaluation read.

    What cannot be read is quarantined with its reason. Prints the manifest's URI, for `vthink train`.
    """
    from ...components.common.storage import Manifest
    from ..run import prepare_data, session

    changes = [*(overrides or ()), *([f"data.source={rows}"] if rows else [])]
    with session(load(preset, changes), workspace) as opened:
        uri = prepare_data(opened)
        for name, count in Manifest.read(opened.storage, uri).counts.items():
            print(f"{name}: {count}")
        print(uri)


@app.command(epilog="Example: vthink data validate world/rows.jsonl")
def validate(
    rows: Annotated[list[Path], typer.Argument(help="Files of rows, .jsonl or .parquet.")],
    show: Annotated[int, typer.Option(min=0, help="Print so many of the mistakes of each file.")] = 20,
) -> None:
    """Check rows: fields, types, answers among the options, times, duplicates, splits, and that media files are there.

    A mistake is one line with file and line. The exit code is 1 when there is any.
    """
    from ...components.data_prep.prepare import validate_rows

    reports = validate_rows([str(path) for path in rows])
    for report in reports:
        for problem in report.problems[:show]:
            print(f"{report.path}:{problem.line}: {problem.detail or problem.reason}")
        if len(report.problems) > show:
            print(f"{report.path}: and {len(report.problems) - show} more")
        bad = len({problem.line for problem in report.problems})
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(report.by_type.items()))
        sources = ", ".join(f"{name or 'no source'} {count}" for name, count in sorted(report.by_source.items()))
        print(f"{report.path}: {report.rows - bad} rows are fine, {bad} are not")
        print(f"  types: {kinds or 'none'}; sources: {sources or 'none'}")
        print(f"  videos and images: {report.media}, of which {report.missing_media} are missing")
    raise typer.Exit(0 if all(report.ok and report.rows for report in reports) else 1)


@app.command(
    epilog="Example: vthink data curate captions.json -o curated.jsonl "
    "--set curation.teacher.url=http://127.0.0.1:8000/v1 --set curation.teacher.model=Qwen/Qwen2.5-72B-Instruct "
    "--set curation.judge.url=http://127.0.0.1:8001/v1 --set curation.judge.model=Qwen/Qwen2.5-VL-7B-Instruct"
)
def curate(
    source: Annotated[Path, typer.Argument(help="Captioned segments (.json, as ActivityNet), or rows (.jsonl).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Rows to write (.jsonl); its journal lies beside it.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many calls, and what they could cost.")
    ] = False,
    preset: Preset = "laptop",
    overrides: Overrides = None,
) -> None:
    """Have a teacher model write reasoning traces, and keep those from which a judge finds the answer.

    curation.method=hindsight (Video-Thinker) or cot (Video-R1); any OpenAI-compatible servers, whose keys come from
    the environment variables named by curation.teacher.api_key_env and curation.judge.api_key_env. Stopped by Ctrl-C,
    by a kill or by curation.budget_usd, the same command goes on where it was. The exit code is 3 when something is
    left to do.
    """
    from ...components.common.storage import Storage
    from ...components.data_prep import curate as curation
    from .curation import say_estimate, say_summary, shown

    config = load(preset, overrides)
    if dry_run:
        say_estimate(curation.estimate(source, output, config.curation))
        return
    with shown() as progress:
        summary = curation.curate(source, output, config.curation, Storage(config.storage), progress)
    say_summary(summary, output)
    if not summary.complete:
        raise typer.Exit(UNFINISHED)
