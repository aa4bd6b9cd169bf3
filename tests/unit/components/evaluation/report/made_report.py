"""Reports of models that look, guess or fail, and the data in them."""

import base64
import gzip
import json
import random
import re

from vthink.components.evaluation.conditions import frame_order, other_videos
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.metrics import baseline_items
from vthink.components.evaluation.report.pages import evaluation_page
from vthink.components.evaluation.results import EvaluationResult

from ..small_world import ATTACK, World, graded, items_of, look, result_of, stage_result


def make_report(world: World, config: EvaluationConfig, broken: str | None = None) -> tuple[str, EvaluationResult]:
    """The report of three models, of which each looks more often than the one before it."""
    rng = random.Random(0)
    others = other_videos(world.samples, 0)
    results = []
    for model, skill in (("base", 0.0), ("sft", 0.4), ("grpo", 0.9)):
        items = {}
        for condition in ("ordered", "shuffled", "other_video"):
            texts = []
            for sample, clip in zip(world.samples, world.clips, strict=True):
                if condition == "shuffled":
                    clip = clip.permuted(frame_order(sample.id, len(clip.frames), 0))
                elif condition == "other_video" and sample.media.uri in others:
                    clip = world.clips[world.samples.index(others[sample.media.uri])]
                guess = f"I think it gets darker {ATTACK} <answer>{rng.choice('AB')}</answer>"
                texts.append(look(sample, clip) if rng.random() < skill else guess)
            items[condition] = items_of(world, texts, model, condition)
        if model == "grpo" and broken is not None:
            items["ordered"] = [
                graded(sample, "", model, error=f"OSError: {ATTACK}") if sample.id == broken else item
                for sample, item in zip(world.samples, items["ordered"], strict=True)
            ]
        results.append(result_of(world, items, model, config))
    baselines = baseline_items(world.samples, {sample.id: 4.0 for sample in world.samples}, (0.5, 2.5))
    result = stage_result(results, config, baselines)
    return evaluation_page(result, results, [], world.clip, config), result


def report_of_one(world: World, config: EvaluationConfig, text: str) -> str:
    """The report of a model that gives one answer to everything."""
    results = [result_of(world, {"ordered": items_of(world, [text] * len(world), "base")}, "base", config)]
    return evaluation_page(stage_result(results, config), results, [], world.clip, config)


def data_of(html: str) -> dict:
    """The data that the page's script works with."""
    packed = re.search(r'<script type="application/octet-stream" id="items">([A-Za-z0-9+/=]*)</script>', html)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))
