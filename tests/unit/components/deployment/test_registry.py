"""The registry on a real MLflow database."""

from __future__ import annotations

from typing import Any

import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.deployment.registry import ModelRegistry, champion
from vthink.components.deployment.smoke_test import SmokeTestResult

PASSED = SmokeTestResult(passed=True, why="8 of 8")


def test_same_source_gives_the_same_version(tracking: TrackingConfig) -> None:
    registry = ModelRegistry(tracking)
    first = registry.register("s3://b/models/7", None, {"vthink.fingerprint": "a"})
    again = registry.register("s3://b/models/7/", None, {"vthink.fingerprint": "b"})
    other = registry.register("s3://b/models/70/", None, {})
    assert (first.version, again.version, other.version) == (1, 1, 2)
    assert first.source == "s3://b/models/7/"
    assert again.tags["vthink.fingerprint"] == "b"
    assert [version.version for version in registry.versions()] == [2, 1]


def test_candidate_is_what_was_registered_last_and_champion_stays(tracking: TrackingConfig) -> None:
    registry = ModelRegistry(tracking)
    assert champion(tracking) is None
    first = registry.register("s3://b/a/", None, {})
    registry.promote(first.version, PASSED)
    second = registry.register("s3://b/b/", None, {})
    assert second.aliases == ("candidate",)
    found = champion(tracking)
    assert found is not None
    assert found.version == first.version
    assert found.source == "s3://b/a/"


@pytest.mark.parametrize("passed", [None, False, "yes", 1])
def test_champion_moves_only_with_a_passed_smoke_test(tracking: TrackingConfig, passed: Any) -> None:
    registry = ModelRegistry(tracking)
    version = registry.register("s3://b/a/", None, {})
    with pytest.raises(UserError, match="smoke test"):
        registry.promote(version.version, SmokeTestResult(passed=passed, why=""))
    assert champion(tracking) is None
    registry.promote(version.version, PASSED)
    assert champion(tracking) is not None


def test_version_that_does_not_exist_is_one_line(tracking: TrackingConfig) -> None:
    registry = ModelRegistry(tracking)
    registry.register("s3://b/a/", None, {})
    with pytest.raises(UserError) as caught:
        registry.promote(9, PASSED)
    assert "\n" not in str(caught.value)
    assert champion(tracking) is None
