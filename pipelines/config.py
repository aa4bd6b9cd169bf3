"""The whole configuration: the stages' sections assembled, read from a preset or a YAML file, with overrides.

A configuration is layered: a preset or file, which may say ``extends: <preset or file>``, then ``--set key=value``
overrides from left to right. A mistake is one line that names the layer it came from, the key and the nearest
known key.
"""

import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml.error import YAMLError

from ..components.common.config import ConfigError, Section, describe, key_path
from ..components.common.launch.config import LaunchConfig
from ..components.common.model.config import ModelConfig
from ..components.common.model.families import FAMILIES
from ..components.common.storage.config import StorageConfig
from ..components.common.tracking.config import TrackingConfig
from ..components.common.video.config import VideoConfig
from ..components.common.yaml_document import YamlDocument, parse_yaml, read_yaml, write_yaml
from ..components.data_prep.config import CurationConfig, DataPrepConfig
from ..components.deployment.config import DeploymentConfig
from ..components.evaluation.config import EvaluationConfig
from ..components.evaluation.rules import check_evaluated, nearest
from ..components.grpo.config import GRPOConfig
from ..components.sft.config import SFTConfig

_SUFFIXES = (".yaml", ".yml")
PRESETS = resources.files(__package__) / "presets"  # folder of the presets that come with the package


class Config(Section):
    """Everything a run of the pipeline depends on."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9_-]*[a-z0-9])?$", max_length=40)
    """Name of the configuration; begins the run id."""
    seed: int = Field(default=0, ge=0)
    """Seed of every stage that does not set its own ``seed``."""
    model: ModelConfig = ModelConfig()
    """The base model and its prompt."""
    video: VideoConfig = VideoConfig()
    """How videos and images become frames."""
    data: DataPrepConfig = DataPrepConfig()
    """Data preparation."""
    curation: CurationConfig = CurationConfig()
    """Writing reasoning traces (`vthink data curate`); no stage of a run."""
    sft: SFTConfig = SFTConfig()
    """Supervised fine-tuning (the cold start)."""
    grpo: GRPOConfig = GRPOConfig()
    """Reinforcement learning."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation and the gate."""
    deployment: DeploymentConfig = DeploymentConfig()
    """Registration, serving and the smoke test."""
    storage: StorageConfig = StorageConfig()
    """Where artifacts go."""
    tracking: TrackingConfig = TrackingConfig()
    """Where metrics go."""
    launch: LaunchConfig = LaunchConfig()
    """How training starts."""

    @model_validator(mode="before")
    @classmethod
    def _spread_seed(cls, data: Any) -> Any:
        """Hand ``seed`` to every section that has a seed of its own and does not set it."""
        return _with_seed(cls, data, data["seed"]) if isinstance(data, Mapping) and "seed" in data else data

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.sft.enabled or self.grpo.enabled):
            raise ValueError("sft.enabled and grpo.enabled are both false: nothing is trained")
        stages = {"sft": self.sft.enabled, "grpo": self.grpo.enabled}
        try:
            check_evaluated(self.evaluation.gate, models=["base", *(name for name in stages if stages[name])])
        except ValueError as error:
            off = "".join(f" ({name}.enabled is false)" for name in stages if not stages[name])
            raise ValueError(f"{error}{off}") from error
        if self.model.name == "tiny":
            multiple = FAMILIES.get(self.model.tiny.family).size_multiple
            if self.video.size_multiple % multiple:
                raise ValueError(
                    f"video.size_multiple must be a multiple of {multiple} for model.tiny.family "
                    f"{self.model.tiny.family} (got {self.video.size_multiple})"
                )
        return self


def _with_seed(section: type[Section], data: Mapping[str, Any], seed: Any) -> dict[str, Any]:
    spread = dict(data)
    for key, field in section.model_fields.items():
        below, value = field.annotation, spread.get(key, {})
        if key == "seed":
            spread.setdefault(key, seed)
        elif isinstance(below, type) and issubclass(below, Section) and isinstance(value, Mapping):
            spread[key] = _with_seed(below, value, seed)
    return spread


def load(source: str | Path = "laptop", overrides: Sequence[str] | None = None) -> Config:
    """Read a configuration.

    Args:
        source: name of a preset, or path of a YAML file.
        overrides: ``key.path=value`` each, the value in YAML; later ones win.

    Raises:
        ConfigError: one line, naming file (or ``--set``), key and the nearest known key."""
    files = _file_layers(source)
    layers = [*files, *(_override(text) for text in overrides or ())]
    merged = functools.reduce(lambda below, layer: _merged(below, layer.values), layers, dict[str, Any]())
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        path = key_path(Config, error.errors()[0]["loc"])
        places = [place for layer in layers if (place := layer.place(path))]
        raise ConfigError(f"{(places or [files[-1].source])[-1]}: {describe(error, Config)}") from error


def presets() -> dict[str, str]:
    """Name of every preset, with the first comment line of its file as description."""
    files = sorted((entry for entry in PRESETS.iterdir() if entry.name.endswith(".yaml")), key=lambda entry: entry.name)
    firsts = {entry.name.removesuffix(".yaml"): entry.read_text("utf-8").partition("\n")[0] for entry in files}
    return {name: first.lstrip("# ").rstrip() for name, first in firsts.items()}


def to_yaml(config: Config) -> str:
    """The full configuration, defaults included, as YAML that `load` reads back to an equal one."""
    return write_yaml(config.model_dump(mode="json"))


def _file_layers(source: str | Path, below: tuple[str, ...] = ()) -> list[YamlDocument]:
    """The layers of a preset or file: those it extends first."""
    try:
        name, text = _read(source)
    except ConfigError as error:
        raise ConfigError(f"{below[-1]}: extends: {error}") if below else error from error
    if name in below:
        raise ConfigError(f"{name}: extends itself ({' → '.join((*below, name))})")
    document = read_yaml(text, name)
    values = dict(document.values)
    parent = values.pop("extends", None)
    layer = YamlDocument(name, values, document.lines)
    if parent is None:
        return [layer]
    if not isinstance(parent, str):
        raise ConfigError(f"{document.place(['extends'])}: 'extends' names a preset or a file, got {parent!r}")
    if Path(parent).suffix in _SUFFIXES:
        parent = str(Path(source).parent / parent)  # an absolute path stays itself
    return [*_file_layers(parent, (*below, name)), layer]


def _read(source: str | Path) -> tuple[str, str]:
    """Name for messages and text of a preset or a file."""
    known = presets()
    if isinstance(source, str) and source in known:
        return f"preset {source}", (PRESETS / f"{source}.yaml").read_text("utf-8")
    path = Path(source)
    try:
        return str(source), path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if path.suffix in _SUFFIXES or "/" in str(source):
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            raise ConfigError(f"{source}: {reason or error}") from error
    raise ConfigError(f"unknown preset '{source}'; {nearest(str(source), known)} (or a .yaml file)")


def _override(text: str) -> YamlDocument:
    """One ``key.path=value``."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text}: expected KEY=VALUE, for example grpo.learning_rate=5e-6")
    try:
        nested = parse_yaml(value)
    except YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not YAML") from error
    for part in reversed(parts):
        nested = {part: nested}
    return YamlDocument(f"--set {text}", nested, {})


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``base``: mappings are merged, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result
