"""What every stage is told besides its own section."""

from pydantic import Field

from .config import Section
from .launch.config import LaunchConfig
from .storage.config import StorageConfig
from .tracking.config import TrackingConfig


class RunContext(Section):
    """What every stage is told besides its own section: which run it belongs to and where things are."""

    run_id: str
    """Identifies the pipeline run; also the MLflow tag ``vthink.run_id``."""
    parent_run_id: str | None = None
    """MLflow run of the pipeline; the stages' runs are its children."""
    redo: dict[str, int] = Field(default_factory=dict)
    """How often each stage was asked to start afresh (`--from`); part of its fingerprint."""
    work_dir: str | None = None
    """Scratch folder on this machine; null: a temporary one."""
    storage: StorageConfig = StorageConfig()
    """Where artifacts go."""
    tracking: TrackingConfig = TrackingConfig()
    """Where metrics go."""
    launch: LaunchConfig = LaunchConfig()
    """How training starts."""
