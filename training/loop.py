"""The training loop of one stage: steps, averaged weights, validation, saving, resuming."""

from __future__ import annotations

import copy
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..config import VARIANTS
from ..errors import AmsaError
from ..model.checkpoints import load_checkpoint, save_checkpoint
from ..model.network import AMSA
from . import distributed
from .adversarial import CRITIC_BETAS, Critic, critic_loss, mixing
from .correspondence import StudentObjective, TeacherObjective, begin_student
from .imagenet import begin_with_imagenet
from .recipe import Recipe
from .restoration import RestorationObjective
from .state import load_state, save_state

Validate = Callable[[AMSA], float]


@dataclass(frozen=True)
class Progress:
    """How far a stage is: steps done and to do, seconds left at the pace of this run, the last logged values."""

    step: int
    steps: int
    seconds_left: float
    values: dict[str, float]


class Trainer:
    """Trains one stage by its recipe, in a folder that holds all it needs to go on.

    Args:
        recipe: what to do.
        dataset: samples; sample i must be a pure function of i.
        folder: `state.safetensors` to resume from, `best.safetensors` and `last.safetensors` checkpoints, `log.jsonl`.
        validate: averaged network -> PSNR; None: none.
        init: checkpoint to begin with; None: untrained, or ImageNet's weights where the recipe says so.
        device: to compute on.
        report: is called after every step.
        tensorboard: also write TensorBoard events into the folder.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset[dict[str, Tensor]],
        folder: Path,
        validate: Validate | None = None,
        *,
        init: Path | None = None,
        device: torch.device | str = "cpu",
        report: Callable[[Progress], None] | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.recipe, self.dataset, self.folder, self.validate = recipe, dataset, folder, validate
        self.device, self.report = torch.device(device), report
        parts = distributed.world() * recipe.accumulate
        if recipe.batch % parts:
            raise AmsaError(f"a batch of {recipe.batch} does not divide into {parts} parts (processes x accumulate)")
        model = self._initial(init)
        # Channels last: a step of `small` on 2 cores takes 0.60 s, channels first 0.87 s.
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.model).eval()
        self.objective = _objective(recipe, self.model).to(self.device)
        self.optimizer = torch.optim.Adam(_groups(recipe, self.model), recipe.lr, betas=recipe.betas)
        self.networks: dict[str, nn.Module] = {"model": self.model, "ema": self.ema}
        self.optimizers: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {"adam": (self.model, self.optimizer)}
        self.critic: Critic | None = None
        if recipe.weights.adversarial:
            self.critic = Critic()
            self.critic.reset_parameters(recipe.seed)
            self.critic.to(self.device)
            self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), recipe.lr, betas=CRITIC_BETAS)
            self.networks["critic"] = self.critic
            self.optimizers["critic_adam"] = (self.critic, self.critic_optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")
        self.step, self.best, self.seconds = 0, -math.inf, 0.0
        self.resumed_from = folder / "state.safetensors"
        self._resume()
        self._events = _event_writer(folder) if tensorboard and distributed.rank() == 0 else None

    def _initial(self, init: Path | None) -> AMSA:
        recipe = self.recipe
        config = VARIANTS[recipe.variant]()
        if init is not None:
            model, _ = load_checkpoint(init)
            if model.config != config:
                raise AmsaError(f"{init}: a {model.config.variant} network of another config than the recipe's {recipe.variant}")
            model.train()
        else:
            model = AMSA(config)
            model.reset_parameters(recipe.seed)
            if recipe.imagenet:
                begin_with_imagenet(model)
        if recipe.stage == "student":
            begin_student(model)
        return model

    def _resume(self) -> None:
        path = self.resumed_from
        if not path.exists():
            return
        meta = load_state(path, self.networks, self.optimizers)
        before = meta["recipe"]
        for name in ("variant", "stage", "batch", "seed"):
            if before[name] != getattr(self.recipe, name):
                raise AmsaError(
                    f"{path}: was trained with {name} {before[name]}, the recipe says {getattr(self.recipe, name)}; "
                    "start in another folder"
                )
        now = json.loads(json.dumps(asdict(self.recipe)))
        if changed := [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]:
            warnings.warn(f"the recipe has changed since {path} was saved: {', '.join(changed)}", stacklevel=2)
        self.step, self.best, self.seconds = meta["step"], meta["best"], meta["seconds"]
        if meta["scaler"]:
            self.scaler.load_state_dict(meta["scaler"])

    @property
    def done(self) -> bool:
        return self.step >= self.recipe.steps

    def run(self, until: int | None = None, workers: int = 0) -> None:
        """Train to the recipe's last step, or to step `until`."""
        recipe = self.recipe
        end = min(until or recipe.steps, recipe.steps)
        share = recipe.batch // distributed.world()
        begin = distributed.rank() * share
        order = [list(range(s * recipe.batch + begin, s * recipe.batch + begin + share)) for s in range(self.step, end)]
        # Spawned, not forked: OpenCV's threads do not survive a fork.
        context = "spawn" if workers else None
        loader = DataLoader(self.dataset, batch_sampler=order, num_workers=workers, multiprocessing_context=context)
        log: dict[str, float] = {}
        logged: dict[str, float] = {}
        started, first = time.perf_counter(), self.step
        for batch in loader:
            began = time.perf_counter()
            for name, value in self._step(batch).items():
                log[name] = log.get(name, 0.0) + value
            self.step += 1
            self.seconds += time.perf_counter() - began
            if self.step % recipe.save_every == 0 or self.step == end:
                count = self.step % recipe.save_every or recipe.save_every
                count = min(count, self.step - first)
                logged = {name: distributed.mean(value / count, self.device) for name, value in log.items()}
                self._log(logged)
                log.clear()
                if self.validate is not None and (self.step % recipe.validate_every == 0 or self.step == end):
                    self._validate()
                self._save()
            if self.report is not None:
                pace = (time.perf_counter() - started) / (self.step - first)
                self.report(Progress(self.step, recipe.steps, pace * (end - self.step), logged))

    def _step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        recipe = self.recipe
        rate = learning_rate(recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        pairs = []
        for part in self._parts(batch):
            terms, picture = self._forward(part)
            loss = torch.stack([getattr(recipe.weights, k) * v for k, v in terms.items()]).sum()
            self._require_finite(loss)
            self.scaler.scale(loss / recipe.accumulate).backward()  # type: ignore[no-untyped-call]
            values = {"loss": loss, **terms}
            if picture is not None:
                pairs.append((part["hr"], picture.detach().float()))
                values["psnr"] = _psnr(*pairs[-1])
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value.item() / recipe.accumulate
        distributed.average_gradients(self.model.parameters())
        self.scaler.unscale_(self.optimizer)
        if recipe.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._average()
        if self.critic is not None:
            totals["critic"] = self._train_critic(*map(torch.cat, zip(*pairs, strict=True)))
        return totals

    def _parts(self, batch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The batch on the device, cut into `accumulate` parts."""
        moved = {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}
        for name in ("lr", "hr", "ref"):
            moved[name] = moved[name].contiguous(memory_format=torch.channels_last)
        chunks = {k: v.chunk(self.recipe.accumulate) for k, v in moved.items()}
        for i in range(self.recipe.accumulate):
            yield {k: v[i] for k, v in chunks.items()}

    def _forward(self, part: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        precision = getattr(torch, self.recipe.precision)
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            terms, picture = self.objective(part, self.step)
            if self.critic is not None:
                terms["adversarial"] = -self.critic.requires_grad_(False)(picture).mean()
                self.critic.requires_grad_(True)
        return terms, picture

    def _train_critic(self, real: Tensor, fake: Tensor) -> float:
        assert self.critic is not None
        mix = mixing((self.recipe.seed, self.step, distributed.rank()), real.shape[0]).to(self.device)
        loss = critic_loss(self.critic, real, fake, mix)
        self._require_finite(loss)
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        distributed.average_gradients(self.critic.parameters())
        self.critic_optimizer.step()
        return loss.item()

    def _require_finite(self, loss: Tensor) -> None:
        if distributed.any_process(not bool(torch.isfinite(loss)), self.device):
            raise AmsaError(
                f"the loss is {loss.item()} at step {self.step}; the last good state is kept in {self.resumed_from}: "
                "lower lr or raise the precision, and start again"
            )

    def _average(self) -> None:
        # Early on the average would hold the random beginning for thousands of steps.
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for average, p in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.lerp_(p, 1 - decay)

    def _validate(self) -> None:
        assert self.validate is not None
        if distributed.rank() == 0:
            with torch.inference_mode():
                score = self.validate(self.ema)
            self._log({"validation_psnr": score})
            if score > self.best:
                self.best = score
                save_checkpoint(self.folder / "best.safetensors", self.ema, self._metadata())

    def _save(self) -> None:
        if distributed.rank() == 0:
            meta = {"step": self.step, "best": self.best, "seconds": self.seconds, "scaler": self.scaler.state_dict()}
            save_state(self.resumed_from, self.networks, self.optimizers, {**meta, "recipe": asdict(self.recipe)})
            save_checkpoint(self.folder / "last.safetensors", self.ema, self._metadata())

    def _metadata(self) -> dict[str, Any]:
        return {"trained": True, "step": self.step, "seconds": round(self.seconds), "recipe": asdict(self.recipe)}

    def _log(self, values: dict[str, float]) -> None:
        if distributed.rank() != 0:
            return
        line = {"step": self.step, "seconds": round(self.seconds, 1), **{k: round(v, 5) for k, v in values.items()}}
        with (self.folder / "log.jsonl").open("a") as f:
            f.write(json.dumps(line) + "\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{self.recipe.folder}/{name}", value, self.step)
            self._events.flush()


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `lr_end`."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr_end + (recipe.lr - recipe.lr_end) * (1 + math.cos(math.pi * done)) / 2


def _objective(recipe: Recipe, model: AMSA) -> nn.Module:
    """What the stage computes; sets which parameters are trained."""
    objective: nn.Module
    if recipe.stage == "restoration":
        objective, trained = RestorationObjective(recipe, model), ("",)
    else:
        kind = TeacherObjective if recipe.stage == "teacher" else StudentObjective
        objective, trained = kind(recipe, model), kind.trains
    names = [name for name, _ in model.named_parameters()]
    for part in recipe.freeze:
        if not any(name.startswith(part) for name in names):
            raise AmsaError(f"recipe: freeze names {part}, which the network does not have; parts are {_parts_of(names)}")
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith(trained) and not name.startswith(recipe.freeze))
    return objective


def _parts_of(names: list[str]) -> str:
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names}))


def _groups(recipe: Recipe, model: AMSA) -> list[dict[str, Any]]:
    """Parameters with the factor of their learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        factor = 1.0
        for i, rate in enumerate(recipe.offset_rates):
            if name.startswith(f"restore.scales.{i}.aggregation.offset"):
                factor = rate
        groups.setdefault(factor, []).append(p)
    return [{"params": group, "factor": factor} for factor, group in groups.items()]


def _psnr(hr: Tensor, sr: Tensor) -> Tensor:
    """Mean over the pictures, in dB, of all channels."""
    return -10 * torch.log10((sr.clamp(0, 1) - hr).square().mean((1, 2, 3)) + 1e-8).mean()


def _event_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise AmsaError("--tensorboard needs the package tensorboard; install it with: pip install 'amsa[train]'") from e
    return SummaryWriter(str(folder))
