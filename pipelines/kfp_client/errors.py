"""What Kubeflow Pipelines refused."""

from __future__ import annotations


class SubmitError(RuntimeError):
    """Kubeflow Pipelines cannot be reached or refused something, in one line."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status
        """HTTP status; None: no answer."""

    @property
    def passing(self) -> bool:
        """Whether it may go away by itself: no answer, too many requests, or a server in trouble."""
        return self.status in (None, 429, 500, 502, 503, 504)
