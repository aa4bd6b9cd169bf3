"""From a question and a clip to the model's input: one encoding for SFT, rollouts, evaluation and the server.

The processor's own ``__call__`` does the same work prompt by prompt; here a clip's pixels are laid out once for all
questions about it. The tests of this module hold the two equal, token for token and pixel for pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..video.config import MediaKind, VideoConfig
from .families import family_of
from .prompt import IMAGE, TEXT, VIDEO, BlindInputError, EncodedPrompt, PromptKind, patchify, rope_positions
from .prompts import Prompt, build_messages, get_template

if TYPE_CHECKING:
    from ..rows.prepared import PreparedSample
    from ..video.clip import Clip


class ChatEncoder:
    """Encodes questions about clips for one model: its tokenizer, chat template, prompt template and patch layout."""

    def __init__(self, processor: Any, prompt: Prompt, video: VideoConfig, tokens_per_second: float) -> None:
        """An encoder for one model.

        Args:
            processor: of one of the `FAMILIES`.
            prompt: the prompt template, or its name.
            video: how clips are sampled.
            tokens_per_second: M-RoPE positions per second (`load.tokens_per_second`)."""
        self.processor, self.tokenizer, self.family = processor, processor.tokenizer, family_of(processor)
        self.prompt, self.template = prompt, get_template(prompt)
        self.video, self.tokens_per_second = video, tokens_per_second
        layout = processor.video_processor
        self.patch, self.merge = int(layout.patch_size), int(layout.merge_size)
        self.temporal_patch = int(layout.temporal_patch_size)
        kinds = {"video": layout, "image": processor.image_processor}
        self.normalisation = {kind: (list(of.image_mean), list(of.image_std)) for kind, of in kinds.items()}
        """Mean and standard deviation per channel; Qwen3-VL's differ between images and videos."""
        if video.size_multiple % (side := self.patch * self.merge):
            needed = f"a multiple of {side} (patch {self.patch} × merge {self.merge})"
            raise ValueError(f"video.size_multiple is {video.size_multiple}, but this model needs {needed}")
        vocabulary = self.tokenizer.get_vocab()
        names = [f"<|{name}|>" for name in ("image_pad", "video_pad", "vision_start", "vision_end", "vision_pad")]
        self.vision_token_ids = sorted(vocabulary[name] for name in names if name in vocabulary)
        """Tokens that only a prompt may hold; sampling must suppress them."""
        self.image_token_id, self.video_token_id = vocabulary["<|image_pad|>"], vocabulary["<|video_pad|>"]
        self.pad_token_id = int(self.tokenizer.pad_token_id)
        self.eos_token_id = int(self.tokenizer.convert_tokens_to_ids("<|im_end|>"))
        added = self.tokenizer.added_tokens_decoder.values()
        self._specials = sorted({str(t) for t in added if t.special or str(t).startswith("<|")}, key=len, reverse=True)
        self._tokenize = lru_cache(maxsize=65536)(self._tokenize_text)

    def plain(self, text: str) -> str:
        """``text`` with the spelling of control tokens broken, so that a question cannot forge a turn or a frame."""
        for special in self._specials:
            text = text.replace(special, special.replace("<|", "< |"))
        return text

    def _tokenize_text(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _vision_text(self, kind: str, grid: torch.Tensor, times_s: np.ndarray) -> str:
        t, tokens = int(grid[0]), int(grid[1] * grid[2]) // self.merge**2
        if kind == "image":
            return "<|vision_start|>" + "<|image_pad|>" * tokens + "<|vision_end|>"
        padded = np.pad(times_s, (0, t * self.temporal_patch - len(times_s)), mode="edge").reshape(t, -1)
        return self.family.video_text(tokens, ((padded[:, 0] + padded[:, -1]) / 2).tolist())

    def _patches(self, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = self.normalisation[clip.kind]
        return patchify(clip.frames, mean, std, self.patch, self.merge, self.temporal_patch)

    def render(self, question: str, options: Sequence[str], problem_type: str, kind: MediaKind | None) -> str:
        """The prompt as text, with one unexpanded media placeholder (None: without any)."""
        harmless = [self.plain(option) for option in options]
        messages = build_messages(self.plain(question), harmless, problem_type, kind, self.template)
        return str(self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def encode(self, question: str, options: Sequence[str], problem_type: str, clip: Clip) -> EncodedPrompt:
        """Encode one question about one clip."""
        return self.encode_many([(question, options, problem_type)], clip)[0]

    def encode_many(self, questions: Sequence[tuple[str, Sequence[str], str]], clip: Clip) -> list[EncodedPrompt]:
        """Encode several questions (text, options, problem type) about one clip; they share its pixels."""
        pixels, grid = self._patches(clip)
        vision = self._vision_text(clip.kind, grid, clip.times_s)
        second_per_grid_s = self.temporal_patch / clip.fps if clip.kind == "video" else 0.0
        prompts = []
        for question in questions:
            placeholder = f"<|vision_start|><|{clip.kind}_pad|><|vision_end|>"
            head, separator, tail = self.render(*question, clip.kind).partition(placeholder)
            if not separator:
                raise BlindInputError(f"the chat template left no place for the {clip.kind}")
            prompts.append(self._prompt(head + vision + tail, pixels, grid, second_per_grid_s, clip.kind))
            self.check_sighted(prompts[-1])
        return prompts

    def _prompt(
        self, text: str, pixels: torch.Tensor, grid: torch.Tensor, second_per_grid_s: float, kind: PromptKind
    ) -> EncodedPrompt:
        ids = torch.tensor(self._tokenize(text))
        types = torch.where(ids == self.video_token_id, VIDEO, torch.where(ids == self.image_token_id, IMAGE, TEXT))
        time_step = 0.0 if self.family.time_in_text else second_per_grid_s * self.tokens_per_second
        return EncodedPrompt(
            input_ids=ids,
            mm_token_type_ids=types,
            pixel_values=pixels,
            grid_thw=grid,
            position_ids=rope_positions(types, grid, self.merge, time_step),
            second_per_grid_s=second_per_grid_s,
            kind=kind,
        )

    def encode_blind(self, question: str, options: Sequence[str], problem_type: str) -> EncodedPrompt:
        """A question without its video, for evaluation to see what its words give away. `check_sighted` refuses it, and
        with it every batch of training; only `collate` with ``blind`` takes it."""
        text = self.render(question, options, problem_type, None)
        return self._prompt(text, torch.empty(0, 0), torch.zeros(3, dtype=torch.long), 0.0, "text")

    def encode_sample(self, item: PreparedSample) -> EncodedPrompt:
        """Encode a prepared sample's question and clip."""
        return self.encode(item.sample.question, item.sample.options, item.sample.problem_type, item.clip)

    def with_clip(self, prompt: EncodedPrompt, clip: Clip) -> EncodedPrompt:
        """The same question on other frames of the same shape (T-GRPO's shuffled clip): only the pixels change."""
        pixels, grid = self._patches(clip)
        if not torch.equal(grid, prompt.grid_thw):
            raise BlindInputError(f"clip has grid {grid.tolist()}, the prompt was made for {prompt.grid_thw.tolist()}")
        return replace(prompt, pixel_values=pixels)

    def encode_response(self, text: str) -> list[int]:
        """A response's token ids, closed by the end-of-turn token. The response cannot hold control tokens."""
        return [*self._tokenize(self.plain(text)), self.eos_token_id]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a response; special tokens are left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def check_sighted(self, prompt: EncodedPrompt) -> None:
        """BlindInputError for a prompt that has no pixels, or not one placeholder per merged patch."""
        placeholders = int((prompt.mm_token_type_ids != TEXT).sum())
        patches = int(prompt.grid_thw.prod())
        rows = 0 if prompt.pixel_values is None else prompt.pixel_values.shape[0]
        if rows != patches or patches == 0:
            raise BlindInputError(f"prompt has {placeholders} vision placeholders and {rows} of {patches} patches")
        if placeholders != patches // self.merge**2:
            raise BlindInputError(f"{placeholders} vision placeholders for {patches // self.merge**2} vision tokens")

    def collate(
        self, prompts: Sequence[EncodedPrompt], completions: Sequence[Sequence[int]] | None = None, blind: bool = False
    ) -> dict[str, torch.Tensor]:
        """Batch B prompts (padded left) and their completions (padded right) into the model's keyword arguments.

        ``input_ids``, ``attention_mask`` (B, P+C), ``position_ids`` (3, B, P+C), and `media` unless ``blind``, as the
        prompts of `encode_blind` are.

        Raises:
            BlindInputError: a prompt lacks its pixels, or one that is asked blind has any."""
        for prompt in prompts:
            if not blind:
                self.check_sighted(prompt)
            elif prompt.kind != "text":
                raise BlindInputError("prompts with and without a video do not go together")
        completions = completions if completions is not None else [[] for _ in prompts]
        longest_prompt = max(map(len, prompts))
        shape = (len(prompts), longest_prompt + max(map(len, completions)))
        ids = torch.full(shape, self.pad_token_id)
        mask = torch.zeros(shape, dtype=torch.long)
        positions = torch.zeros(3, *shape, dtype=torch.long)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            start, stop = longest_prompt - len(prompt), longest_prompt + len(completion)
            ids[row, start:longest_prompt] = self.model_ids(prompt)
            ids[row, longest_prompt:stop] = torch.tensor(completion, dtype=torch.long)
            mask[row, start:stop] = 1
            positions[:, row, start:longest_prompt] = prompt.position_ids
            positions[:, row, longest_prompt:stop] = prompt.next_position + torch.arange(len(completion))
        batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        return batch if blind else batch | self.media(prompts)

    def model_ids(self, prompt: EncodedPrompt) -> torch.Tensor:
        """(P,) token ids for the model's forward pass, in which an image is a video of one frame.

        The models have one vision tower and treat both alike, but would run it once for images and once for videos.
        Under ZeRO-3 every such pass is a collective operation: ranks whose batches differ in kind would wait for each
        other for ever. So it runs once, over everything."""
        return prompt.input_ids.masked_fill(prompt.mm_token_type_ids == IMAGE, self.video_token_id)

    def media(self, prompts: Sequence[EncodedPrompt]) -> dict[str, torch.Tensor]:
        """Pixels and grids of all prompts in their order, as the model's keyword arguments (see `model_ids`)."""
        pixels, grids = torch.cat([p.pixel_values for p in prompts]), torch.stack([p.grid_thw for p in prompts])
        return {"pixel_values_videos": pixels, "video_grid_thw": grids}
