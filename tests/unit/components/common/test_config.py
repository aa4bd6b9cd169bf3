"""A configuration says clearly what is wrong with it, and equal configurations have equal text."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from vthink.components.common.config import STAGES, ConfigError, Section
from vthink.components.common.context import RunContext
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.model.config import ModelConfig, TinyModelConfig
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.video.config import VideoConfig

SECTIONS = [ModelConfig, TinyModelConfig, VideoConfig, StorageConfig, LaunchConfig]


def message(section: type[Section], data: object, source: str = "my.yaml") -> str:
    """The one line that a mistake gives."""
    with pytest.raises(ConfigError) as error:
        section.load(data, source)  # type: ignore[arg-type]
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"{source}: ")
    return text


def test_stages_are_in_the_order_of_the_pipeline() -> None:
    assert STAGES == ("prepare", "sft", "grpo", "evaluate", "gate", "register", "deploy")


def test_an_unknown_key_is_answered_with_the_nearest_known_one() -> None:
    assert "unknown key 'num_frame'; did you mean 'num_frames'?" in message(VideoConfig, {"num_frame": 8})


def test_an_unknown_key_of_a_nested_section_is_answered_from_there() -> None:
    text = message(ModelConfig, {"tiny": {"hiden_size": 8}})
    assert "unknown key 'tiny.hiden_size'; did you mean 'hidden_size'?" in text


def test_an_unknown_key_like_no_other_is_answered_with_all() -> None:
    text = message(LaunchConfig, {"qqq": 1})
    assert "known keys here: " in text
    assert all(name in text for name in LaunchConfig.model_fields)


@pytest.mark.parametrize(
    ("section", "data", "expected"),
    [
        (LaunchConfig, {"processes": "many"}, "'processes': "),
        (LaunchConfig, {"processes": 0}, "'processes': "),
        (ModelConfig, {"dtype": "float8"}, "'dtype': "),
        (ModelConfig, {"tiny": {"num_layers": None}}, "'tiny.num_layers': "),
        (VideoConfig, {"frame_quality": 101}, "'frame_quality': "),
    ],
)
def test_an_ill_typed_value_names_its_key_and_itself(
    section: type[Section], data: dict[str, object], expected: str
) -> None:
    text = message(section, data)
    assert expected in text
    assert "got " in text


@pytest.mark.parametrize(
    ("section", "data", "expected"),
    [
        (VideoConfig, {"num_frames": 8, "fps": 1.0}, "exactly one of num_frames and fps"),
        (VideoConfig, {"num_frames": None}, "exactly one of num_frames and fps"),
        (VideoConfig, {"min_frames": 9, "max_frames": 8}, "min_frames must not exceed max_frames"),
        (VideoConfig, {"min_pixels": 10**6, "max_pixels": 10**5}, "min_pixels must not exceed max_pixels"),
        (VideoConfig, {"min_pixels": 1, "max_pixels": 100}, "at least one size_multiple"),
        (StorageConfig, {"prefix": "/team/"}, "must not start with '/'"),
        (StorageConfig, {"prefix": "team"}, "must end with '/'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    section: type[Section], data: dict[str, object], expected: str
) -> None:
    assert expected in message(section, data)


@pytest.mark.parametrize(("text", "expected"), [("{", "not JSON"), ("[1]", "got list"), ("3", "got int")])
def test_text_that_is_not_a_mapping_is_named(text: str, expected: str) -> None:
    assert expected in message(LaunchConfig, text)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_comes_back_equal_from_its_text(section: type[Section]) -> None:
    assert section.load(section().to_json()) == section()


def test_equal_sections_have_equal_text_whatever_the_order_of_their_keys() -> None:
    one = LaunchConfig.load({"processes": 2, "threads": 3})
    two = LaunchConfig.load({"threads": 3, "processes": 2})
    assert one.to_json() == two.to_json()
    assert one.to_json() != LaunchConfig.load({"processes": 3, "threads": 2}).to_json()


def test_a_context_comes_back_equal_with_its_nested_sections() -> None:
    context = RunContext(run_id="r", redo={"sft": 2}, storage=StorageConfig(bucket="b", prefix="team/"))
    assert RunContext.load(context.to_json()) == context
    assert context.storage.root_uri == "s3://b/team/"


def test_a_section_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        LaunchConfig().processes = 2  # type: ignore[misc]


@pytest.mark.parametrize("section", [*SECTIONS, RunContext])
def test_every_field_says_what_it_is(section: type[Section]) -> None:
    undescribed = [name for name, field in section.model_fields.items() if not field.description]
    assert undescribed == []
