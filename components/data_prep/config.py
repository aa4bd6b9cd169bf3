"""Configuration of data preparation, and of the generated world that can stand in for a data set."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ..common.config import Section

QuestionKind = Literal["direction", "order", "count", "ocr", "speed", "duration", "describe"]


class SynthesizeConfig(Section):
    """A generated video-reasoning world: moving, appearing, changing shapes, and questions about them.

    The same section gives the same rows, byte for byte, on every machine.
    """

    num_train: int = Field(default=4000, ge=0)
    """Media (videos and images) in the split ``train``."""
    num_validation: int = Field(default=256, ge=0)
    """Media in the split ``validation``; it selects the checkpoint."""
    num_test: int = Field(default=640, ge=0)
    """Media in the split ``test``; touched once, by evaluation."""
    seed: int = 0
    """Seed of the whole world."""
    size: int = Field(default=56, ge=16, le=4096, multiple_of=2)
    """Height and width of a video, in pixels."""
    native_frames: int = Field(default=16, ge=2, le=10_000)
    """Frames of a video file (preparation samples from these)."""
    fps: float = Field(default=4.0, gt=0, le=240)
    """Native frames per second."""
    mix: dict[QuestionKind, float] = Field(default={"direction": 1.0})
    """Share of each kind of question, as weights (they need not sum to 1): direction, order (multiple
    choice), count (numerical), ocr, speed, duration (regression), describe (free form)."""
    images: float = Field(default=0.0, ge=0, le=1)
    """Share of the media that are still images."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.mix or min(self.mix.values()) < 0 or sum(self.mix.values()) <= 0:
            raise ValueError("mix needs at least one kind of question with a weight above 0, and none below 0")
        if self.num_train + self.num_validation + self.num_test == 0:
            raise ValueError("num_train, num_validation and num_test are all 0: there would be nothing")
        return self


class DataPrepConfig(Section):
    """Where the rows come from and how the work is cut."""

    source: str = "synthesize"
    """Rows as ``.jsonl`` or ``.parquet``, a path or an ``s3://`` URI (their media: an absolute path, an
    ``s3://`` URI, or relative to the rows file); or ``synthesize``, the generated world below."""
    synthesize: SynthesizeConfig = SynthesizeConfig()
    """The generated world, for ``source: synthesize``; ignored otherwise."""
    shards: int = Field(default=1, ge=1, le=10_000)
    """Parts that are prepared side by side (pods on a cluster); a video is in exactly one."""
    workers: int = Field(default=0, ge=0, le=512)
    """Decoding processes per shard; 0: one per CPU that the shard may use."""
    max_rows: int | None = Field(default=None, ge=1)
    """Read only so many rows from the source; null: all."""
    max_quarantined: float = Field(default=0.1, ge=0, le=1)
    """Fail when a larger share of the rows than this had to be quarantined: then the source, not a row, is
    wrong."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.source.strip():
            raise ValueError("source must be 'synthesize', a path, or an s3:// URI")
        return self
