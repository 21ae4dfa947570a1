"""What a step of the restoration stage computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from amsa.config import AMSAConfig
from amsa.model import AMSA
from amsa.plugins.patch_match.reference import Patches
from amsa.training.matching import exhaustive_match, unfold_patches
from amsa.training.restoration import restore

Make = Callable[..., NDArray[np.uint8]]


def own_reference(photo: Make) -> tuple[dict[str, Tensor], Tensor]:
    """A batch whose reference is the picture itself, and where each LR pixel's centre lies in it."""
    hr = torch.from_numpy(photo(64)).permute(2, 0, 1)[None].float() / 255
    grid = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"))[None]
    position = 4 * grid + 1.5
    known = torch.ones(1, 16, 16, dtype=torch.bool)
    return {"hr": hr, "ref": hr, "lr": F.avg_pool2d(hr, 4), "position": position, "known": known}, position


def small() -> AMSA:
    model = AMSA(AMSAConfig.small())
    model.reset_parameters(0)
    return model


def test_exhaustive_matching_is_the_best_of_all_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (F.normalize(torch.randn(2, 8, 8, s, generator=generator), dim=1) for s in (16, 24))
    valid = torch.tensor([[7, 20]], dtype=torch.int32)
    match, relevance = exhaustive_match(query, key, valid, cosine=True)
    patches = Patches(query, key, valid.expand(2, -1), pad=0)
    best = torch.full((2, 6, 14), -torch.inf)
    for y in range(5):
        for x in range(18):
            best = best.maximum(patches.score(torch.full((2, 6, 14), y), torch.full((2, 6, 14), x)) / 3)
    torch.testing.assert_close(relevance[:, 0, 1:-1, 1:-1], best)
    inner = match[:, :, 2:-2, 2:-2].long()
    torch.testing.assert_close(patches.score(inner[:, 0], inner[:, 1]) / 3, best)
    assert inner[:, 0].max() <= 4
    assert inner[:, 1].max() <= 17
    assert match[0, :, 0, 0].tolist() == [-2, -2]
    queries, keys, inside = unfold_patches(query, key, valid, cosine=True)
    scores = torch.bmm(queries.transpose(1, 2), keys).masked_fill(~inside, -torch.inf)
    torch.testing.assert_close(scores.max(2).values, best.flatten(1))


def test_the_relevance_is_differentiable() -> None:
    query, key = (torch.randn(1, 4, 8, 8).requires_grad_() for _ in range(2))
    _, relevance = exhaustive_match(query, key, torch.tensor([[8, 8]]), cosine=False)
    grads = torch.autograd.grad(relevance.sum(), (query, key))
    assert all(g.abs().max() > 0 for g in grads)


def test_the_terms_are_small_where_the_truth_is_found(photo: Make) -> None:
    batch, position = own_reference(photo)
    model = small()
    _, right, flow = restore(model, batch, [0])
    _, wrong, _ = restore(model, {**batch, "position": position.flip(2)}, [0])
    assert right < wrong / 2
    assert flow < 0.35  # matches are the truth but for border patches; the untrained flow is zero


def test_without_known_positions_there_are_no_terms(photo: Make) -> None:
    batch, _ = own_reference(photo)
    model = small()
    sr, _, _ = restore(model, batch, [0])
    again, contrastive, flow = restore(model, {k: batch[k] for k in ("lr", "hr", "ref")}, [0])
    assert torch.equal(sr, again)
    assert (contrastive.item(), flow.item()) == (0, 0)


@pytest.mark.parametrize("exponents", [[0], [0, 2]])
def test_training_restores_as_the_network_does(photo: Make, exponents: list[int]) -> None:
    # the same picture through `AMSA.forward`, with PatchMatch in both and the references shrunk alike
    from amsa.training.restoration import scale_ref

    batch, _ = own_reference(photo)
    model = small().eval()
    scaled = [scale_ref(batch["ref"], model.config.ref_factor**e) for e in exponents]
    with torch.no_grad():
        sr, _, _ = restore(model, batch, exponents, "patch_match", seed=3)
        expected = model(batch["lr"], [[ref for ref, _ in scaled]], [[valid for _, valid in scaled]], seed=3)
    torch.testing.assert_close(sr, expected, atol=2e-5, rtol=0)
