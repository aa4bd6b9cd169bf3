"""What the tests of tracking share."""

from __future__ import annotations

from typing import Any

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.storage.names import join
from vthink.components.common.tracking.client import registry_client
from vthink.components.common.tracking.pipeline import start_parent


@pytest.fixture
def client(context: RunContext) -> Any:
    return registry_client(context.tracking, context.storage)


@pytest.fixture
def artifact_root(context: RunContext) -> str:
    return join(context.storage.root_uri, "mlflow")


@pytest.fixture
def child(context: RunContext, artifact_root: str) -> RunContext:
    """A context whose pipeline run has begun."""
    parent = start_parent(context.tracking, "test-run", "a: 1\n", "laptop", artifact_root, context.storage)
    return context.model_copy(update={"parent_run_id": parent})
