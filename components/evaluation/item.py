"""One graded answer: a line of ``items.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from ..common.errors import UserError


class Item(BaseModel):
    """A question, what a model answered to it under a condition, and how good that was.

    Lines may come from anywhere, so nothing in them is believed before it is checked; other keys are left out."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False, populate_by_name=True)

    id: str
    video: str
    """What items are clustered by."""
    model: str = "model"
    condition: str = Field(validation_alias="frames", serialization_alias="frames")
    """Name of the condition that it was asked under; ``frames`` in the file."""
    problem_type: str
    kind: str | None = None
    groups: dict[str, str] = {}
    """Further breakdowns by name."""
    response: str | None = None
    token_ids: tuple[int, ...] = ()
    finish_reason: str = ""
    answer: str | None = None
    """What was read from the response."""
    truth: str = ""
    question: str = ""
    options: tuple[str, ...] = ()
    clip: tuple[float | None, float | None] = (None, None)
    """The part of the video that was asked about, in seconds."""
    evidence: tuple[tuple[float, float, str], ...] = ()
    """Start, end and caption of the parts that the answer rests on."""
    metrics: dict[str, float]
    duration_s: float = 0.0
    """Length of the clip that was shown."""
    error: str | None = None
    """Why there is no answer."""
    value: float | None = None
    """What it counts in the headline of its benchmark."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def score(self) -> float:
        """The grade of the answer."""
        return self.metrics.get("score", 0.0)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        return bool(self.metrics.get("accuracy", 0.0))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def format(self) -> bool:
        """Whether the response has the shape that was asked for."""
        return bool(self.metrics.get("format_rate", 0.0))

    @property
    def outcome(self) -> str:
        """``failed``, ``right`` or ``wrong``."""
        return "failed" if self.error is not None else "right" if self.correct else "wrong"

    def to_line(self) -> bytes:
        """The line of ``items.jsonl``."""
        return self.model_dump_json(by_alias=True).encode("utf-8", "replace") + b"\n"


def read_item(line: bytes, place: str) -> Item:
    """An item from its line; a `UserError` with the field, at ``place``, where it is none."""
    try:
        return Item.model_validate_json(line)
    except ValidationError as error:
        raise UserError(f"{place}{first_mistake(error)}; evaluate again") from None


def read_items(contents: bytes, where: str) -> Iterator[Item]:
    """The items of an ``items.jsonl``, line by line; a `UserError` that names ``where`` where a line is none."""
    for number, line in enumerate(contents.splitlines(), start=1):
        yield read_item(line, f"{where}, line {number}")


def first_mistake(error: ValidationError) -> str:
    """The first mistake of a file, in one line."""
    mistake = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, mistake["loc"]))
    return (f", field '{field}'" if field else "") + f": {mistake['msg'].removeprefix('Value error, ')[:100]}"
