"""Fixtures of the tests of evaluation's pages."""

import pytest
from vthink.components.evaluation.config import EvaluationConfig


@pytest.fixture
def config() -> EvaluationConfig:
    return EvaluationConfig(bootstrap_resamples=200, report_items=16)
