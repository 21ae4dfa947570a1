"""Refined positions: proposals are where the taps read, and what is found does not depend on which match it began with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from amsa.config import AMSAConfig
from amsa.model.refinement import RefinedAggregation, displacements
from amsa.model.resample import lr_blur
from amsa.plugins.deformable_sample.reference import tap_positions

SMALL = AMSAConfig.small()


def random_match(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 12, (2, 2, height + 2, width + 2), generator=generator, dtype=torch.int32)


def own_match(height: int, width: int) -> torch.Tensor:
    grid = torch.meshgrid(torch.arange(-2, height), torch.arange(-2, width), indexing="ij")
    return torch.stack(grid)[None].expand(2, -1, -1, -1).int()


def test_proposals_are_where_the_taps_read() -> None:
    match = random_match(5, 7)
    own = torch.stack(torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij"))
    taps = torch.tensor([(i // 3 - 1, i % 3 - 1) for i in range(9)]).T.view(2, 9, 1, 1)
    read = tap_positions(match, 1) - own[:, None] - taps  # [N, 2, 9, H, W]
    assert torch.equal(displacements(match).unflatten(1, (9, 2)), read.transpose(1, 2).float())


@pytest.mark.parametrize("index", [1, 2])
def test_what_is_read_depends_on_the_place_alone(index: int) -> None:
    """Any match, the same place: the same features. Only the numbers' rounding differs."""
    torch.manual_seed(0)
    aggregation = RefinedAggregation(SMALL, index)
    s, height, width = 2**index, 6, 5
    x = torch.randn(2, SMALL.channels[index], s * height, s * width)
    value = torch.randn(2, SMALL.value_channels[index], s * 9, s * 8)
    compared = SMALL.compared_channels[index]
    query = torch.randn(2, compared, s * height, s * width) if compared else None
    place = 3 * torch.randn(2, 2, s * height, s * width)
    results = []
    with torch.no_grad():
        for match in (own_match(height, width), random_match(height, width, 1), random_match(height, width, 2)):
            results.append(aggregation(x, value, match, displacements(match), query, place))
    for features, found in results[1:]:
        torch.testing.assert_close(features, results[0][0], atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(found, results[0][1], atol=1e-3, rtol=1e-3)


def test_the_first_scale_trusts_the_proposal_that_looks_right() -> None:
    """Keys that differ everywhere but at one proposal: the place is there, if it is near the middle one."""
    torch.manual_seed(0)
    aggregation = RefinedAggregation(SMALL, 0)
    with torch.no_grad():
        for p in (aggregation.flow, aggregation.flow_vote):
            assert p is not None
            torch.nn.init.zeros_(p.weight)
            torch.nn.init.zeros_(p.bias)
    height, width, keys = 6, 6, SMALL.key_channels
    match = own_match(height, width)[:1].clone()
    match[:, 1, 3, 3] += 1  # the patch anchored at (1, 1) was found one column further on; it covers (1, 1) to (3, 3)
    value = torch.zeros(1, SMALL.value_channels[0], height + 2, width + 2)
    generator = torch.Generator().manual_seed(0)
    reference = torch.nn.functional.normalize(torch.randn(1, keys, height + 2, width + 2, generator=generator), dim=1)
    value[:, -keys:] = reference
    x = torch.zeros(1, SMALL.channels[0], height, width)
    for shift, expected in ((0, 0.0), (1, 1.0)):
        query = reference[:, :, :height, shift : width + shift]
        _, place = aggregation(x, value, match, displacements(match), query, None)
        # (2, 2): tap (1, 1), the middle one, reads the patch that is one column off; the eight others do not
        assert place[0, 0, 2, 2].item() == pytest.approx(0, abs=0.05)
        assert place[0, 1, 2, 2].item() == pytest.approx(expected, abs=0.05)


def test_the_blur_is_lrs() -> None:
    """LR, from PIL's bicubic, lies half-way between its pixels; at the border PIL has other weights."""
    rng = np.random.default_rng(0)
    picture = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 14, 3), np.uint8)).resize((112, 96), Image.Resampling.BICUBIC))
    lr = np.asarray(Image.fromarray(picture).resize((28, 24), Image.Resampling.BICUBIC)).astype(np.float64)
    blurred = lr_blur(torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float())
    assert blurred.shape == (1, 3, 48, 56)
    # pixel j of the blurred picture is centred on 2j + 1, LR's pixel k on 4k + 2: half-way between 2k and 2k + 1
    middle = torch.nn.functional.avg_pool2d(blurred, 2)[0].permute(1, 2, 0).numpy()
    assert np.abs(middle - lr)[2:-2, 2:-2].mean() < 3
