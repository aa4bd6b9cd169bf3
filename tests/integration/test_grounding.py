"""Does SFT on traces teach where in the video something happens? A run of its own: the demo's clips move throughout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from vthink.components.common.answers.responses import parse_response
from vthink.components.common.context import RunContext
from vthink.components.common.model.config import ModelConfig
from vthink.components.common.model.generation import Sampling, sample
from vthink.components.common.model.load import load_model
from vthink.components.common.model.store import fetch_model
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.common.video.config import VideoConfig
from vthink.components.data_prep.config import DataPrepConfig, SynthesizeConfig
from vthink.components.data_prep.prepare import prepare_data
from vthink.components.evaluation.metrics import baseline_items, grounding, mean_span
from vthink.components.sft.component import sft
from vthink.components.sft.config import SFTConfig

VIDEO = VideoConfig(num_frames=8, min_pixels=56 * 56, max_pixels=56 * 56)
WORLD = SynthesizeConfig(num_train=2000, num_validation=64, num_test=256, mix={"order": 1.0})


@pytest.mark.slow
@pytest.mark.learning
@pytest.mark.timeout(1800)
def test_predicted_spans_beat_the_whole_clip_and_the_mean_span(
    s3: StorageConfig, empty_mlflow_database: Path, tmp_path: Path
) -> None:
    storage = Storage(s3.model_copy(update={"prefix": f"{tmp_path.name}/"}))
    context = RunContext(
        run_id="grounding",
        storage=storage.config,
        tracking=TrackingConfig(uri=f"sqlite:///{empty_mlflow_database}"),
        work_dir=str(tmp_path),
    ).to_json()
    data = prepare_data(context, DataPrepConfig(synthesize=WORLD).to_json(), VIDEO.to_json())
    config = SFTConfig(
        learning_rate=1e-3,
        lr_schedule="constant",
        warmup_steps=50,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        batch_size=64,
        max_steps=300,
        gradient_checkpointing=False,
        save_every_steps=300,
        validation={"every_steps": 100, "num_items": 64, "max_new_tokens": 64},
    )
    trained = sft.python_func(context, config.to_json(), ModelConfig(prompt="compact/1").to_json(), data)

    prepared = PreparedSet.open(storage, data, tmp_path / "data")
    test = prepared.split("test")
    items = [test[index] for index in range(len(test))]
    loaded = load_model(fetch_model(storage, Manifest.read(storage, trained).files["model"], tmp_path))
    prompts = [loaded.encoder.encode_sample(item) for item in items]
    scores = []
    answers = sample(loaded.model, loaded.encoder, prompts, Sampling(max_new_tokens=64))
    for item, (completion,) in zip(items, answers, strict=True):
        spans = [(s.start_s, s.end_s) for s in parse_response(completion.text).segments]
        assert len(spans) <= 4, "a model must not win by naming every span there is"
        scores.append(grounding(spans, item.sample)["miou"])
    durations_s = {item.sample.id: item.clip.duration_s for item in items}
    baselines = baseline_items(test.samples, durations_s, mean_span(prepared.split("train").samples))
    assert set(baselines) == {"whole_clip", "mean_training_span"}
    for name, rows in baselines.items():
        baseline = float(np.mean([row.metrics["miou"] for row in rows]))
        print(f"mIoU {np.mean(scores):.3f}, {name} {baseline:.3f}")
        assert np.mean(scores) >= baseline + 0.15
