from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from vthink.components.common.config import ConfigError
from vthink.pipelines import config
from vthink.pipelines.config import Config, load, presets, to_commented_yaml, to_yaml

PRESETS = Path(config.__file__).parent / "presets"


@pytest.fixture
def written(tmp_path):
    def write(text: str, name: str = "my.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return str(path)

    return write


# --- presets


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_loads_under_its_own_name(name):
    assert load(name).name == name


def test_the_presets_are_the_papers_their_ablations_and_the_demo():
    assert set(presets()) == {
        "laptop",
        "qwen3_vl_8b",
        "video_r1_7b",
        "video_thinker_7b",
        "no_image",
        "no_temporal",
        "zero",
    }
    assert all(description.endswith(".") for description in presets().values())


@pytest.mark.parametrize("name", ["video_r1_7b", "video_thinker_7b"])
def test_every_value_of_a_paper_says_where_it_is_from(name):
    text = (PRESETS / f"{name}.yaml").read_text("utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s+\w+: *[^\s#]", line):
            comment = line.partition(" # ")[2] or line.partition("  # ")[2]
            assert comment, f"line {number} has no source: {line}"


def test_the_papers_settings_are_those_of_the_papers():
    r1, thinker = load("video_r1_7b"), load("video_thinker_7b")
    assert (r1.video.fps, r1.video.min_frames, r1.video.max_frames, r1.video.max_pixels) == (2.0, 4, 16, 128 * 28 * 28)
    assert (r1.sft.learning_rate, r1.grpo.learning_rate, r1.grpo.kl_coefficient) == (1e-6, 1e-6, 0.04)
    assert (r1.grpo.num_generations, r1.grpo.max_new_tokens, r1.grpo.max_steps) == (8, 768, 1000)
    assert r1.sft.batch_size * r1.sft.gradient_accumulation * r1.launch.processes == 8
    assert (thinker.sft.learning_rate, thinker.grpo.learning_rate, thinker.video.num_frames) == (1e-5, 5e-6, 16)
    assert thinker.sft.batch_size * thinker.sft.gradient_accumulation * thinker.launch.processes == 16
    assert thinker.grpo.reward_config.temporal is None


def test_the_ablations_change_only_what_they_say():
    base = load("video_r1_7b").model_dump()

    def changed(name: str) -> set[str]:
        def walk(a, b, path=""):
            if isinstance(a, dict) and isinstance(b, dict):
                for key in a.keys() | b.keys():
                    yield from walk(a.get(key), b.get(key), f"{path}.{key}" if path else key)
            elif a != b:
                yield path

        return set(walk(base, load(name).model_dump())) - {"name"}

    assert changed("zero") == {"sft.enabled"}
    assert changed("no_image") == {"sft.images", "grpo.images"}
    assert changed("no_temporal") == {"grpo.rewards"}
    temporal, none = load("video_r1_7b").grpo.reward_config, load("no_temporal").grpo.reward_config
    assert none == temporal.model_copy(update={"temporal": None})


# --- reading and overriding


def test_numbers_are_read_as_a_person_means_them():
    assert load("laptop", ["grpo.learning_rate=5e-6"]).grpo.learning_rate == 5e-6
    assert load("laptop", ["grpo.learning_rate=1E-4"]).grpo.learning_rate == 1e-4
    assert load("laptop", ["grpo.max_steps=010"]).grpo.max_steps == 10
    # What PyYAML itself, following YAML 1.1, would have made of it:
    assert yaml.safe_load("5e-6") == "5e-6"
    assert yaml.safe_load("010") == 8


def test_words_stay_words(written):
    loaded = load(written("extends: laptop\nname: 'on'\ntracking: {experiment: no, registered_model: 1:30}\n"))
    assert (loaded.name, loaded.tracking.experiment, loaded.tracking.registered_model) == ("on", "no", "1:30")


def test_a_file_extends_a_preset_and_changes_only_what_it_names(written):
    path = written("extends: laptop\nname: mine\nsft: {max_steps: 7}\n")
    assert load(path) == load("laptop", ["name=mine", "sft.max_steps=7"])


def test_a_file_extends_a_file_beside_it(written):
    written("extends: laptop\nname: parent\nsft: {max_steps: 7}\n", "parent.yaml")
    path = written("extends: parent.yaml\nname: child\n", "child.yaml")
    assert (load(path).name, load(path).sft.max_steps) == ("child", 7)


def test_later_overrides_win():
    assert load("laptop", ["sft.max_steps=1", "sft.max_steps=2"]).sft.max_steps == 2


def test_the_whole_configuration_survives_being_written_and_read(written):
    for name in presets():
        loaded = load(name, ["tracking.experiment='5e-6'"])
        assert load(written(to_yaml(loaded))) == loaded


def test_one_seed_reaches_every_section_that_has_one_and_sets_none():
    loaded = load("laptop", ["seed=7", "grpo.seed=3"])
    assert (loaded.model.seed, loaded.data.synthesize.seed, loaded.sft.seed, loaded.grpo.seed) == (7, 7, 7, 3)
    assert load("laptop").sft.seed == 0


# --- mistakes, each in one line that names place, key and what is known


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "extends: laptop\ngrpo:\n  learing_rate: 1\n",
            r":3: unknown key 'grpo.learing_rate'; did you mean 'learning_rate'\?",
        ),
        ("extends: laptop\nsfft: {}\n", r":2: unknown key 'sfft'; did you mean 'sft'\?"),
        ("extends: laptop\nsft:\n  batch_size: many\n", r":3: 'sft.batch_size': .* valid integer.*'many'"),
        ("extends: laptop\nsft:\n  batch_size: 0\n", r":3: 'sft.batch_size': .*greater than or equal to 1"),
        ("extends: laptop\nsft: 3\n", r":2: 'sft': .*\(got 3\)"),
        (
            "extends: laptop\ngrpo:\n  rewards: {temporal: {rato: 1}}\n",
            r":3: unknown key 'grpo.rewards.temporal.rato'; did you mean 'ratio'\?",
        ),
        ("extends: laptop\ngrpo: {rewards: video_r2}\n", r":2: 'grpo.rewards': .*'video_r1_code'.*got 'video_r2'"),
        ("extends: laptop\nvideo: {fps: 2}\n", r":2: 'video': set exactly one of num_frames and fps"),
        ("extends: laptop\nsft: {enabled: false}\ngrpo: {enabled: false}\n", r"nothing is trained"),
        ("extends: laptop\nmodel: {tiny: {family: qwen3_vl}}\n", r"size_multiple must be a multiple of 32"),
        ("extends: labtop\n", r"my.yaml: extends: unknown preset 'labtop'; did you mean 'laptop'\?"),
        ("extends: my.yaml\n", r"extends itself"),
        ("extends: laptop\nsft: {}\nsft: {}\n", r":3: 'sft' is given twice \(first in line 2\)"),
        ("sft: [1, 2\n", r":\d+: not YAML"),
        ("- 1\n", r"expected 'key: value' lines, got list"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_file_line_and_key(written, text, message):
    path = written(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    said = str(caught.value)
    assert "\n" not in said
    assert "my.yaml" in said
    assert re.search(message, said), said


def test_all_mistakes_are_told_at_once_each_with_its_place(written):
    path = written("extends: laptop\ngrpo:\n  lr: 1\n  max_steps: many\nsfft: {}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, ["video.num_frames=0"])
    first, *lines = str(caught.value).splitlines()
    assert first == "4 mistakes:"
    wanted = (
        "my.yaml:3: unknown key 'grpo.lr'; did you mean 'learning_rate'?",
        "my.yaml:4: 'grpo.max_steps'",
        "my.yaml:5: unknown key 'sfft'; did you mean 'sft'?",
        "--set video.num_frames=0: 'video.num_frames'",
    )
    assert all(any(text in line for line in lines) for text in wanted), lines
    assert len(lines) == 4


def test_each_key_that_is_shown_has_a_comment_that_says_what_it_is(tmp_path):
    config = load("laptop")
    text = to_commented_yaml(config, "grpo")
    lines = text.splitlines()
    place = next(index for index, line in enumerate(lines) if line.strip().startswith("learning_rate:"))
    assert lines[place - 1].strip().startswith("# ")
    (tmp_path / "my.yaml").write_text(to_commented_yaml(config))
    assert load(tmp_path / "my.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.max_stps=1", "--set sft.max_stps=1: unknown key 'sft.max_stps'; did you mean 'max_steps'?"),
        ("grpo.learning_rate", "--set grpo.learning_rate: expected KEY=VALUE"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("sft.kinds=[direction", "--set sft.kinds=[direction: the value is not YAML"),
        ("sft.max_steps.x=1", "--set sft.max_steps.x=1: 'sft.max_steps'"),
    ],
)
def test_a_mistake_in_an_override_names_the_override(override, message):
    with pytest.raises(ConfigError) as caught:
        load("laptop", [override])
    assert message in str(caught.value)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_gate_that_a_left_out_stage_makes_impossible_names_the_setting(stage):
    with pytest.raises(ConfigError, match=rf"leave the rule out of evaluation\.gate \({stage}\.enabled is false\)$"):
        load("laptop", [f"{stage}.enabled=false"])


@pytest.mark.parametrize("name", ["lapto", "no/such.yaml"])
def test_a_configuration_that_is_not_there_says_so(name):
    with pytest.raises(ConfigError, match=r"did you mean 'laptop'|No such file"):
        load(name)


def test_every_field_of_every_section_says_what_it_is():
    def undocumented(section, path=""):
        for name, field in section.model_fields.items():
            if not field.description:
                yield f"{path}{name}"
            annotation = field.annotation
            if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
                yield from undocumented(annotation, f"{path}{name}.")

    assert list(undocumented(Config)) == []


def test_presets_follow_the_published_code_where_they_name_it():
    grpo, video = load("video_r1_7b").grpo, load("video_r1_7b").video
    assert (grpo.lr_schedule, grpo.top_k, grpo.kl_clamp) == ("constant", 50, 10.0)
    assert grpo.reward_config.grading == "paper"
    assert (video.num_frames, video.fps, video.min_frames, video.max_frames) == (None, 2.0, 4, 16)
    assert load("no_temporal").grpo.reward_config.grading == "paper"
    other = load("qwen3_vl_8b")
    assert other.grpo == grpo
    assert other.video.max_pixels // other.video.size_multiple**2 == video.max_pixels // video.size_multiple**2
