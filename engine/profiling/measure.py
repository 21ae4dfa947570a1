"""Measuring: contenders in processes of their own take turns at one picture, so that a change of load meets them all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..._version import __version__
from ...errors import AmsaError
from ..images import Photo
from ..upscaler import Progress
from .contenders import Contender
from .entrants import Entrant
from .machine import load_note, machine
from .processes import Failed, Worker
from .results import LayerTime, Profile
from .torch_modes import MODES

WARM_UP = 2
"""Pictures that do not count: the first makes sessions and kernels, the second meets warm caches."""
STAGED = 5
"""Pictures that a GPU makes once more, waiting after each stage."""
LAYERED = 3
"""Pictures that layers are timed over, at most."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much is measured: pictures that count; seconds of them after which a contender begins no more; whether layers."""

    runs: int = 10
    seconds: float = 60.0
    layers: bool = True


def measure(
    contenders: Sequence[Contender],
    lr: Photo,
    refs: Sequence[Photo],
    effort: Effort,
    *,
    model: str,
    notes: Sequence[str] = (),
    say: Say = lambda _: None,
    progress: Progress | None = None,
) -> tuple[Profile, list[str]]:
    """Measure contenders against each other.

    Args:
        contenders: the first is what the others are compared with.
        lr, refs: the pictures.
        effort: how long.
        model: what to call the first one's model.
        notes: that the profile begins with.
        say: is told every note of the profile, at once.
        progress: called before every picture.

    Returns:
        The profile, without estimates; and of each contender that failed, why, in one line. What it did before counts.

    Raises:
        AmsaError: the first contender cannot be opened, a checkpoint is of another network, or no contender made a picture.
    """
    facts = machine(contenders[0].threads)
    with ExitStack() as stack:
        race = _Race(stack, effort, say, _Steps(progress, len(contenders) * (WARM_UP + effort.runs)))
        for note in (*notes, load_note()):
            race.note(note)
        race.open(contenders, lr, refs)
        race.warm_up()
        race.take_turns()
        race.look_inside()
        measured = [entrant for entrant in race.entrants if entrant.times]
        if not measured:
            raise AmsaError(f"nothing could be measured: {race.failures[0]}")
        first = measured[0]
        profile = Profile(
            version=__version__,
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            model=model,
            variant=first.about["config"]["variant"],
            trained=first.about["trained"],
            lr=(lr.width, lr.height),
            refs=[(ref.width, ref.height) for ref in refs],
            ref_scales=first.about["config"]["ref_scales"],
            restored=first.restored,
            machine=facts,
            measured=[entrant.measured(first) for entrant in measured],
            estimates=(),
            notes=race.notes,
        )
    return profile, race.failures


