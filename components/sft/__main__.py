"""SFT's training process; torchrun starts it, once per process: ``python -m vthink.components.sft --job URI``."""

from ..common.training.worker import start

if __name__ == "__main__":
    start("vthink.components.sft.train")
