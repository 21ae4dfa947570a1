"""Who takes part in a profile: a model on a backend, or its checkpoint under PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...config import VARIANTS
from ...errors import AmsaError
from ..backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL, Backend, open_backend
from ..upscaler import Upscaler
from .torch_modes import MODES, TorchMode, TorchOnGpu


@dataclass(frozen=True)
class Contender:
    """One way to run a model; plain types, so that it can be sent to a process of its own.

    Attributes:
        model: folder, `.amsa` file or checkpoint; None: the shipped one.
        backend: as the Upscaler's.
        mode: PyTorch's, one of `MODES`; None: what `backend` is.
        on_gpu: for a mode, whether PyTorch computes on the GPU.
        threads, matching, skip, engines: as the Upscaler's.
        seed: of the initial matches.
    """

    model: str | None
    backend: str = "auto"
    mode: str | None = None
    on_gpu: bool = False
    threads: int | None = None
    matching: str = "patchmatch"
    skip: float | None = None
    engines: str | None = None
    seed: int = 0

    @property
    def path(self) -> Path:
        """The model's."""
        if self.model is not None:
            return Path(self.model)
        return SHIPPED_ENGINE_MODEL if self.backend == "tensorrt" else SHIPPED_MODEL

    def open(self) -> Upscaler:
        """Open the model.

        Raises:
            AmsaError: as the Upscaler does; or no torch, or no GPU for it.
        """
        if self.mode is None:
            settings = {"matching": self.matching, "skip": self.skip, "engines": self.engines}
            return Upscaler(self.model, self.backend, self.threads, **settings)  # type: ignore[arg-type]
        how = TorchOnGpu if self.on_gpu else TorchMode
        return Upscaler.on(how(self.path, self.threads, self.mode), matching=self.matching, skip=self.skip)

    def reopen(self) -> Backend:
        """The backend once more, for what the first one must not be disturbed by."""
        return open_backend(self.model, self.backend, self.threads, self.engines)


def opponents(first: Contender, against: Sequence[str], checkpoint: str | None) -> list[Contender]:
    """The others, from what `--against` was given: a mode of PyTorch, or another model.

    Args:
        first: whose settings they share.
        against: names of `MODES`, or paths.
        checkpoint: for the modes; None: the first's own, or the one beside its folder (`small.safetensors` for `small`).

    Raises:
        AmsaError: neither a mode nor a model, or no checkpoint.
    """
    found = []
    for name in dict.fromkeys(against):
        if name in MODES:
            path = str(_checkpoint(first.path, checkpoint))
            entry = Contender(path, mode=name, on_gpu=first.backend == "tensorrt")
            found.append(replace(entry, threads=first.threads, matching=first.matching, skip=first.skip, seed=first.seed))
        elif Path(name).exists():
            backend = "auto" if name.endswith(".safetensors") or first.backend == "torch" else first.backend
            found.append(replace(first, model=name, backend=backend))
        else:
            raise AmsaError(f"{name}: neither a model nor one of {', '.join(MODES)}; --against takes either")
    if checkpoint is not None and not any(entry.mode for entry in found):
        raise AmsaError("--checkpoint is for --against torch; add that, or leave it out")
    return found


def _checkpoint(model: Path, given: str | None) -> Path:
    if given is not None:
        path = Path(given)
        if path.suffix != ".safetensors" or not path.is_file():
            raise AmsaError(f"{given}: no checkpoint; --checkpoint takes the .safetensors file that {model} was exported from")
        return path
    if model.suffix == ".safetensors":
        return model
    shipped = model.resolve() in (SHIPPED_MODEL, SHIPPED_ENGINE_MODEL)
    of = SHIPPED_MODEL if shipped else model
    path = of.with_name(of.name.removesuffix(".amsa") + ".safetensors")
    if not path.is_file():
        raise AmsaError(f"PyTorch needs the checkpoint that {model} was exported from, and {path} is not there; add --checkpoint")
    return path


def write_untrained(variant: str, folder: Path) -> Path:
    """An untrained network of a variant as a checkpoint; what it takes does not depend on its weights."""
    from ...model import AMSA, save_checkpoint

    model = AMSA(VARIANTS[variant]())
    model.reset_parameters(0)
    path = folder / f"{variant}.safetensors"
    save_checkpoint(path, model, {"trained": False})
    return path
