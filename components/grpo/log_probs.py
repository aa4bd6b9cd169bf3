"""Log-probabilities of completions, with the pixels of their prompts, in passes of a bounded number of tokens."""

from collections.abc import Sequence
from typing import Any

import torch

from ..common.errors import UserError
from ..common.model.chat import ChatEncoder
from ..common.model.prompt import BlindInputError, EncodedPrompt
from .config import GRPOConfig
from .losses import TrainingBatch
from .shared_prefix import install, log_probs, pack

Forward = tuple[torch.Tensor, torch.Tensor | None]  # log-probabilities, and entropies if the fused head computes them


class SightedLogProbs:
    """Log-probabilities as the configuration says how to compute them (`GRPOConfig.shared_prefix`). TRL 1.16 accepts
    prompts with videos and then computes every log-probability without pixels. Here token ids and pixels come from the
    same encoded prompt, and a prompt whose placeholders have no pixels is refused."""

    def __init__(self, config: GRPOConfig, encoder: ChatEncoder, accelerator: Any, models: Sequence[Any]) -> None:
        """Args: ``models``: those it will be called with, given TRL's fused head."""
        self.config, self.encoder, self.accelerator = config, encoder, accelerator
        for model in models if config.shared_prefix != "off" else ():
            install(accelerator.unwrap_model(model))

    def __call__(self, model: Any, batch: TrainingBatch) -> Forward:
        """(B, C) and (B, C), 0 where the batch's mask is.

        Raises:
            BlindInputError: a prompt without its pixels, or vision tokens in a completion, which were not suppressed.
            UserError: a log-probability is not a finite number."""
        ids, seen = batch.completion_ids, batch.completion_mask.bool()
        vision = torch.tensor(self.encoder.vision_token_ids, device=ids.device)
        if bool((torch.isin(ids, vision) & seen).any()):
            raise BlindInputError("a completion holds vision tokens; they must be suppressed when sampling")
        completions = [row[kept].tolist() for row, kept in zip(ids, seen, strict=True)]
        forward = self.plain_forward if self.config.shared_prefix == "off" else self.packed_forward
        with self.accelerator.autocast():
            values, entropies = forward(model, batch.prompts, completions)
        if not bool(torch.isfinite(values).all()):
            rows = seen.nonzero()[~torch.isfinite(values)][:, 0].unique().tolist()
            hint = "are the weights, or the frames' normalisation, damaged?"
            raise UserError(f"log-probabilities of rows {rows} of the batch are not finite; {hint}")
        empty = values.new_zeros(seen.shape)
        spread = empty.masked_scatter(seen, values)
        return spread, empty.masked_scatter(seen, entropies) if entropies is not None else None

    def packed_forward(self, model: Any, prompts: Sequence[EncodedPrompt], completions: Sequence[list[int]]) -> Forward:
        """Each prompt once, in front of its completions: (ΣC,) and (ΣC,)."""
        groups = group_slices(prompts)
        once = [prompts[group.start] for group in groups]
        packed = pack(self.encoder, once, [completions[group] for group in groups])
        return log_probs(model, packed, "mask" if self.config.shared_prefix == "mask" else "two_call")

    def plain_forward(self, model: Any, prompts: Sequence[EncodedPrompt], completions: Sequence[list[int]]) -> Forward:
        """A copy of the prompt, pixels included, for each completion: slow, and obviously right."""
        batch = {name: t.to(self.accelerator.device) for name, t in self.encoder.collate(prompts, completions).items()}
        keep = max(len(completion) for completion in completions)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, : labels.shape[1] - keep] = -100
        outputs = model(**batch, labels=labels, fused_lm_head=True, use_cache=False)
        seen = labels[:, -keep:] != -100
        entropies = outputs.entropy[:, -keep:][seen] if outputs.entropy is not None else None
        return outputs.log_probs[:, -keep:][seen], entropies

    @torch.no_grad()
    def frozen(self, model: Any, batch: TrainingBatch, rows_per_slice: int) -> torch.Tensor:
        """(B, C) log-probabilities without gradients, in slices of the training batch, as the loss computes them."""
        starts = range(0, len(batch.prompts), rows_per_slice)
        slices = [batch.rows(slice(start, start + rows_per_slice)) for start in starts]
        computed = [(self(model, part)[0], counts) for piece in slices for part, counts in self.passes(piece)]
        return torch.cat([values for values, counts in computed if counts])

    def passes(self, batch: TrainingBatch) -> list[tuple[TrainingBatch, bool]]:
        """Split a micro-batch between its groups so that no pass exceeds the token budget, if there is one. Every rank
        makes as many passes as the one that needs most, for each may be a collective operation: the passes that are
        marked False repeat the first and must not count."""
        budget = self.config.max_tokens_per_pass
        if budget is None:
            return [(batch, True)]
        pieces: list[slice] = []
        used = budget
        for group in group_slices(batch.prompts):
            copies = group.stop - group.start if self.config.shared_prefix == "off" else 1
            tokens = int(batch.completion_mask[group].sum()) + len(batch.prompts[group.start]) * copies
            if pieces and used + tokens <= budget:
                pieces[-1] = slice(pieces[-1].start, group.stop)
                used += tokens
            else:
                pieces.append(group)
                used = tokens
        count = torch.tensor(len(pieces), device=self.accelerator.device)
        most = int(self.accelerator.gather(count).max())
        parts = [(batch.rows(piece), True) for piece in pieces]
        return parts + [(parts[0][0], False)] * (most - len(parts))


def group_slices(prompts: Sequence[EncodedPrompt]) -> list[slice]:
    """Runs of the same prompt."""
    starts = [i for i, prompt in enumerate(prompts) if i == 0 or prompt is not prompts[i - 1]]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(prompts)], strict=True)]
