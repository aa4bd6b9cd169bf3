"""Links into MLflow's pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def experiment_url(base: str, experiment_id: str) -> str:
    """Link to the list of an experiment's runs (without ``/runs`` MLflow opens an overview)."""
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs"


def run_url(base: str, experiment_id: str, run_id: str) -> str:
    """Link to a run."""
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


def curves_url(base: str, experiment_ids: Sequence[str], run_ids: Sequence[str], metric: str) -> str:
    """Link to one chart with the curves of a metric in several runs; from there MLflow leads on to their comparison."""
    from urllib.parse import quote

    settings: dict[str, Any] = {
        "runs": list(run_ids), "metric": metric, "experiments": sorted(set(experiment_ids)),
        "plot_metric_keys": [metric], "plot_layout": {}, "line_smoothness": 1, "show_point": True,
        "deselected_curves": [], "last_linear_y_axis_range": [],
    }  # fmt: skip
    query = "&".join(f"{key}={quote(json.dumps(value), safe='')}" for key, value in settings.items())
    # MLflow's page fails where one of them is missing.
    return f"{base.rstrip('/')}/#/metric?{query}&x_axis=step&y_axis_scale=linear"


def model_version_url(base: str, name: str, version: str | int) -> str:
    """Link to a version of a registered model."""
    from urllib.parse import quote

    return f"{base.rstrip('/')}/#/models/{quote(name, safe='')}/versions/{version}"
