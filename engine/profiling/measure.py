"""Measuring: contenders in processes of their own take turns at one picture, so that a change of load meets them all."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..._version import __version__
from ...errors import AmsaError
from ..images import Photo
from ..metrics import compare_pictures
from ..upscaler import Progress
from .contenders import Contender
from .machine import load_note, machine
from .processes import Failed, Worker
from .results import Latency, LayerTime, Measured, Profile, StageTime
from .torch_modes import MODES

WARM_UP = 2
"""Pictures that do not count: the first makes sessions and kernels, the second meets warm caches."""
STAGED = 5
"""Pictures that a GPU makes once more, waiting after each stage."""
LAYERED = 3
"""Pictures that layers are timed over, at most."""


@dataclass
class Effort:
    """How much is measured: pictures that count; seconds per contender after which no further one is begun; whether layers."""

    runs: int = 10
    seconds: float = 60.0
    layers: bool = True


@dataclass
class _Entrant:
    """A contender and what is known of it."""

    contender: Contender
    worker: Worker
    scratch: Path
    about: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    first_ms: float = 0.0
    spent: float = 0.0
    times: list[dict[str, Any]] = field(default_factory=list)
    staged: list[dict[str, Any]] = field(default_factory=list)
    layers: list[LayerTime] = field(default_factory=list)
    sensors: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    gflops: float | None = None
    gbs: float | None = None
    failure: str | None = None

    @property
    def kept(self) -> Path:
        """Its picture."""
        return self.scratch / f"{id(self)}.npy"


def measure(
    contenders: Sequence[Contender],
    lr: Photo,
    refs: Sequence[Photo],
    effort: Effort,
    *,
    model: str,
    notes: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> tuple[Profile, list[str]]:
    """Measure contenders against each other.

    Args:
        contenders: the first is what the others are compared with.
        lr, refs: the pictures.
        effort: how long.
        model: what to call the first one's model.
        notes: that the profile begins with.
        say: is told at once what will be a note of the profile, too.
        progress: called before every picture.

    Returns:
        The profile, without estimates; and of each contender that failed, why, in one line. What it did before counts.

    Raises:
        AmsaError: the first contender cannot be opened, a checkpoint is of another network, or no contender made a picture.
    """
    said = _Notes([], say)
    for note in notes:
        said.add(note)
    failures: list[str] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pictures = scratch / "pictures.npz"
        arrays: dict[str, Any] = {"lr": lr.rgb} | {f"ref{i}": ref.rgb for i, ref in enumerate(refs)}
        np.savez(pictures, **arrays)
        facts = machine(contenders[0].threads)
        if note := load_note():
            said.add(note)
        entrants: list[_Entrant] = []
        steps = _Steps(progress, len(contenders) * (WARM_UP + effort.runs))

        @contextmanager
        def trying(entrant: _Entrant) -> Iterator[None]:
            try:
                yield
            except Failed as e:
                entrant.failure = str(e)
                failures.append(f"{entrant.label}: {e}")
                said.add(failures[-1])

        for contender in contenders:
            steps.say(f"opening {_name(contender)}")
            entrant = _Entrant(contender, stack.enter_context(Worker()), scratch, label=_name(contender))
            entrants.append(entrant)
            with trying(entrant):
                _open(entrant, entrants, pictures, said)
        for entrant in _able(entrants):
            with trying(entrant):
                _warm_up(entrant, effort, steps, said)
        for i in range(effort.runs):
            order = [entrant for entrant in _able(entrants) if i == 0 or entrant.spent < effort.seconds]
            for entrant in order[i % len(order) :] + order[: i % len(order)] if order else ():
                with trying(entrant):
                    steps.next(f"{entrant.label}: picture {i + 1} of {effort.runs}")
                    entrant.times.append(_picture(entrant, said, stages=not entrant.about["on_gpu"]))
        for entrant in _able(entrants):
            with trying(entrant):
                _afterwards(entrant, effort, steps, said)
        measured = [entrant for entrant in entrants if entrant.times]
        if not measured:
            raise AmsaError(f"nothing could be measured: {failures[0]}")
        for entrant in measured:
            if len(entrant.times) < effort.runs and entrant.failure is None:
                made = f"{len(entrant.times)} of {effort.runs} pictures"
                said.add(f"{entrant.label}: {made}, as many as {effort.seconds:g} s allow.")
        about, main = measured[0].about, measured[0]
        stats = next((entry["stats"] for entry in (*main.staged, *main.times) if entry["stats"]), {"restored": 0})
        profile = Profile(
            version=__version__,
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            model=model,
            variant=about["config"]["variant"],
            trained=about["trained"],
            lr=(lr.width, lr.height),
            refs=[(ref.width, ref.height) for ref in refs],
            ref_scales=about["config"]["ref_scales"],
            restored=stats["restored"],
            machine=facts,
            measured=[_measured(entrant, main) for entrant in measured],
            estimates=(),
            notes=said.notes,
        )
    return profile, failures


def _name(contender: Contender) -> str:
    """Before it is open."""
    return contender.mode or str(contender.path)


def _able(entrants: Sequence[_Entrant]) -> list[_Entrant]:
    return [entrant for entrant in entrants if entrant.failure is None]


def _open(entrant: _Entrant, entrants: Sequence[_Entrant], pictures: Path, said: _Notes) -> None:
    contender = entrant.contender
    try:
        entrant.about = entrant.worker.ask("open", contender=asdict(contender), pictures=str(pictures))
    except Failed as e:
        if entrant is entrants[0] and e.refused:
            raise AmsaError(str(e)) from e
        raise
    about = entrant.about
    how = f"{MODES[contender.mode or 'torch'][0]} " if about["backend"] == "torch" else ""
    where = " on the GPU" if contender.on_gpu else ""
    label = f"{about['backend']} {how}{about['precision']}{where}"
    if label in [other.label for other in entrants]:
        label += f", {contender.path.name}"
    entrant.label = label if label not in [other.label for other in entrants] else f"{label} ({len(entrants)})"
    said.from_answer(entrant, about)
    first = entrants[0]
    if first.about and about["config"] != first.about["config"]:
        if contender.mode:
            other = f"{contender.path} is a checkpoint of another network than {first.contender.path}"
            raise AmsaError(f"{other}; give the one it was exported from with --checkpoint")
        said.add(f"{entrant.label} is another network than {first.label}.")


def _warm_up(entrant: _Entrant, effort: Effort, steps: _Steps, said: _Notes) -> None:
    for i in range(WARM_UP):
        if i and entrant.spent >= effort.seconds:
            return
        steps.next(f"{entrant.label}: warming up")
        # As the ones that count, so that nothing is met for the first time there.
        answer = _picture(entrant, said, stages=not entrant.about["on_gpu"], keep=None if i else str(entrant.kept))
        if i == 0:
            entrant.first_ms = answer["ms"]


def _picture(entrant: _Entrant, said: _Notes, stages: bool, keep: str | None = None) -> dict[str, Any]:
    answer = entrant.worker.ask("picture", stages=stages, keep=keep)
    said.from_answer(entrant, answer)
    entrant.spent += answer["ms"] / 1e3
    return answer


def _afterwards(entrant: _Entrant, effort: Effort, steps: _Steps, said: _Notes) -> None:
    """What would disturb the times of the pictures, or be disturbed by them."""
    entrant.sensors = {k: (v[0], v[1], v[2]) for k, v in entrant.worker.ask("sensors")["sensors"].items()}
    typical = median(answer["ms"] for answer in entrant.times) / 1e3
    affordable = max(1, int(effort.seconds / max(typical, 1e-3)))
    if entrant.about["on_gpu"]:
        steps.say(f"{entrant.label}: stages")
        entrant.staged = [_picture(entrant, said, stages=True) for _ in range(min(STAGED, affordable))]
    steps.say(f"{entrant.label}: what the device reaches")
    answer = entrant.worker.ask("peaks")
    entrant.gflops, entrant.gbs = answer["gflops"], answer["gbs"]
    if effort.layers:
        steps.say(f"{entrant.label}: layers")
        answer = entrant.worker.ask("layers", pictures=min(LAYERED, affordable))
        said.from_answer(entrant, answer)
        entrant.layers = [LayerTime(**layer) for layer in answer["layers"]]


def _measured(entrant: _Entrant, first: _Entrant) -> Measured:
    about, times = entrant.about, entrant.times
    psnr = None
    if entrant is not first and entrant.kept.exists() and first.kept.exists():
        psnr = compare_pictures(np.load(first.kept), np.load(entrant.kept)).psnr_rgb
    device = [answer["peak_device_mb"] for answer in times if answer["peak_device_mb"] is not None]
    return Measured(
        label=entrant.label,
        backend=about["backend"],
        device=about["device"],
        precision=about["precision"],
        kernels=about["kernels"],
        latency=Latency(tuple(answer["ms"] for answer in times)),
        cpu_ms=median(answer["cpu_ms"] for answer in times),
        first_ms=entrant.first_ms,
        open_ms=about["open_ms"],
        peak_host_mb=max(answer["peak_host_mb"] for answer in times),
        peak_device_mb=max(device) if device else None,
        psnr_to_first=psnr,
        stages=stage_times(entrant.staged or [answer for answer in times if answer["stats"]]),
        layers=entrant.layers,
        sensors=entrant.sensors,
        peak_gflops=entrant.gflops,
        peak_gbs=entrant.gbs,
    )


def stage_times(pictures: Sequence[Mapping[str, Any]]) -> list[StageTime]:
    """The stages in the order in which they first ran, and what is left of the pictures' times as "other".

    Args:
        pictures: of each "ms", and in "stats" a `Stats` as a dict.
    """
    times: dict[str, list[float]] = defaultdict(list)
    calls: dict[str, int] = {}
    for picture in pictures:
        stats = picture["stats"]
        for stage, seconds in stats["seconds"].items():
            times[stage].append(1e3 * seconds)
            calls[stage] = stats["calls"][stage]
        times["other"].append(max(0.0, picture["ms"] - 1e3 * sum(stats["seconds"].values())))
    other = times.pop("other", [])
    stages = [StageTime(stage, calls[stage], median(values)) for stage, values in times.items()]
    return [*stages, StageTime("other", 1, median(other))] if other else []


class _Notes:
    """Sentences for the profile, each once and told at once."""

    def __init__(self, notes: list[str], say: Callable[[str], None]) -> None:
        self.notes, self._say = notes, say

    def add(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
            self._say(note)

    def from_answer(self, entrant: _Entrant, answer: Mapping[str, Any]) -> None:
        for note in answer["notes"]:
            self.add(f"{entrant.label}: {note}")


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
