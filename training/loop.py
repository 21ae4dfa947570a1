"""The training loop: steps, averaged weights, validation, saving, resuming."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ..config import VARIANTS
from ..errors import AmsaError
from ..model.checkpoints import save_checkpoint
from ..model.network import AMSA
from .recipe import Recipe
from .restoration import restore_batch
from .state import load_state, save_state

Validate = Callable[[AMSA], float]


class Trainer:
    """Trains a network by a recipe, in a folder that holds all it needs to go on.

    Args:
        recipe: what to do.
        dataset: samples; sample i must be a pure function of i.
        folder: `state.safetensors` to resume from, `best.safetensors` and `last.safetensors` checkpoints, `log.jsonl`.
        validate: averaged network -> PSNR; None: none.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset[dict[str, Tensor]], folder: Path, validate: Validate | None) -> None:
        self.recipe, self.dataset, self.folder, self.validate = recipe, dataset, folder, validate
        model = AMSA(VARIANTS[recipe.variant]())
        model.reset_parameters(recipe.seed)
        # Channels last: a step of `small` on 2 cores takes 0.60 s, channels first 0.87 s.
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.model).eval()
        self.optimizer = torch.optim.Adam(self.model.parameters(), recipe.lr, betas=recipe.betas)
        self.step, self.best, self.seconds = 0, -math.inf, 0.0
        state = folder / "state.safetensors"
        if state.exists():
            meta = load_state(state, self.model, self.ema, self.optimizer)
            self.step, self.best, self.seconds = meta["step"], meta["best"], meta["seconds"]

    def run(self, until: int | None = None, workers: int = 0) -> None:
        """Train to the recipe's last step, or to step `until`."""
        recipe = self.recipe
        end = min(until or recipe.steps, recipe.steps)
        order = Subset(self.dataset, range(self.step * recipe.batch, end * recipe.batch))
        # Spawned, not forked: OpenCV's threads do not survive a fork.
        context = "spawn" if workers else None
        loader = DataLoader(order, recipe.batch, num_workers=workers, multiprocessing_context=context)
        log: dict[str, float] = {}
        for batch in loader:
            begin = time.perf_counter()
            terms = self._step(batch)
            self.step += 1
            self.seconds += time.perf_counter() - begin
            for name, value in terms.items():
                log[name] = log.get(name, 0.0) + value
            if self.step % recipe.save_every == 0 or self.step == end:
                count = self.step % recipe.save_every or recipe.save_every
                self._log({name: value / count for name, value in log.items()})
                log.clear()
                if self.validate is not None and (self.step % recipe.validate_every == 0 or self.step == end):
                    self._validate()
                self._save()

    def _step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.step)
        rng = np.random.default_rng((recipe.seed, self.step))
        exponents = [0, int(rng.integers(1, self.model.config.ref_scales))] if rng.random() < recipe.two_scales else [0]
        for name in ("lr", "hr", "ref"):
            batch[name] = batch[name].contiguous(memory_format=torch.channels_last)
        _, losses = restore_batch(self.model, batch, exponents)
        w = recipe.weights
        loss = w.pixel * losses.pixel + w.contrastive * losses.contrastive + w.flow * losses.flow
        if not torch.isfinite(loss):
            raise AmsaError(
                f"the loss is {loss.item()} at step {self.step}; the last good state is {self.folder}/state.safetensors"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizer.step()
        # Early on the average would hold the random beginning for thousands of steps.
        decay = min(recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for average, p in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.lerp_(p, 1 - decay)
        return {"loss": loss.item(), **{k: float(v.detach()) for k, v in vars(losses).items()}}

    def _validate(self) -> None:
        assert self.validate is not None
        with torch.inference_mode():
            score = self.validate(self.ema)
        self._log({"validation_psnr": score})
        if score > self.best:
            self.best = score
            save_checkpoint(self.folder / "best.safetensors", self.ema, self._metadata())

    def _save(self) -> None:
        meta = {"step": self.step, "best": self.best, "seconds": self.seconds}
        save_state(self.folder / "state.safetensors", self.model, self.ema, self.optimizer, meta)
        save_checkpoint(self.folder / "last.safetensors", self.ema, self._metadata())

    def _metadata(self) -> dict[str, Any]:
        return {"trained": True, "step": self.step, "seconds": round(self.seconds), "recipe": asdict(self.recipe)}

    def _log(self, values: dict[str, float]) -> None:
        line = {"step": self.step, "seconds": round(self.seconds, 1), **{k: round(v, 5) for k, v in values.items()}}
        with (self.folder / "log.jsonl").open("a") as f:
            f.write(json.dumps(line) + "\n")


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `lr_end`."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr_end + (recipe.lr - recipe.lr_end) * (1 + math.cos(math.pi * done)) / 2
