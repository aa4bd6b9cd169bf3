"""Where runs are recorded."""

from pydantic import Field

from ..config import Section


class TrackingConfig(Section):
    """MLflow."""

    uri: str | None = None
    """Tracking URI; null: ``MLFLOW_TRACKING_URI``, or the workspace's SQLite file in `vthink run`."""
    experiment: str = "vthink"
    """Experiment name."""
    registered_model: str = "vthink"
    """Name in the model registry."""
    outage_s: float = Field(default=600.0, ge=0)
    """How long MLflow may be away at the end of a stage, before the stage fails. Until then nobody waits for it."""
