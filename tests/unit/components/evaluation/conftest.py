"""Fixtures of the tests of evaluation."""

import pytest
from vthink.components.evaluation.config import EvaluationConfig

from .small_world import World, make_world


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def config() -> EvaluationConfig:
    return EvaluationConfig(batch_size=5, bootstrap_resamples=200)
