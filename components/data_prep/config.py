"""Configuration of data preparation, and of the generated world that can stand in for a data set."""

from __future__ import annotations

import re
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
    """Where the rows come from, which of them are used, and how the work is cut."""

    source: str = "synthesize"
    """Rows as ``.jsonl``, ``.json`` (a list), ``.parquet`` or ``.csv``: a path, an ``s3://`` URI, or a file on the hub
    (``hf://datasets/<owner>/<name>/<file>``); or ``synthesize``, the generated world below."""
    format: str | None = None
    """How the rows are written: ``vthink``, ``plain``, ``video_r1``, ``video_thinker``, ``vrbench``; null: as the first
    row looks."""
    roots: dict[str, str] = Field(default={})
    """Where the media of a source are, by the row's ``source``; ``*``: of all others. A path, or an ``s3://`` or
    ``hf://`` prefix; media that no root is given for count from the file of rows."""
    synthesize: SynthesizeConfig = SynthesizeConfig()
    """The generated world, for ``source: synthesize``; ignored otherwise."""
    max_rows: int | None = Field(default=None, ge=1)
    """Read only so many rows from the source; null: all."""
    holdout: dict[str, float] = Field(default={})
    """Share of the videos and images in the split ``train`` that go to another split, by its name, such as
    ``{validation: 0.01}``: published training sets have no validation split. Decided by the name of the file."""
    weights: dict[str, float] = Field(default={})
    """Mixture of the split ``train``, by ``source``, ``source/problem_type``, ``*/problem_type`` or ``*`` (the first
    that fits, in this order; rows that none fits are left out). The largest set of rows in which the groups are about
    as 2 : 1 for weights 2 and 1; no row is repeated. Empty: all rows."""
    min_pass_rate: float | None = Field(default=None, ge=0, le=1)
    """Leave out rows of the split ``train`` whose ``metadata.pass_rate`` is lower (too hard to learn from); see
    ``vthink data difficulty``. Rows without a pass rate stay."""
    max_pass_rate: float | None = Field(default=None, ge=0, le=1)
    """Likewise, higher (nothing left to learn)."""
    order: Literal["source", "easy_first", "hard_first"] = "source"
    """Order of the rows: as in the source, or by falling or rising ``metadata.pass_rate`` (a curriculum; rows without
    one come last)."""
    near_duplicate_difference: float = Field(default=3.0, ge=0, le=32)
    """Two files count as the same video when the root mean square difference of their coarse frames is not above this
    (of 255); 0: only equal bytes count."""
    drop_near_duplicates: bool = True
    """Leave out training rows whose video looks like one that is kept for measuring; false: only list them in
    ``contamination.json``."""
    store: Literal["smallest", "frames"] = "smallest"
    """``smallest``: keep the file itself where its compressed frames would be larger, so that a prepared set is never
    larger than its source (it is then decoded again each time it is read); ``frames``: always frames."""
    shards: int = Field(default=1, ge=1, le=10_000)
    """Parts that are prepared side by side (pods on a cluster); a video is in exactly one."""
    workers: int = Field(default=0, ge=0, le=512)
    """Decoding processes per shard; 0: one per CPU that the shard may use."""
    max_quarantined: float = Field(default=0.1, ge=0, le=1)
    """Fail when a larger share of the rows than this had to be quarantined: then the source, not a row, is
    wrong."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.source.strip():
            raise ValueError("source must be 'synthesize', a path, an s3:// URI or an hf:// URI")
        if min(self.holdout.values(), default=0) < 0 or sum(self.holdout.values()) >= 1:
            raise ValueError("holdout: shares are at least 0 and leave something of 'train'")
        if bad := [name for name in self.holdout if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", name) or name == "all"]:
            raise ValueError(f"holdout: '{bad[0]}' is no name of a split (letters, digits and _, and not 'all')")
        if self.weights and (min(self.weights.values()) < 0 or max(self.weights.values()) <= 0):
            raise ValueError("weights must not be below 0, and one must be above")
        low, high = self.min_pass_rate, self.max_pass_rate
        if low is not None and high is not None and low > high:
            raise ValueError("min_pass_rate must not exceed max_pass_rate")
        return self
