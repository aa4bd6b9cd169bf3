"""Training that can be killed: checkpoints that are whole or absent, resume, validation, and the pieces of a trainer.

A checkpoint is a folder ``checkpoint-<step>`` that the Hugging Face trainer writes (weights, optimiser, scheduler,
random states, trainer state). It counts only once it is sealed, by a list of its files written last; it is then
copied to the store in the background, where `Storage.upload_dir` seals it again. After a kill, on this machine or on
a new one, the newest sealed checkpoint is the place to go on from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PrinterCallback, TrainerCallback

from .answers import follows_format, is_correct, parse_response
from .chat import ChatEncoder
from .config import ConfigError, ModelConfig, RunContext, TrainingConfig, ValidationConfig
from .generation import Sampling, sample
from .launch import git_commit
from .models import (
    LoadedModel,
    ModelError,
    ensure_base_model,
    fetch_model,
    iter_linear_names,
    load_model,
    pick_dtype,
    save_model,
)
from .samples import PreparedSet, Split
from .storage import Manifest, Storage, join
from .tracking import Tracker

_BASE_MODEL_WAIT_S = 3600.0
"""How long other ranks wait for the first to bring the base model into the store: a hub's 7B takes minutes."""

SEAL = "sealed.json"

# transformers loads the optimiser of several processes on a CPU to the device ``cpu:0``, a name that torch.load does
# not know: resuming would fail.
torch.serialization.register_package(
    5, lambda _: None, lambda storage, tag: storage if tag.startswith("cpu:") else None
)


