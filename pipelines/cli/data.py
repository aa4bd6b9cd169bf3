"""``vthink data``: generate, check and prepare rows and videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import WORKSPACE, Folder, Overrides, Preset, load

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
    rows: Annotated[Path, typer.Argument(help="Rows as .jsonl or .parquet.")],
    show: Annotated[int, typer.Option(min=0, help="Print so many of the mistakes.")] = 20,
) -> None:
    """Check rows: fields, types, answers among the options, times, and that local media files are there.

    A mistake is one line with file and line. The exit code is 1 when there is any.
    """
    from ...components.common.samples import RowError, numbered_samples

    good = bad = 0
    for number, row in numbered_samples(rows):
        if isinstance(row, RowError):
            reason = row.reason
        else:
            media = row.media.uri
            missing = "://" not in media and not (rows.parent / media).exists()
            reason = f"no media file {media}" if missing else ""
        if not reason:
            good += 1
            continue
        bad += 1
        if bad <= show:
            print(f"{rows}:{number}: {reason}")
    print(f"{good} rows are fine, {bad} are not")
    raise typer.Exit(1 if bad or not good else 0)
