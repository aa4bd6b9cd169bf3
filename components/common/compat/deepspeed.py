"""DeepSpeed 0.19.8: a ZeRO checkpoint on another number of processes, and what its loading gets wrong.

A universal checkpoint is DeepSpeed's own way from one number of processes to another; `Trainer` knows nothing of it.
Loading one under ZeRO-3 (``load_hp_checkpoint_state_from_checkpoint_dir_stage3``) gives all parameters one and the same
step counter, which Adam then advances once for each of them, and every parameter group the settings of the first one:
biases and norms would be decayed.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..training.processes import barrier, local_rank, world_size


def repartition(trainer: Any, checkpoint: Path) -> None:
    """Let a ZeRO checkpoint be loaded on another number of processes than wrote it: as a universal checkpoint. Called
    by every process; the first of each node converts it. Where the numbers agree nothing is done."""
    if not trainer.is_deepspeed_enabled:
        return
    tag = (checkpoint / "latest").read_text().strip()
    written_by = len(list((checkpoint / tag).glob("*_optim_states.pt")))
    if written_by == world_size():
        return
    if local_rank() == 0 and not (checkpoint / "latest_universal").exists():
        source, target = checkpoint / tag, checkpoint / f"{tag}_universal"
        print(f"{checkpoint.name}: converting it, written by {written_by} processes, to a universal one", flush=True)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--input_folder", str(source), "--output_folder", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{checkpoint} cannot be converted to a universal checkpoint:\n{done.stderr[-2000:]}")
        (checkpoint / "latest_universal").write_text(target.name)
    barrier()
    trainer.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
    trainer.add_callback(RepairOptimizer())


class RepairOptimizer(TrainerCallback):
    """Gives each parameter a step counter, and each group the weight decay, of its own again."""

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
