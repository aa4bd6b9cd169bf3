"""``vthink data``: generate, check and prepare rows and videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from .settings import WORKSPACE, Folder, Overrides, Preset, load
from .train import Data

RowFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="How the rows are written; default: as they look.",  # the names are added when it is printed
    ),
]


class NamesFormats(TyperCommand):
    """A command whose help names the formats of rows; they are loaded only then."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        from ...components.data_prep.formats.registry import FORMATS

        for option in self.params:
            if isinstance(option, TyperOption) and option.name == "row_format":
                names = ", ".join(FORMATS)
                option.help = f"How the rows are written: {names}, or my_module:FORMAT; default: as they look."
        super().format_help(ctx, formatter)


def synthesize(
    folder: Annotated[Path, typer.Argument(help="Folder to write: rows.jsonl, videos/, images/.")],
    preset: Preset = "laptop",
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, help="Encode in so many processes.")] = 1,
) -> None:
    """Generate a video-reasoning world: real mp4 files and images, with questions whose answers are known."""
    from ...components.data_prep.progress import progress_bar
    from ...components.data_prep.world.synthesize import synthesize as write_world

    config = load(preset, overrides)
    with progress_bar("files") as progress:
        print(write_world(config.data.synthesize, folder, progress, processes))


def prepare(
    rows: Annotated[
        str | None,
        typer.Argument(help=".jsonl, .json, .parquet or .csv: a path, s3:// or hf:// URI; default: data.source."),
    ] = None,
    row_format: RowFormat = None,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Decode the videos of rows once, and store their frames as the set that training and evaluation read.

    What cannot be read is quarantined with its reason. Prints the manifest's URI, for `vthink train`.
    """
    from ...components.common.storage.manifest import Manifest
    from ..run.session import prepare_data, session

    changes = list(overrides or ())
    changes += [f"data.source={rows}"] if rows else []
    changes += [f"data.format={row_format}"] if row_format else []
    with session(load(preset, changes), workspace) as opened:
        uri = prepare_data(opened)
        for name, count in Manifest.read(opened.storage, uri).counts.items():
            print(f"{name}: {count}")
        print(uri)


def validate(
    rows: Annotated[
        list[str], typer.Argument(help="Files of rows: .jsonl, .json, .parquet, .csv; paths, s3:// or hf:// URIs.")
    ],
    row_format: RowFormat = None,
    roots: Annotated[
        list[str] | None,
        typer.Option("--root", metavar="SOURCE=FOLDER", help="Where a source's media are ('*': all others). Repeats."),
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Print so many of the mistakes of each file.")] = 20,
) -> None:
    """Check rows: fields, types, answers among the options, times, duplicates, splits, and that media files are there.

    A mistake is one line with file and line. The exit code is 1 when there is any.
    """
    from ...components.common.errors import UserError
    from ...components.common.storage.config import StorageConfig
    from ...components.common.storage.s3 import Storage
    from ...components.data_prep.validate import validate_rows

    if bad := [root for root in roots or () if "=" not in root]:
        raise UserError(f"--root {bad[0]}: expected SOURCE=FOLDER")
    store = Storage(StorageConfig()) if any(name.startswith("s3://") for name in rows) else None
    reports = []
    for name in rows:
        (report,) = validate_rows([name], store, row_format, dict(root.split("=", 1) for root in roots or ()))
        reports.append(report)
        for problem in report.problems[:show]:
            print(f"{report.path}:{problem.line}: {problem.detail or problem.reason}")
        if report.bad > show:
            print(f"{report.path}: and {report.bad - show} more")
        kinds, sources, splits = (
            ", ".join(f"{name or 'no source'} {count}" for name, count in sorted(counts.items())) or "none"
            for counts in (report.by_type, report.by_source, report.by_split)
        )
        print(f"{report.path}: {report.rows - report.bad} rows are fine, {report.bad} are not (format {report.format})")
        print(f"  types: {kinds}; sources: {sources}; splits: {splits}")
        print(f"  videos and images: {report.media}, of which {report.missing_media} are missing")
    raise typer.Exit(0 if all(report.ok and report.rows for report in reports) else 1)


def difficulty(
    output: Annotated[Path, typer.Argument(help="The rows with metadata.pass_rate, .jsonl; prepare them next.")],
    data: Data = None,
    policy: Annotated[
        str | None,
        typer.Option(metavar="URI|PATH", help="What SFT or GRPO left (manifest or prefix); default: the base model."),
    ] = None,
    rollouts: Annotated[int, typer.Option(min=1, help="Completions per question.")] = 8,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Ask a policy each training question several times, and write down how often it is right.

    Sampling is that of the section `grpo`. Then leave out what is too hard or too easy, or order the rows:
    `vthink data prepare rated.jsonl --set data.min_pass_rate=0.1 --set data.max_pass_rate=0.9`. A run that was cut off
    goes on.
    """
    from ...components.common.errors import UserError
    from ...components.common.launch.process import limit_threads
    from ...components.common.model.generation import Sampling
    from ...components.common.model.load import load_model
    from ...components.common.model.store import ensure_base_model, fetch_model
    from ...components.common.rows.prepared import PreparedSet
    from ...components.common.storage.manifest import Manifest
    from ...components.data_prep.difficulty import rate_counts, rate_rows
    from ...components.data_prep.progress import progress_bar
    from ..run.session import find_data, find_manifest, session

    if output.suffix != ".jsonl":
        raise UserError(f"{output}: rows are written as .jsonl")
    config = load(preset, overrides)
    limit_threads(config.launch)
    grpo = config.grpo
    with session(config, workspace) as opened:
        work = opened.workspace.work_dir / "difficulty"
        prepared = PreparedSet.open(opened.storage, find_data(opened, data), work / "data")
        uri = ensure_base_model(opened.storage, config.model, prepared.video)
        if policy:
            uri = Manifest.read(opened.storage, find_manifest(opened, policy)).files["model"]
        model = load_model(fetch_model(opened.storage, uri, work), config.model.dtype, config.model.attention)
        sampling = Sampling(
            max_new_tokens=grpo.max_new_tokens, temperature=grpo.temperature, top_p=grpo.top_p, seed=grpo.seed
        )
        with progress_bar("questions") as progress:
            rate_rows(model, uri, prepared, output, rollouts, sampling, progress=progress)
    counts = rate_counts(output)
    print(", ".join(f"{name} right: {count}" for name, count in counts.items()))
    print(output)


def curate(
    source: Annotated[
        str, typer.Argument(help="Captioned segments (.json, as ActivityNet), or rows; a path, s3:// or hf:// URI.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Rows to write (.jsonl); its journal lies beside it.")],
    row_format: RowFormat = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many calls, and what they could cost.")
    ] = False,
    preset: Preset = "laptop",
    overrides: Overrides = None,
) -> None:
    """Have a teacher model write reasoning traces, and keep those from which a judge finds the answer.

    curation.method=hindsight (Video-Thinker) or cot (Video-R1); any OpenAI-compatible servers, whose keys come from
    the environment variables named by curation.teacher.api_key_env and curation.judge.api_key_env. Stopped by Ctrl-C,
    by a kill or by curation.budget_usd, the same command goes on where it was. data.roots says where the rows' media
    are. The exit code is 3 when something is left to do.
    """
    from ...components.common.storage.s3 import Storage
    from ...components.data_prep.curation.curate import curate as curate_rows
    from ...components.data_prep.curation.estimate import estimate
    from ...components.data_prep.progress import progress_bar
    from .curation import UNFINISHED, cost_so_far, print_estimate, print_summary

    config = load(preset, overrides)
    storage, rows = Storage(config.storage), (row_format or config.data.format, config.data.roots)
    if dry_run:
        print_estimate(estimate(source, output, config.curation, storage, *rows))
        return
    with progress_bar("curate") as progress:
        summary = curate_rows(
            source,
            output,
            config.curation,
            storage,
            lambda now: progress(now.decided, now.items, cost_so_far(now)),
            *rows,
        )
    print_summary(summary, output)
    if not summary.complete:
        raise typer.Exit(UNFINISHED)


def report(
    prepared: Annotated[
        str | None, typer.Argument(help="A prepared set (URI, or its folder in the workspace), or rows; default: data.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("data.html"),
    items: Annotated[int, typer.Option(min=0, max=500, help="Show so many rows with their frames.")] = 36,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json, to count tokens rather than to estimate them.")
    ] = None,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Write a prepared set as one HTML page: counts, lengths, answers, duplicates, quarantine, and rows to look at."""
    from ...components.common.storage.manifest import Manifest
    from ...components.data_prep.report.lengths import token_counter
    from ...components.data_prep.report.page import write_report
    from ..run.session import find_data, session

    count_tokens = None if tokenizer is None else token_counter(tokenizer)
    with session(load(preset, overrides), workspace) as opened:
        manifest = Manifest.read(opened.storage, find_data(opened, prepared))
        folder = opened.workspace.work_dir / "report" / manifest.fingerprint
        output.write_text(write_report(manifest, opened.storage, folder, items, count_tokens), encoding="utf-8")
    print(output)
