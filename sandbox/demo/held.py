"""`python -m sandbox.demo.held MODULE …`: runs a module until whoever holds the standard input lets go of it.

So a process ends with the one that started it, however that one ended.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

LIMIT_S = 60
"""An app that trains saves first."""


def _watch() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LIMIT_S)
    # With what it has started in its session.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_watch, name="held", daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
