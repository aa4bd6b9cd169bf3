"""``vthink doctor``: is everything there that a run on a cluster needs?"""

from __future__ import annotations

import typer

from .kubeflow import Namespace, OptionalHost, Token
from .settings import Overrides, Preset, load


def doctor(
    preset: Preset = "video_r1_7b",
    overrides: Overrides = None,
    host: OptionalHost = None,
    namespace: Namespace = "kubeflow",
    token: Token = None,
) -> None:
    """Check what a run of this configuration needs: each line is ok, or says what to do.

    Looked at: Kubeflow Pipelines, the cluster and its CRDs, queues, quota and GPU nodes, S3 by writing and reading,
    MLflow, KServe. The exit code is 1 when anything is missing.
    """
    from rich.console import Console
    from rich.text import Text

    from ..doctor import examine

    console, sound = Console(highlight=False, soft_wrap=True), True
    for finding in examine(load(preset, overrides), host, namespace, token):
        symbol, style = {"ok": ("✓", "green"), "unknown": ("–", "dim")}.get(finding.verdict, ("✗", "red"))
        console.print(Text(f"{symbol} {finding.subject}: ", style) + Text(finding.detail))
        sound = sound and finding.verdict != "bad"
    raise typer.Exit(0 if sound else 1)