class CheckpointStore:
    """The checkpoints of one training job: a local folder, mirrored to a prefix in the store."""

    def __init__(self, storage: Storage, prefix_uri: str, folder: Path) -> None:
        """Args: ``prefix_uri``: where checkpoints go in the store; ``folder``: the trainer's output folder."""
        self.storage, self.prefix_uri, self.folder = storage, prefix_uri, folder
        self._uploads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-upload")
        self._pending: list[Future[None]] = []

    @staticmethod
    def step_of(path: Path | str) -> int | None:
        """The step in a checkpoint's name, or None for anything else."""
        match = re.fullmatch(r"checkpoint-(\d+)", Path(str(path).rstrip("/")).name)
        return int(match.group(1)) if match else None

    @staticmethod
    def is_sealed(checkpoint: Path) -> bool:
        """Whether every file that the seal lists is there in full."""
        try:
            files: dict[str, int] = json.loads((checkpoint / SEAL).read_text())
            return all((checkpoint / name).stat().st_size == size for name, size in files.items())
        except (OSError, json.JSONDecodeError, AttributeError):
            return False

    def seal(self, checkpoint: Path) -> None:
        """Declare a checkpoint whole. The list of files appears at once, by a rename."""
        files = {str(p.relative_to(checkpoint)): p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()}
        files.pop(SEAL, None)
        temporary = checkpoint / f"{SEAL}.tmp"
        temporary.write_text(json.dumps(files, sort_keys=True))
        temporary.rename(checkpoint / SEAL)

    def upload(self, checkpoint: Path) -> None:
        """Copy a sealed checkpoint to the store in the background. Training does not wait; `wait` does.

        Of several nodes each sends what its processes wrote, to a folder of its own; the checkpoint counts when all
        have arrived.
        """
        node, nodes = node_rank()
        name = checkpoint.name if nodes == 1 else f"{checkpoint.name}/node-{node}-of-{nodes}"
        uri = join(self.prefix_uri, name) + "/"

        def copy() -> None:
            self.storage.upload_dir(checkpoint, uri)

        self._pending.append(self._uploads.submit(copy))

    def wait(self) -> None:
        """Wait for the uploads; an upload's error is raised here."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def prune(self, keep: Sequence[str]) -> None:
        """Delete checkpoints from the store whose names are not in ``keep`` (the trainer prunes the local folder)."""
        self.wait()
        for name in {
            item.uri.removeprefix(self.prefix_uri).split("/")[0] for item in self.storage.list(self.prefix_uri)
        }:
            if self.step_of(name) is not None and name not in keep:
                self.storage.delete_prefix(join(self.prefix_uri, name) + "/")

    def rotate(self, limit: int, keep: set[str]) -> None:
        """Delete local checkpoints that have been sent: all but the newest ``limit`` and those named in ``keep``."""
        self.wait()
        found = sorted((step, path) for path in self.folder.iterdir() if (step := self.step_of(path)) is not None)
        for _, path in found[:-limit]:
            if path.name not in keep:
                shutil.rmtree(path)

    def _stored(self) -> dict[int, list[str]]:
        """Whole checkpoints in the store: step → the prefixes of their parts, one per node that wrote them."""
        names = {item.uri.removeprefix(self.prefix_uri).split("/")[0] for item in self.storage.list(self.prefix_uri)}
        found: dict[int, list[str]] = {}
        for name in names:
            step, uri = self.step_of(name), join(self.prefix_uri, name) + "/"
            if step is None:
                continue
            if self.storage.is_complete(uri):
                found[step] = [uri]
                continue
            folders = {item.uri.removeprefix(uri).split("/")[0] for item in self.storage.list(uri)}
            for nodes in {int(match[2]) for f in folders if (match := re.fullmatch(r"node-(\d+)-of-(\d+)", f))}:
                parts = [join(uri, f"node-{node}-of-{nodes}") + "/" for node in range(nodes)]
                if all(self.storage.is_complete(part) for part in parts):
                    found[step] = parts
        return found

    def newest(self) -> Path | None:
        """The newest whole checkpoint, fetched from the store if it is only there. Torn ones are removed.

        Called by every process: the first of the run chooses, the first of each node fetches. Where there are several
        nodes, a folder on one of them is not the whole checkpoint: then only what is in the store counts.
        """
        rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
        alone = node_rank()[1] == 1
        self.folder.mkdir(parents=True, exist_ok=True)
        chosen: list[tuple[int, list[str]] | None] = [None]
        if rank == 0:
            steps: dict[int, list[str]] = {}
            for path in self.folder.iterdir():
                step = self.step_of(path)
                if step is None:
                    continue
                if alone and self.is_sealed(path):
                    steps[step] = []
                else:
                    shutil.rmtree(path)
            for step, parts in self._stored().items():
                steps.setdefault(step, parts)
            if steps:
                chosen = [(max(steps), steps[max(steps)])]
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.broadcast_object_list(chosen, src=0)
        if chosen[0] is None:
            return None
        step, parts = chosen[0]
        found = self.folder / f"checkpoint-{step}"
        if parts and local_rank == 0:
            shutil.rmtree(found, ignore_errors=True)
            for part in parts:
                self.storage.download_dir(part, found)
            self._bring_best(found)
            self.seal(found)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.barrier()
        return found

    def complete(self, checkpoint: Path) -> None:
        """Fetch what other nodes wrote of a checkpoint of this training; every process calls it."""
        self.wait()
        if node_rank()[1] == 1:
            return
        torch.distributed.barrier()  # every node has sent its part
        step = self.step_of(checkpoint)
        if int(os.environ.get("LOCAL_RANK", "0")) == 0 and step is not None:
            for part in self._stored().get(step, []):
                self.storage.download_dir(part, checkpoint)
        torch.distributed.barrier()

    def _bring_best(self, checkpoint: Path) -> None:
        """Fetch the best checkpoint so far too, which a fetched one may name, and name it where it is here."""
        path = checkpoint / "trainer_state.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        if not state.get("best_model_checkpoint"):
            return
        best = self.folder / Path(state["best_model_checkpoint"]).name
        step = self.step_of(best)
        if step is not None and best != checkpoint and not self.is_sealed(best):
            for part in self._stored().get(step, []):
                self.storage.download_dir(part, best)
            self.seal(best)
        state["best_model_checkpoint"] = str(best)
        path.write_text(json.dumps(state, indent=2))


def node_rank() -> tuple[int, int]:
    """(which, of how many) nodes this process is on, as torchrun says."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(os.environ.get("RANK", "0")) // per_node, -(-int(os.environ.get("WORLD_SIZE", "1")) // per_node)


def repartition(trainer: Any, checkpoint: Path) -> None:
    """Let a ZeRO checkpoint be loaded on another number of processes than wrote it: as a universal checkpoint.

    Every process calls it. The first of each node converts (DeepSpeed's own tool); where the numbers agree it does
    nothing.
    """
    if not trainer.is_deepspeed_enabled:
        return
    tag = (checkpoint / "latest").read_text().strip()
    written_by = len(list((checkpoint / tag).glob("*_optim_states.pt")))
    if written_by == int(os.environ.get("WORLD_SIZE", "1")):
        return
    if int(os.environ.get("LOCAL_RANK", "0")) == 0 and not (checkpoint / "latest_universal").exists():
        source, target = checkpoint / tag, checkpoint / f"{tag}_universal"
        print(f"{checkpoint.name}: converting it, written by {written_by} processes, to a universal one", flush=True)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--input_folder", str(source), "--output_folder", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{checkpoint} cannot be converted to a universal checkpoint:\n{done.stderr[-2000:]}")
        (checkpoint / "latest_universal").write_text(target.name)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    trainer.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
    trainer.add_callback(_AfterUniversal())


