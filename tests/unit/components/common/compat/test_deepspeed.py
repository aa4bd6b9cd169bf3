"""DeepSpeed: whether loading a universal checkpoint under ZeRO-3 still mixes up the optimiser's state."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from vthink.components.common.compat.deepspeed import RepairOptimizer


def test_upstream_shares_one_step_counter_and_one_weight_decay_which_we_undo(tmp_path: Path) -> None:
    """When the middle of this fails, DeepSpeed is mended: `RepairOptimizer` can go."""
    weights = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))]
    groups = [{"params": weights[:1], "weight_decay": 0.5}, {"params": weights[1:], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    (tmp_path / "zero").mkdir()
    saved = {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": optimizer.state_dict()["param_groups"]}
    torch.save({"optimizer_state_dict": saved}, tmp_path / "zero" / "optimizer_state.pt")
    stage3: Any = SimpleNamespace(  # two parameters on one process, each a group, as far as loading looks at them
        _load_global_state_stage3=lambda state: None,
        load_hp_checkpoint_state=lambda folder, key, param: torch.zeros(2),
        fp16_groups=[[weights[0]], [weights[1]]],
        fp32_partitioned_groups_flat=weights,
        fp16_partitioned_groups_flat=weights,
        fp16_partitioned_groups=[[weights[0]], [weights[1]]],
        param_names={weights[0]: "weight", weights[1]: "bias"},
        unflatten=lambda flat, parts: parts,
        optimizer=optimizer,
        swap_optimizer=False,
    )
    DeepSpeedZeroOptimizer_Stage3.load_hp_checkpoint_state_from_checkpoint_dir_stage3(stage3, str(tmp_path))
    steps = [optimizer.state[weight]["step"] for weight in weights]
    assert steps[0] is steps[1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5]

    arguments = SimpleNamespace(weight_decay=0.5)
    RepairOptimizer().on_train_begin(arguments, None, None, optimizer=SimpleNamespace(optimizer=optimizer))
    steps = [optimizer.state[weight]["step"] for weight in weights]
    assert steps[0] is not steps[1]
    assert [float(step) for step in steps] == [7.0, 7.0]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
