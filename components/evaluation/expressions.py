"""Names of conditions and metrics as lists, until every caller takes the registries."""

from .conditions import CONDITIONS
from .metrics import METRICS as _METRICS

FRAMES = CONDITIONS.names()
METRICS = _METRICS.names()
UNBOUNDED = tuple(name for name, metric in _METRICS.items() if not metric.bounded)