class _AfterUniversal(TrainerCallback):
    """Mends what DeepSpeed 0.19 gets wrong when it loads a universal checkpoint under ZeRO-3.

    All parameters are given one and the same step counter, which Adam then advances once for each of them, and every
    parameter group the settings of the first one: biases and norms would be decayed.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the checkpoint was loaded, before the first step."""
        optimizer = kwargs["optimizer"]
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        for values in optimizer.state.values():
            if torch.is_tensor(values.get("step")):
                values["step"] = values["step"].clone()
        # transformers makes these two groups: weights, then biases and norms, which do not decay.
        for group, decay in zip(optimizer.param_groups, (args.weight_decay, 0.0), strict=False):
            group["weight_decay"] = decay


def load_weights(model: Any, folder: Path) -> None:
    """Load a saved model's weights into ``model``, all of them.

    transformers 5 saves under the hub's names for weights and translates them back in ``from_pretrained``, but its
    Trainer loads checkpoints without translating and without insisting: it would go on from random weights.

    Raises:
        ModelError: a weight is missing or left over.
    """
    source, info = type(model).from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        odd = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]]))
        raise ModelError(f"{folder}: {len(odd)} weights do not fit the model, among them {', '.join(odd[:3])}")
    model.load_state_dict(source.state_dict(), strict=True)


class WholeCheckpoints:
    """For a trainer (listed before it among the bases): resuming and choosing the best really load the weights."""

    def _plain(self: Any) -> bool:
        """Whether the checkpoint is a model folder; DeepSpeed and PEFT keep and load theirs correctly."""
        return not self.is_deepspeed_enabled and not hasattr(self.model, "peft_config")

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._plain():
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        load_weights(
            self.accelerator.unwrap_model(model if model is not None else self.model), Path(resume_from_checkpoint)
        )

    def _load_best_model(self: Any) -> None:
        if not self._plain():
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, CheckpointCallback):
                    callback.store.complete(Path(self.state.best_model_checkpoint))
            super()._load_best_model()  # type: ignore[misc]
            return
        model = self.accelerator.unwrap_model(self.model)
        if self.accelerator.is_main_process:  # only its node has the weights
            load_weights(model, Path(self.state.best_model_checkpoint))
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            for tensor in model.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        """Save; on every node the folder is there first.

        The trainer believes in a best checkpoint where it sees its folder. Nodes with disks of their own would come to
        different beliefs, and those that load it would wait for the others for ever.
        """
        Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}").mkdir(parents=True, exist_ok=True)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]


