"""CUDA graphs for classic TensorRT: what is run again with the same shapes and addresses is recorded once, then replayed."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from .cuda import Cuda, CudaError

MOST = 64
"""Graphs of a lane; the one that was not used for longest goes. Each holds an execution context."""


@dataclass
class _Entry:
    runs: int = 0
    enqueue: Callable[[], None] | None = None  # with a context of its own
    graph: Any = None


class Graphs:
    """Graphs by what they run: stage, shapes and addresses, of inputs, outputs and scratch memory.

    The first run with a key is an ordinary one. The second warms up a context of its own, as TensorRT finishes its preparations
    for new shapes in the first enqueue, which cannot be recorded. The third records; from then on the graph is replayed.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._works = True
        self.replays = 0

    def run(self, key: Hashable, stream: Any, enqueue: Callable[[], None], own: Callable[[], Callable[[], None]]) -> None:
        """Do what `enqueue` does, by a graph where there is one.

        Args:
            key: what decides whether a graph can stand for it.
            stream: that it is put on.
            enqueue: puts it there, with a context that others use, too.
            own: makes an `enqueue` whose context nobody else uses.
        """
        if not self._works:
            enqueue()
            return
        entry = self._entries.setdefault(key, _Entry())
        self._entries.move_to_end(key)
        entry.runs += 1
        if entry.graph is None and entry.runs >= 3:
            self._record(entry, stream)
        if entry.graph is not None:
            self._cuda.launch(entry.graph, stream)
            self.replays += 1
        elif entry.runs == 1:
            enqueue()
        else:
            if entry.enqueue is None:
                entry.enqueue = own()
            entry.enqueue()
        while len(self._entries) > MOST:
            _, oldest = self._entries.popitem(last=False)
            if oldest.graph is not None:
                self._cuda.synchronize(stream)  # it may be on its way
                self._cuda.destroy_graph(oldest.graph)

    def _record(self, entry: _Entry, stream: Any) -> None:
        assert entry.enqueue is not None
        self._cuda.begin_capture(stream)
        failure: Exception | None = None
        try:
            entry.enqueue()
        except Exception as e:
            failure = e
        try:
            entry.graph = self._cuda.end_capture(stream)
        except CudaError as e:
            failure = failure or e
        if failure is not None:
            if entry.graph is not None:
                self._cuda.destroy_graph(entry.graph)
                entry.graph = None
            self._works = False
            warnings.warn(f"no CUDA graphs, layers are launched one by one: {failure}", stacklevel=2)

    def clear(self) -> None:
        """Forget all; the stream's work must be done."""
        for entry in self._entries.values():
            if entry.graph is not None:
                self._cuda.destroy_graph(entry.graph)
        self._entries.clear()
