"""Configuration of data preparation, and of the generated world that can stand in for a data set."""

import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ..common.chat_endpoint.config import ChatEndpointConfig
from ..common.config import Section
from .formats.columns import NAMES

SYNTHESIZE = "synthesize"  # `DataPrepConfig.source` of the generated world

QuestionKind = Literal["direction", "order", "count", "ocr", "speed", "duration", "describe"]


class SynthesizeConfig(Section):
    """A generated video-reasoning world: moving, appearing, changing shapes, and questions about them. The same section
    gives the same rows, byte for byte, on every machine."""

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
    """Share of each kind of question, as weights (they need not sum to 1): direction, order (multiple choice), count
    (numerical), ocr, speed, duration (regression), describe (free form)."""
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

    source: str = SYNTHESIZE
    """Rows as ``.jsonl``, ``.json`` (a list), ``.parquet`` or ``.csv``: a path, an ``s3://`` URI, or a file on the hub
    (``hf://datasets/<owner>/<name>/<file>``); or ``synthesize``, the generated world below."""
    format: str | None = None
    """How the rows are written: a name of `formats.registry.FORMATS`, or ``my_module:FORMAT``; null: as the first rows
    look."""
    columns: dict[str, str | tuple[str, ...]] = Field(default={})
    """Of a table of your own, the column of a field where its name is not a usual one: ``{video: clip, options: [opt1,
    opt2]}``; ``vthink data validate`` shows what was understood."""
    roots: dict[str, str] = Field(default={})
    """Where the media of a source are, by the row's ``source``; ``*``: of all others. A path, or an ``s3://`` or
    ``hf://`` prefix; media that no root is given for count from the file of rows."""
    synthesize: SynthesizeConfig = SynthesizeConfig()
    """The generated world, for ``source: synthesize``; ignored otherwise."""
    max_rows: int | None = Field(default=None, ge=1)
    """Read only so many rows from the source; null: all."""
    holdout: dict[str, float] = Field(default={})
    """Share of the videos and images in the split ``train`` that go to another split, by its name, such as
    ``{validation: 0.01}``: published training sets have no validation split. Decided by the file's path from the rows
    (or from its root), so that a set that is moved stays as it was split."""
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
    min_video_frames: int = Field(default=1, ge=1)
    """Quarantine videos with fewer frames (Video-Thinker's data has none below 64)."""
    sound: Literal["note", "refuse"] = "note"
    """Videos are used without their sound. ``note``: the card counts those that have some; ``refuse``: their rows are
    quarantined."""
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
    """Parts that are prepared side by side (pods on a cluster), at most; a video is in exactly one. Above four, each
    gets 32 rows or more."""
    workers: int = Field(default=0, ge=0, le=512)
    """Decoding processes per shard; 0: one per CPU that the shard may use."""
    max_quarantined: float = Field(default=0.1, ge=0, le=1)
    """Fail when a larger share of the rows than this had to be quarantined: then the source, not a row, is wrong."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.source.strip():
            raise ValueError("source must be 'synthesize', a path, an s3:// URI or an hf:// URI")
        if unknown := [name for name in self.columns if name not in NAMES]:
            raise ValueError(f"columns: unknown field '{unknown[0]}'; fields: {', '.join(NAMES)}")
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


class TeacherConfig(ChatEndpointConfig):
    """A model behind a server of OpenAI chat completions, how it samples, and what it costs."""

    temperature: float | None = Field(default=0.7, ge=0, le=2)
    """Sampling temperature; null: the server's own."""
    max_tokens: int = Field(default=4096, ge=1)
    """Longest reply; a reply that is cut off there cannot be used."""
    extra: dict[str, Any] = Field(default={})
    """Further fields of every request, such as ``{"response_format": {"type": "json_object"}}``; a null removes one
    (``{"max_tokens": null, "max_completion_tokens": 4096}``)."""
    usd_per_million_input_tokens: float = Field(default=0.0, ge=0)
    """Price of what is sent."""
    usd_per_million_output_tokens: float = Field(default=0.0, ge=0)
    """Price of what comes back."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if fixed := {"model", "messages", "stream", "n"} & self.extra.keys():
            raise ValueError(f"extra cannot set {', '.join(sorted(fixed))}")
        return self

    def sampling(self) -> dict[str, Any]:
        """The fields of a request that say how to sample."""
        return {"temperature": self.temperature, "max_tokens": self.max_tokens, **self.extra}

    @property
    def most_output_tokens(self) -> int:
        """The longest reply that a request allows."""
        renamed = self.extra.get("max_completion_tokens")
        return renamed if isinstance(renamed, int) else self.max_tokens

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """What so many tokens cost."""
        input_usd = input_tokens * self.usd_per_million_input_tokens
        return (input_usd + output_tokens * self.usd_per_million_output_tokens) / 1e6


class JudgeConfig(TeacherConfig):
    """The judge's server: it answers, it does not invent."""

    temperature: float | None = Field(default=0.0, ge=0, le=2)
    """Sampling temperature; null: the server's own."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest reply."""


