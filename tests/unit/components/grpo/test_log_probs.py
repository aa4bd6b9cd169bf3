"""Log-probabilities see the pixels, or are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from vthink.components.common.model.prompt import BlindInputError
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.grpo.losses import TrainingBatch
from vthink.components.grpo.trainer import VideoGRPOTrainer
from vthink.tests.unit.components.grpo.tiny_training import (
    Build,
    inputs_for,
    log_probs,
    rows_of_kind,
)


def plain_log_probs(trainer: VideoGRPOTrainer, batch: TrainingBatch) -> torch.Tensor:
    """(B, C) log-probabilities row by row through the model's ordinary forward, no batch, no fused head."""
    rows = []
    for index, prompt in enumerate(batch.prompts):
        length = int(batch.completion_mask[index].sum())
        completion = batch.completion_ids[index, :length].tolist()
        inputs = trainer.encoder.collate([prompt], [completion])
        logits = trainer.model(**inputs, use_cache=False).logits[0, len(prompt) - 1 : -1]
        picked = torch.log_softmax(logits, -1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
        rows.append(torch.nn.functional.pad(picked, (0, batch.completion_ids.shape[1] - length)))
    return torch.stack(rows)


def test_log_probabilities_see_the_pixels_and_stock_trl_does_not(
    build: Build, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build()
    rows = rows_of_kind(prepared, "video", 2) + rows_of_kind(prepared, "image", 1)
    batch = trainer.generate_batch(inputs_for(rows))
    seen, keep = batch.completion_mask.bool(), batch.completion_ids.shape[1]
    collated = trainer.encoder.collate(
        batch.prompts, [ids[kept].tolist() for ids, kept in zip(batch.completion_ids, seen, strict=True)]
    )
    with torch.no_grad():
        plain = plain_log_probs(trainer, batch)
        assert (log_probs(trainer, batch) - plain)[seen].abs().max() < 1e-5
        # The controls: stock TRL's forward, which has no pixels; and the pixels of another video.
        ids, mask = collated["input_ids"], collated["attention_mask"]
        blind, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, keep)
        assert (blind - plain)[seen].abs().max() > 1e-2
        media = trainer.encoder.media
        swapped = lambda prompts: (  # noqa: E731
            media(prompts) | {"pixel_values_videos": media(prompts)["pixel_values_videos"].flip(0)}
        )
        monkeypatch.setattr(trainer.encoder, "media", swapped)
        assert (log_probs(trainer, batch) - plain)[seen].abs().max() > 1e-2


@pytest.mark.parametrize("shared_prefix", ["two_call", "off"])
def test_a_forward_without_pixels_is_refused(build: Build, prepared: PreparedSet, shared_prefix: str) -> None:
    trainer = build(shared_prefix=shared_prefix)
    batch = trainer.generate_batch(inputs_for(rows_of_kind(prepared, "video", 3)))
    with pytest.raises(BlindInputError, match="12 completions, and the pixels of 11"):
        trainer.compute_loss(trainer.model, replace(batch, prompts=batch.prompts[:-1]))
    for pixels in (None, batch.prompts[0].pixel_values[:-1]):
        blind = [replace(prompt, pixel_values=pixels) for prompt in batch.prompts]  # type: ignore[arg-type]
        with pytest.raises(BlindInputError, match="vision placeholders and"):
            trainer.compute_loss(trainer.model, replace(batch, prompts=blind))
