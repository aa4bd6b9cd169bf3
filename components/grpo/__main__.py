"""GRPO's training process; torchrun starts it, once per process: ``python -m vthink.components.grpo --job URI``."""

from ..common.training.worker import start

if __name__ == "__main__":
    start("vthink.components.grpo.train")