class CheckpointCallback(TrainerCallback):
    """Seals each checkpoint the trainer has written and sends it to the store."""

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called on every rank after the checkpoint's files are written."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every rank has written its part of the optimiser and its random state
        if int(os.environ.get("LOCAL_RANK", "0")) != 0:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        self.store.seal(checkpoint)
        if state.is_world_process_zero:
            self.store.prune([path.name for path in Path(args.output_dir).iterdir()])
        elif args.save_total_limit:
            # The trainer removes old checkpoints on the first node only; the disks of the others would fill up.
            best = Path(state.best_model_checkpoint or "").name
            self.store.rotate(args.save_total_limit, {best, checkpoint.name})
        self.store.upload(checkpoint)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave no upload behind."""
        self.store.wait()


class StopOnSignal(TrainerCallback):
    """SIGTERM (a spot node about to be taken, a pod evicted): a checkpoint, safely stored, and then the end."""

    EXIT_CODE = 143
    """What a process that SIGTERM ended is expected to return; whoever started it starts it again, and it resumes."""

    def __init__(self, store: CheckpointStore, every_steps: int = 1) -> None:
        """Args: ``every_steps``: a checkpoint may only be made after a multiple of so many steps."""
        self.store, self.every_steps = store, every_steps
        self.asked = self.stopping = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Listen."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ranks stop together, at the same step, however many of them were asked."""
        asked = torch.tensor(float(self.asked), device=args.device)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        if asked > 0 and state.global_step % self.every_steps == 0 and state.global_step < state.max_steps:
            self.stopping = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The checkpoint is sealed (this callback comes after the one that does it): see it stored, and leave."""
        if not self.stopping:
            return
        self.store.wait()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        print(f"asked to stop: checkpoint {state.global_step} is stored; the next start goes on from it", flush=True)
        raise SystemExit(self.EXIT_CODE)


class ProgressCallback(TrainerCallback):
    """Sends metrics to MLflow under the project's fixed names and prints a line for a person."""

    NAMES: ClassVar[dict[str, str]] = {
        "loss": "loss",
        "grad_norm": "grad_norm",
        "learning_rate": "learning_rate",
        "mean_token_accuracy": "token_accuracy",
        "entropy": "entropy",
        "kl": "kl",
    }

    def __init__(self, stage: str, tracker: Tracker | None) -> None:
        """Args: ``tracker``: None on every rank but the first."""
        self.stage, self.tracker = stage, tracker
        self.started, self.first_step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.started, self.first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Translate the trainer's names, track, print."""
        if self.tracker is None or not logs or "train_runtime" in logs:
            return
        metrics: dict[str, float] = {}
        for name, value in logs.items():
            if not isinstance(value, int | float):
                continue
            if name.startswith("eval_"):
                metrics[f"validation/{name.removeprefix('eval_')}"] = value
            elif name in self.NAMES:
                metrics[f"{self.stage}/{self.NAMES[name]}"] = value
            elif name.startswith(("grpo/", "time/")):
                metrics[name] = value
        self.tracker.log_metrics(metrics, step=state.global_step)
        done = state.global_step - self.first_step
        pace = (time.monotonic() - self.started) / done if done else 0.0
        left = pace * (state.max_steps - state.global_step)
        shown = " · ".join(
            f"{name.removeprefix(self.stage + '/').removeprefix('grpo/')} {value:.3g}"
            for name, value in metrics.items()
            if not name.endswith(("learning_rate", "grad_norm")) and not name.startswith("time/")
        )
        print(f"{self.stage} {state.global_step}/{state.max_steps} · {shown} · {pace:.2f} s/step · {left:.0f} s left")
        sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class ValidationScore:
    """Greedy answers on the validation split."""

    accuracy: float
    format_rate: float
    num_items: int


def pick_items(split: Split, kinds: Sequence[str], images: bool = True) -> list[int]:
    """Indices of the samples whose ``metadata.kind`` is wanted (all when ``kinds`` is empty)."""
    return [
        index
        for index, item in enumerate(split.samples)
        if (not kinds or item.metadata.get("kind") in kinds) and (images or item.media.kind == "video")
    ]


def validate(
    model: Any,
    encoder: ChatEncoder,
    split: Split,
    indices: Sequence[int],
    config: ValidationConfig,
    rank: int = 0,
    world_size: int = 1,
) -> ValidationScore:
    """Ask this rank's share of the questions greedily; the score is over all ranks."""
    mine = indices[rank::world_size]
    totals = torch.zeros(3)
    for start in range(0, len(mine), config.batch_size):
        items = [split[index] for index in mine[start : start + config.batch_size]]
        sampling = Sampling(max_new_tokens=config.max_new_tokens)
        completions = sample(model, encoder, [encoder.encode_sample(i) for i in items], sampling)
        for item, (completion,) in zip(items, completions, strict=True):
            totals[0] += is_correct(item.sample, parse_response(completion.text).answer)
            totals[1] += follows_format(item.sample, completion.text, encoder.template.answer_format)
            totals[2] += 1
    if world_size > 1:
        device = next(model.parameters()).device
        totals = totals.to(device)
        torch.distributed.all_reduce(totals)
    right, formed, count = totals.tolist()
    return ValidationScore(right / max(count, 1), formed / max(count, 1), int(count))


_DEEPSPEED: dict[str, dict[str, Any]] = {
    "zero2": {"zero_optimization": {"stage": 2, "overlap_comm": True, "contiguous_gradients": True}},
    "zero3": {
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    },
}