class _Race:
    """The entrants, from opening to their layers. `stack`: ends their processes."""

    def __init__(self, stack: ExitStack, effort: Effort, say: Say, steps: _Steps) -> None:
        self._stack, self._effort, self._say, self._steps = stack, effort, say, steps
        self._scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.entrants: list[Entrant] = []
        self.notes: list[str] = []
        self.failures: list[str] = []

    def note(self, note: str | None) -> None:
        """A sentence for the profile, once."""
        if note is not None and note not in self.notes:
            self.notes.append(note)
            self._say(note)

    def open(self, contenders: Sequence[Contender], lr: Photo, refs: Sequence[Photo]) -> None:
        pictures = self._scratch / "pictures.npz"
        arrays: dict[str, Any] = {"lr": lr.rgb} | {f"ref{i}": ref.rgb for i, ref in enumerate(refs)}
        np.savez(pictures, **arrays)
        for i, contender in enumerate(contenders):
            name = contender.mode or str(contender.path)
            self._steps.say(f"opening {name}")
            worker = self._stack.enter_context(Worker())
            entrant = Entrant(contender, worker, self._scratch / f"{i}.npy", name)
            self.entrants.append(entrant)
            with self._trying(entrant):
                try:
                    entrant.about = self._ask(entrant, "open", contender=asdict(contender), pictures=str(pictures))
                except Failed as e:
                    if i == 0 and e.refused:
                        raise AmsaError(str(e)) from e
                    raise
                entrant.label = self._label(entrant)
                self._check_network(entrant)

    def warm_up(self) -> None:
        for entrant in self._able():
            with self._trying(entrant):
                for i in range(WARM_UP):
                    if i == 0 or entrant.spent < self._effort.seconds:
                        self._steps.next(f"{entrant.label}: warming up")
                        answer = self._picture(entrant, keep=None if i else str(entrant.kept))
                        entrant.first_ms = entrant.first_ms or answer["ms"]
            entrant.spent = 0.0

    def take_turns(self) -> None:
        """Rounds of a picture each, another one first in every round."""
        runs, seconds = self._effort.runs, self._effort.seconds
        for i in range(runs):
            order = [entrant for entrant in self._able() if i == 0 or entrant.spent < seconds]
            begin = i % max(1, len(order))
            for entrant in order[begin:] + order[:begin]:
                with self._trying(entrant):
                    self._steps.next(f"{entrant.label}: picture {i + 1} of {runs}")
                    entrant.times.append(self._picture(entrant))
        for entrant in self._able():
            if len(entrant.times) < runs:
                self.note(f"{entrant.label}: {len(entrant.times)} of {runs} pictures, as many as {seconds:g} s allow.")

    def look_inside(self) -> None:
        """What would disturb the times of the pictures, or be disturbed by them."""
        for entrant in self._able():
            typical = median(answer["ms"] for answer in entrant.times) / 1e3
            affordable = max(1, int(self._effort.seconds / max(typical, 1e-3)))
            with self._trying(entrant):
                entrant.sensors = {k: (v[0], v[1], v[2]) for k, v in self._ask(entrant, "sensors")["sensors"].items()}
                if entrant.about["on_gpu"]:
                    self._steps.say(f"{entrant.label}: stages")
                    entrant.staged = [self._picture(entrant, stages=True) for _ in range(min(STAGED, affordable))]
                self._steps.say(f"{entrant.label}: what the device reaches")
                reached = self._ask(entrant, "peaks")
                entrant.gflops, entrant.gbs = reached["gflops"], reached["gbs"]
                if self._effort.layers:
                    self._steps.say(f"{entrant.label}: layers")
                    answer = self._ask(entrant, "layers", pictures=min(LAYERED, affordable))
                    entrant.layers = [LayerTime(**layer) for layer in answer["layers"]]

    def _able(self) -> list[Entrant]:
        return [entrant for entrant in self.entrants if entrant.failure is None]

    @contextmanager
    def _trying(self, entrant: Entrant) -> Iterator[None]:
        """One that fails does not lose the others."""
        try:
            yield
        except Failed as e:
            entrant.failure = f"{entrant.label}: {e}"
            self.failures.append(entrant.failure)
            self.note(entrant.failure)

    def _ask(self, entrant: Entrant, do: str, **request: Any) -> dict[str, Any]:
        answer = entrant.worker.ask(do, **request)
        for note in answer["notes"]:
            self.note(f"{entrant.label}: {note}")
        return answer

    def _picture(self, entrant: Entrant, keep: str | None = None, stages: bool | None = None) -> dict[str, Any]:
        """Stages are timed along where that costs nothing: not on a GPU, unless `stages` says so."""
        timed = not entrant.about["on_gpu"] if stages is None else stages
        answer = self._ask(entrant, "picture", stages=timed, keep=keep)
        entrant.spent += answer["ms"] / 1e3
        return answer

    def _label(self, entrant: Entrant) -> str:
        """Another one than the others'."""
        about, contender = entrant.about, entrant.contender
        how = f"{MODES[contender.mode or 'torch'][0]} " if about["backend"] == "torch" else ""
        label = f"{about['backend']} {how}{about['precision']}{' on the GPU' if contender.on_gpu else ''}"
        taken = [other.label for other in self.entrants]
        choices = (label, f"{label}, {contender.path.name}", f"{label} ({len(taken)})")
        return next(choice for choice in choices if choice not in taken)

    def _check_network(self, entrant: Entrant) -> None:
        """A checkpoint must be the first one's network; of another model it is told."""
        first = self.entrants[0]
        if not first.about or entrant.about["config"] == first.about["config"]:
            return
        if entrant.contender.mode:
            other = f"{entrant.contender.path} is a checkpoint of another network than {first.contender.path}"
            raise AmsaError(f"{other}; give the one it was exported from with --checkpoint")
        self.note(f"{entrant.label} is another network than {first.label}.")


class _Steps:
    """Counts pictures for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def say(self, what: str) -> None:
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total, what)

    def next(self, what: str) -> None:
        self.say(what)
        self._done += 1
