"""What Kubeflow Pipelines refuses, or does not answer."""

from __future__ import annotations

from ...components.common.errors import UserError


class KfpError(UserError):
    """Kubeflow Pipelines cannot be reached or refused something."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status
        """HTTP status; None: no answer."""

    @property
    def is_temporary(self) -> bool:
        """Whether it may go away by itself: no answer, too many requests, or a server in trouble."""
        return self.status in (None, 429, 500, 502, 503, 504)