def accumulation(config: TrainingConfig, planned_processes: int | None) -> int:
    """Micro-batches per optimiser step on the processes there are, so that the batch stays what was planned.

    A training that was planned for eight processes and goes on with four, because the other node is gone, takes twice
    as many micro-batches: the same rows make the same step.

    Args:
        planned_processes: those that ``gradient_accumulation`` was meant for; None: those there are.

    Raises:
        ConfigError: the planned batch cannot be shared out between the processes there are.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    total = config.gradient_accumulation * (planned_processes or processes)
    if total % processes:
        raise ConfigError(
            f"the batch was planned as {total} micro-batches per step, which {processes} processes cannot share; "
            f"start a number of them that divides {total}"
        )
    return total // processes


def trainer_arguments(
    config: TrainingConfig,
    folder: Path,
    on_cpu: bool,
    dtype: str = "auto",
    planned_processes: int | None = None,
) -> dict[str, Any]:
    """Keyword arguments that TRL's SFTConfig and GRPOConfig share, from our configuration.

    Args:
        dtype: `ModelConfig.dtype`; with bfloat16 the forward pass is computed in it, while the weights that the
            optimiser updates stay in float32 (its own, or DeepSpeed's master copy).
        planned_processes: see `accumulation`.
    """
    bf16 = pick_dtype(dtype, torch.device("cpu" if on_cpu else "cuda")) == torch.bfloat16
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": config.seed,
        "data_seed": config.seed,
        "max_steps": config.max_steps,
        "num_train_epochs": config.num_epochs,
        "train_sampling_strategy": "random" if config.shuffle else "sequential",
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_schedule,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "adam_beta2": config.adam_beta2,
        "max_grad_norm": config.max_grad_norm,
        "gradient_accumulation_steps": accumulation(config, planned_processes),
        "gradient_checkpointing": config.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": config.save_every_steps,
        "save_total_limit": config.keep_checkpoints,
        "eval_strategy": "steps",
        "eval_steps": config.validation.every_steps,
        "logging_steps": config.log_every_steps,
        "logging_first_step": True,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "bf16": bf16,
        "use_cpu": on_cpu,
        # Every parameter takes part in every step (each row brings an image or a video), so DDP need not search.
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": not on_cpu,
    }
    if config.gradient_checkpointing:
        arguments["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    if config.deepspeed != "none":
        import deepspeed

        # Before any model is made under ZeRO-3 (the reference model is): DeepSpeed would count one rank.
        deepspeed.init_distributed(dist_backend="gloo" if on_cpu else "nccl")
        arguments["deepspeed"] = _DEEPSPEED[config.deepspeed] | {
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "bf16": {"enabled": "auto"},
        }
    return arguments


def freeze(model: Any, config: TrainingConfig) -> None:
    """Stop gradients into the vision tower or the projector, as configured."""
    for name, parameter in model.named_parameters():
        in_vision = ".visual." in f".{name}"
        in_projector = in_vision and ".merger" in name
        if (config.freeze_projector and in_projector) or (config.freeze_vision and in_vision and not in_projector):
            parameter.requires_grad_(False)


def adapter_config(model: Any, config: TrainingConfig) -> Any | None:
    """The PEFT configuration for LoRA on the language model's linear layers, or None."""
    if config.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=sorted(iter_linear_names(model)),
        task_type="CAUSAL_LM",
    )


