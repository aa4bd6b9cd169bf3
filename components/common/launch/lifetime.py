"""When a process of ours ends: with its owner, at a signal, and how quickly."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from .supervisor import OWNER, POLL_S, descendants, identity, is_alive, register, send_signal, unregister

_watching: tuple[str, str] | None = None
"""Which process (a fork is another one) already watches which owner."""


def skip_garbage_collection_at_exit() -> None:
    """Let this process end without collecting garbage once more: beside torch that took it two seconds.

    For processes that are ours alone: what hangs in a reference cycle is not finalized, as it is not when killed.
    """
    atexit.register(gc.freeze)


def end_with_owner() -> None:
    """End this process and all below it as soon as the process named in ``VTHINK_OWNER`` is gone.

    Called at the start of our own processes, which then also `skip_garbage_collection_at_exit`; again it does nothing.
    Only this process and its descendants are killed, not the process group: an executor of ``kfp.local`` shares its
    group with `make` or the shell that called `vthink run`.
    """
    global _watching
    owner = os.environ.get(OWNER)
    if not owner or owner == identity() or _watching == (identity(), owner):
        return
    if not is_alive(owner):
        os._exit(128 + signal.SIGKILL)
    _watching = (identity(), owner)
    skip_garbage_collection_at_exit()
    registered = register(owner, sys.argv)

    def watch() -> None:
        while is_alive(owner):
            time.sleep(POLL_S)
        for pid in descendants(os.getpid()):
            send_signal(pid, signal.SIGKILL)
        unregister(registered)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-owner", daemon=True).start()


@contextlib.contextmanager
def on_sigterm(handler: Callable[[], None]) -> Iterator[None]:
    """Call ``handler`` at the first SIGTERM inside the block; later ones are ignored.

    Only the main thread can take signals; in another one SIGTERM stays as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def receive(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        handler()

    before = signal.signal(signal.SIGTERM, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
