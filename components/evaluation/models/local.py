"""Models whose weights are loaded here."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.model.config import ModelConfig
from ...common.model.prompts import get_template
from ...common.rows.sample import Sample
from ...common.storage.names import fingerprint
from ...common.storage.s3 import Storage
from ...common.video.config import VideoConfig
from ..answers import Completion, Predict
from ..conditions import NO_VIDEO, seed_of
from ..config import EvaluationConfig
from ..expressions import FRAMES

if TYPE_CHECKING:
    from ...common.model.chat import ChatEncoder
    from ...common.model.prompt import EncodedPrompt
    from ...common.video.clip import Clip


class _Weights:
    """Weights that are loaded when they are first needed."""

    def __init__(self, folder: Callable[[], Path], model: ModelConfig, config: EvaluationConfig) -> None:
        self._folder = folder
        self._model = model
        self._config = config
        self._predict: Predict | None = None

    def predict(self) -> Predict:
        """See `Engine`."""
        if self._predict is None:
            from ...common.model.load import load_model

            loaded = load_model(self._folder(), dtype=self._model.dtype, attention=self._model.attention)
            self._predict = predictor(loaded, self._config)
        return self._predict

    def release(self) -> None:
        """Free the weights before the next model comes."""
        if self._predict is not None:
            self._predict = None
            free_memory()


class StoredModel(_Weights):
    """A model of the store, fetched when it is first asked."""

    def __init__(
        self, storage: Storage, uri: str, model: ModelConfig, config: EvaluationConfig, work_dir: Path
    ) -> None:
        from ...common.model.store import fetch_model

        super().__init__(lambda: fetch_model(storage, uri, work_dir), model, config)


class LocalModel(_Weights):
    """A model folder with its ``vthink.json``, loaded when it is first asked."""

    conditions: Sequence[str] = FRAMES[1:]

    def __init__(
        self,
        folder: Path,
        model: ModelConfig,
        config: EvaluationConfig,
        about: Mapping[str, Any],
        video: Mapping[str, Any] | None = None,
    ) -> None:
        """Args: ``video``: settings of `VideoConfig` in place of those that the model was trained with.

        Raises:
            UserError: not a model folder.
        """
        from ...common.model.folder import check_folder, read_card

        check_folder(folder)
        card = read_card(folder)
        self.folder = folder
        self.video: VideoConfig | None = VideoConfig.load({**card["video"].model_dump(), **(video or {})}, str(folder))
        self.prompt = str(card["prompt"])
        self.answer_format = get_template(self.prompt).answer_format
        self.about = {**about, "prompt": self.prompt}
        super().__init__(lambda: folder, model, config)


def free_memory() -> None:
    """Give back what torch keeps of the accelerator's memory."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def predictor(model: Any, config: EvaluationConfig) -> Predict:
    """Ask a `LoadedModel`, through the engine that rollouts and the server use."""
    import torch

    from ...common.model.generation import Sampling, sample

    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
    )

    def predict(samples: Sequence[Sample], clips: Sequence[Clip]) -> Sequence[Completion]:
        blind = all(clip is NO_VIDEO for clip in clips)
        prompts = encode_together(model.encoder, samples, clips)
        # With a temperature, a completion depends on its sample, not on its neighbours.
        keys = [seed_of("sampling", row.id) % 2**31 for row in samples]
        try:
            completions = sample(
                model.model, model.encoder, prompts, sampling, batch_size=config.batch_size, keys=keys, blind=blind
            )
        except torch.cuda.OutOfMemoryError:
            free_memory()  # for the smaller batches that follow
            raise
        return [group[0] for group in completions]

    return predict


def encode_together(encoder: ChatEncoder, samples: Sequence[Sample], clips: Sequence[Clip]) -> list[EncodedPrompt]:
    """Prompts of questions about clips (or `NO_VIDEO`); those about the same clip share one tensor of pixels.

    By that the generation engine knows which prompts begin alike, and takes in each beginning once.
    """
    prompts: dict[int, EncodedPrompt] = {}
    same: dict[int, list[int]] = {}
    for place, clip in enumerate(clips):
        same.setdefault(id(clip), []).append(place)
    for places in same.values():
        asked = [(samples[place].question, samples[place].options, samples[place].problem_type) for place in places]
        clip = clips[places[0]]
        made = [encoder.encode_blind(*one) for one in asked] if clip is NO_VIDEO else encoder.encode_many(asked, clip)
        prompts |= dict(zip(places, made, strict=True))
    return [prompts[place] for place in range(len(samples))]


def _folder_fingerprint(folder: Path) -> str:
    """Of names, sizes and times of change: contents of many gigabytes are not read again for it."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return fingerprint("folder", [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])


def _with_card(folder: Path, given: str, model: ModelConfig, video: VideoConfig, work_dir: Path) -> Path:
    """A folder that is the model with its ``vthink.json``; a Hugging Face folder gets one beside links to its files."""
    from ...common.model.folder import CARD, check_folder, write_card

    if (folder / CARD).is_file():
        return folder
    check_folder(folder)
    work_dir.mkdir(parents=True, exist_ok=True)
    linked = Path(tempfile.mkdtemp(prefix="model-", dir=work_dir))
    for path in folder.iterdir():
        if path.is_file():
            (linked / path.name).symlink_to(path)
    write_card(linked, model.prompt, video, {"base": given})
    return linked
