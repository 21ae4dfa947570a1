"""A worker process: settings, then tasks, on standard input; answers on standard output; a line of JSON each."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from dataclasses import asdict

from .worker import PictureWorker, Task


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    worker = PictureWorker(**json.loads(lines.get()))
    print(json.dumps(asdict(worker.open())), file=answers, flush=True)
    while True:
        outcome = worker.make(Task(**json.loads(lines.get())))
        print(json.dumps(asdict(outcome)), file=answers, flush=True)


def _read(lines: queue.SimpleQueue[bytes]) -> None:
    """Read on while a picture is made: at the end of input whoever wanted it is gone, even by SIGKILL, and so are we."""
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
