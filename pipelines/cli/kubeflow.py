"""``--host``, ``--namespace`` and ``--token``: which Kubeflow Pipelines a command speaks to, and as whom."""

from __future__ import annotations

from typing import Annotated

import typer

_HOST = typer.Option(
    envvar="KF_PIPELINES_ENDPOINT", help="Address of Kubeflow Pipelines; of a whole Kubeflow: https://…/pipeline."
)
Host = Annotated[str, _HOST]
OptionalHost = Annotated[str | None, _HOST]
Namespace = Annotated[str, typer.Option(envvar="KF_PIPELINES_NAMESPACE", help="The team's namespace.")]
Token = Annotated[
    str | None,
    typer.Option(envvar="KF_PIPELINES_TOKEN", help="Bearer token; default: a service account's, or OIDC's."),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's id or name.")]