class CurationConfig(Section):
    """How `vthink data curate` turns captioned videos, or questions, into reasoning traces.

    ``hindsight`` is Video-Thinker's data engine (arXiv 2510.23473): a teacher writes question, captions and trace; a
    judge must find the answer from the trace's times and captions alone. ``cot`` is Video-R1's (arXiv 2503.21776):
    traces are sampled, and kept where the rule reward is high enough."""

    method: Literal["hindsight", "cot"] = "hindsight"
    """Which of the two."""
    teacher: TeacherConfig = TeacherConfig()
    """Writes questions, captions and traces."""
    judge: JudgeConfig = JudgeConfig()
    """Answers from the captions (`hindsight` only). Video-Thinker: Qwen2.5-VL-7B-Instruct."""
    prompts: str | None = None
    """Folder whose ``question.jinja``, ``captions.jinja``, ``trace.jinja``, ``judge.jinja`` and ``cot.jinja`` replace
    ours; those that it lacks stay ours."""
    videos: str = "{id}.mp4"
    """Where the video of captioned segments is: a path from the file of segments, or an ``s3://`` URI; ``{id}`` stands
    for its key in the file."""
    source: str = ""
    """``source`` of rows made from captioned segments; empty: the name of the file."""
    split: str = Field(default="train", pattern=r"^[A-Za-z0-9_]{1,64}$")
    """``split`` of rows made from captioned segments."""
    num_frames: int = Field(default=16, ge=1, le=256)
    """Frames of a video that a teacher or judge who looks at it is shown."""
    max_pixels: int = Field(default=256 * 28 * 28, ge=28 * 28)
    """Most pixels of each."""
    judge_sees_video: bool = False
    """Show the judge the frames too. UNVERIFIED in the paper; false makes the captions carry the answer."""
    min_segments: int = Field(default=2, ge=1)
    """A written question must need so many segments (Video-Thinker: several)."""
    min_options: int = Field(default=4, ge=2, le=26)
    """Fewest options of a written question (Video-Thinker: 4)."""
    max_options: int = Field(default=6, ge=2, le=26)
    """Most options of a written question (Video-Thinker: 6)."""
    max_regenerations: int = Field(default=3, ge=0, le=100)
    """How often a trace is written again because the judge answered wrongly (Video-Thinker: 3)."""
    when_never_right: Literal["drop", "keep"] = "drop"
    """What becomes of a row whose last trace failed too. UNVERIFIED in the paper."""
    max_malformed: int = Field(default=2, ge=0, le=100)
    """How often a reply that cannot be used is asked for again, before its row is dropped."""
    num_traces: int = Field(default=4, ge=1, le=64)
    """Traces sampled per question (`cot` only)."""
    max_kept: int = Field(default=1, ge=1, le=64)
    """Most traces kept per question, the best first (`cot` only)."""
    min_reward: float = Field(default=0.6, ge=0, le=1)
    """A trace is kept when the reward of its answer is above this and its format is right (Video-R1: 0.6; `cot`
    only)."""
    max_items: int | None = Field(default=None, ge=1)
    """Only so many videos or questions of the source; null: all."""
    budget_usd: float | None = Field(default=None, gt=0)
    """Stop before this is exceeded, what earlier runs into the same output spent included; null: no limit. Needs
    prices."""
    seed: int = 0
    """Seed of the teacher's sampling (sent with each request) and of the order of options."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_options > self.max_options:
            raise ValueError("min_options must not exceed max_options")
        if self.max_kept > self.num_traces:
            raise ValueError("max_kept must not exceed num_traces")
        free = [role for role, model in self.models().items() if not model.usd(1, 1)]
        if self.budget_usd is not None and free:
            raise ValueError(f"budget_usd needs the prices of the {free[0]} (usd_per_million_input_tokens, …)")
        return self

    def models(self) -> dict[Literal["teacher", "judge"], TeacherConfig]:
        """The models that the method needs, by role."""
        return (
            {"teacher": self.teacher, "judge": self.judge} if self.method == "hindsight" else {"teacher": self.teacher}
        )