@dataclass(slots=True)
class TrainingJob:
    """What a training process works with, opened from the job that the stage's launcher wrote."""

    stage: str
    job: dict[str, Any]
    context: RunContext
    storage: Storage
    work: Path
    """Scratch folder of this job; it outlives a killed process."""
    data: PreparedSet
    base_uri: str
    """Prefix of the base model."""
    start_uri: str
    """Prefix of the model that training starts from."""
    loaded: LoadedModel
    store: CheckpointStore
    tracker: Tracker | None
    """MLflow run; only on rank 0."""
    started: float

    @classmethod
    def open(cls, stage: str, job: dict[str, Any]) -> TrainingJob:
        """Fetch data and model (verified), and start tracking."""
        started = time.monotonic()
        context = RunContext.load(job["run"], "job")
        model = ModelConfig.load(job["model"], "job")
        storage = Storage(context.storage)
        scratch = Path(context.work_dir or tempfile.mkdtemp(prefix="vthink-"))
        rank = int(os.environ.get("RANK", "0"))
        # Ranks of one machine share the caches: the first fills them, the others find them full.
        with first_rank_first():
            data = PreparedSet.open(storage, job["data"], scratch / "data")
            base_uri = ensure_base_model(storage, model, data.video, None if rank == 0 else _BASE_MODEL_WAIT_S)
            policy = job.get("policy") or ""
            start_uri = Manifest.read(storage, policy).files["model"] if policy else base_uri
            folder = fetch_model(storage, start_uri, scratch)
        # A step of 1e-6 is lost in bfloat16: the weights are float32, unless DeepSpeed keeps such a copy of its own.
        dtype = model.dtype if job["config"]["deepspeed"] != "none" else "float32"
        loaded = load_model(folder, dtype=dtype, attention=model.attention)
        work = scratch / stage / job["fingerprint"]
        store = CheckpointStore(storage, join(job["prefix"], "checkpoints") + "/", work / "checkpoints")
        tracker = None
        if rank == 0:
            inputs = {"data": job["data"], "model": start_uri}
            tracker = Tracker.start(context, stage, job["fingerprint"], job["config"], inputs)
        return cls(stage, job, context, storage, work, data, base_uri, start_uri, loaded, store, tracker, started)

    def run(self, trainer: Any) -> None:
        """Train from the newest checkpoint, if there is one, to the end."""
        trainer.remove_callback(PrinterCallback)  # `ProgressCallback` prints, in one line
        checkpoint = self.store.newest()
        if checkpoint is not None and self.tracker is not None:
            print(f"{self.stage}: going on from {checkpoint.name}", flush=True)
        if checkpoint is not None:
            repartition(trainer, checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def finish(self, trainer: Any, counts: dict[str, int], details: dict[str, Any] | None = None) -> None:
        """Validate once more, write the model to the store, and the manifest last. Every rank must call it."""
        score = trainer.evaluate()
        key, prefix = self.job["fingerprint"], self.job["prefix"]
        lineage = {
            "stage": self.stage,
            "fingerprint": key,
            "base": self.base_uri,
            "start": self.start_uri,
            "data": self.job["data"],
            "run_id": self.context.run_id,
        }
        export(trainer, self.loaded, self.work / "model", lineage, self.job["model"]["dtype"])
        leave_process_group()
        if self.tracker is None:
            return
        model_uri = join(prefix, "model") + "/"
        self.storage.upload_dir(self.work / "model", model_uri)
        seconds = time.monotonic() - self.started
        metrics = {name.replace("eval_", "validation/"): value for name, value in score.items()}
        self.tracker.log_metrics({"time/total_s": seconds}, step=trainer.state.global_step)
        self.tracker.finish()
        Manifest(
            stage=self.stage,
            fingerprint=key,
            uri=prefix,
            inputs={"data": self.job["data"], "base": self.base_uri, "start": self.start_uri},
            counts={"steps": trainer.state.global_step, **counts},
            metrics=metrics,
            files={"model": model_uri},
            config=self.job["config"],
            details=details or {},
            mlflow_run_id=self.tracker.run_id,
            seconds=seconds,
            git_commit=git_commit(),
        ).write(self.storage)


def leave_process_group() -> None:
    """End this process's part in the group, after the last exchange between the ranks.

    Left to the interpreter's end, a rank's communication threads may abort it there (SIGABRT), and torchrun would take
    the first rank down with it, in the middle of its upload.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Let local rank 0 pass alone, then the others. Needs no process group: a file of torchrun's run is the signal."""
    rank, world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if world == 1:
        yield
        return
    name = f"vthink-{os.environ.get('TORCHELASTIC_RUN_ID', 'run')}-{os.environ.get('MASTER_PORT', '0')}-{os.getppid()}"
    flag = Path(tempfile.gettempdir()) / name
    if rank == 0:
        yield
        flag.touch()
        return
    while not flag.exists():
        time.sleep(0.1)
    yield


def export(trainer: Any, loaded: LoadedModel, folder: Path, lineage: dict[str, Any], dtype: str = "auto") -> None:
    """Write the trained model as a servable folder: adapters merged, sharded weights gathered, in ``dtype``.

    Every rank must call it; the first one writes.
    """
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model)
    if not trainer.accelerator.is_main_process:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
        state = model.state_dict()
    if not trainer.is_deepspeed_enabled:
        model = model.to(pick_dtype(dtype, loaded.device))
        state = model.state_dict()
    shutil.rmtree(folder, ignore_errors=True)
    card = {"prompt": loaded.prompt, "video": loaded.video, "lineage": lineage}
    save_model(folder, model, loaded.encoder.processor, card, state_dict=state)
