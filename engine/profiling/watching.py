"""A backend seen through: what happens in a picture, with a context manager around each stage and each copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from numpy.typing import DTypeLike, NDArray

from ..backends import Backend, Execution

COPIES = "copies"
Around = Callable[[str, Execution], AbstractContextManager[None]]
"""Called with a stage's name, or COPIES, and what runs it; what it returns is entered around the work."""


class WatchedBackend:
    """A backend whose stages and copies between host and device are told to `around`."""

    def __init__(self, backend: Backend, around: Around) -> None:
        self.name, self.device, self.kernels = backend.name, backend.device, backend.kernels
        self.config, self.precision, self.trained = backend.config, backend.precision, backend.trained
        self._backend, self._around = backend, around

    @contextmanager
    def call(self) -> Iterator[Execution]:
        with self._backend.call() as on:
            yield _Watched(on, self._around)

    def close(self) -> None:
        self._backend.close()


class _Watched:
    def __init__(self, on: Execution, around: Around) -> None:
        self._on, self._around = on, around

    def run(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        with self._around(stage, self._on):
            return self._on.run(stage, inputs)

    def to_device(self, array: Any) -> Any:
        with self._around(COPIES, self._on):
            return self._on.to_device(array)

    def to_host(self, array: Any) -> NDArray[Any]:
        with self._around(COPIES, self._on):
            return self._on.to_host(array)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        return self._on.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        return self._on.zeros(shape, dtype)

    def copy(self, to: Any, source: Any) -> None:
        self._on.copy(to, source)

    def synchronize(self) -> None:
        self._on.synchronize()
