"""Costs: the paper's Table 2, our schedules against what the reference really scores, layers by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amsa import cli
from amsa.config import AMSAConfig
from amsa.engine.references import common_canvas, lr_and_scales, prepare_lr, prepare_scales
from amsa.errors import AmsaError
from amsa.model.matching import initial_matches
from amsa.plugins.patch_match.reference import Patches, patch_match
from amsa.training.evaluation.complexity import (
    count_macs,
    enumerated_macs,
    network_macs,
    paper_table2,
    parse_size,
    patch_match_macs,
    table,
)

TINY = replace(AMSAConfig.small(), blocks=(1, 1, 1, 1), ref_scales=3)


# ------------------------------------------------------------------------------------------------ Table 2


@pytest.mark.parametrize(
    ("row", "one", "five"), [("CFE-PatchMatch", "83.15", "279.52"), ("Enumerated Matching", "8715.44", "29297.82")]
)
def test_table2_is_reproduced_to_the_printed_digits(row: str, one: str, five: str) -> None:
    cost = paper_table2()[row]
    assert f"{cost.one / 1e9:.2f}" == one
    assert f"{cost.five / 1e9:.2f}" == five


def test_table2_by_size() -> None:
    """References of 250, 200, 160, 128 and 102: enumeration shrinks with their area, PatchMatch does not."""
    table2 = paper_table2()
    embedded, enumerated = table2["CFE-PatchMatch"], table2["Enumerated Matching"]
    assert enumerated.five_by_size == 248**2 * (248**2 + 198**2 + 158**2 + 126**2 + 100**2) * 2304
    assert enumerated.five_by_size < enumerated.five
    assert embedded.five_by_size == pytest.approx(5 * embedded.one)


# ------------------------------------------------------------------------------------------------ matching


def test_enumerated_equals_brute_force() -> None:
    query, ref, channels = (4, 5), (6, 3), 2
    macs = 0
    for _ in product(range(query[0] - 2), range(query[1] - 2), range(ref[0] - 2), range(ref[1] - 2)):
        macs += len(list(product(range(3), range(3), range(channels))))
    assert enumerated_macs(query, ref, channels) == macs


def test_features_without_a_whole_patch_are_refused() -> None:
    with pytest.raises(AmsaError, match=r"2x9 hold no whole 3x3 patch"):
        enumerated_macs((2, 9), (9, 9), 1)


@pytest.mark.parametrize("schedule", ["paper", "published", "fast"])
@pytest.mark.parametrize(("query", "valid"), [((16, 24), (16, 16)), ((24, 40), (29, 21)), ((40, 16), (35, 47))])
def test_patch_match_equals_what_the_reference_scores(
    schedule: str, query: tuple[int, int], valid: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    channels, iterations = 2, (1, 2, 1, 3)
    scored = [0]
    score = Patches.score

    def counting(self: Patches, y: Tensor, x: Tensor) -> Tensor:
        scored[-1] += y.numel()
        return score(self, y, x)

    monkeypatch.setattr(Patches, "score", counting)
    size = torch.tensor([valid], dtype=torch.int32)
    coarse = -(-size.long() // 8)
    match = initial_matches(torch.zeros(1, dtype=torch.int32), query[0] // 8, query[1] // 8, coarse)
    costs = patch_match_macs(schedule, iterations, query, valid, channels)
    assert [cost.level for cost in costs] == [3, 2, 1, 0]
    for cost, m in zip(costs, iterations, strict=True):
        scored.append(0)
        match, _ = patch_match(
            torch.ones(1, channels, query[0] >> cost.level, query[1] >> cost.level),
            torch.ones(1, channels, -(-valid[0] // 8) * 8 >> cost.level, -(-valid[1] // 8) * 8 >> cost.level),
            size,
            match,
            iterations=m,
            schedule=schedule,
            level=cost.level,
            pad=int(cost.level > 0),
            init_scale=1 if cost.level == 3 else 2,
        )
        assert cost.positions == match[0, 0].numel()
        assert cost.positions * cost.scores == scored[-1]
        assert cost.macs == scored[-1] * 9 * channels


def test_patch_match_at_the_papers_size() -> None:
    """250 is padded to 256: five dilations of two propagations at the finest level, as many as 8 * 2^t >= 256 needs."""
    costs = patch_match_macs("paper", (1, 1, 2, 6), (250, 250), (250, 250), 256)
    assert [cost.scores for cost in costs] == [9 * 2 * m * t for m, t in ((1, 2), (1, 3), (2, 4), (6, 5))]
    assert [cost.positions for cost in costs] == [32**2, 64**2, 128**2, 254**2]
    smaller = patch_match_macs("paper", (1, 1, 2, 6), (250, 250), (100, 90), 256)
    assert smaller == costs


# ------------------------------------------------------------------------------------------------ layers


def test_a_convolution_by_hand() -> None:
    with torch.device("meta"):
        conv = nn.Conv2d(6, 10, 3, stride=2, padding=1, groups=2)
        macs, y = count_macs(conv, torch.empty(2, 6, 11, 15))
    assert y.shape == (2, 10, 6, 8)
    assert macs == 2 * 10 * 6 * 8 * (6 // 2) * 3 * 3


def test_a_deformable_sample_by_hand() -> None:
    class Sample(nn.Module):
        def forward(self, value: Tensor, match: Tensor, mask: Tensor) -> Tensor:
            samples: Tensor = torch.ops.amsa.deformable_sample(value, match, mask, scale=2, groups=1)
            return samples

    with torch.device("meta"):
        inputs = torch.empty(1, 4, 20, 26), torch.empty(1, 2, 7, 9, dtype=torch.int32), torch.empty(1, 9, 10, 14)
        macs, y = count_macs(Sample(), *inputs)
    assert y.shape == (1, 36, 10, 14)
    assert macs == 10 * 14 * 9 * 4 * 4  # pixels, taps, channels, corners


# ------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("config", [TINY, replace(AMSAConfig.published(8, 1, 4), ref_scales=3)], ids=["small", "published"])
@pytest.mark.parametrize(("lr", "ref"), [((16, 16), (64, 64)), ((19, 45), (101, 67)), ((33, 17), (90, 161))])
def test_sizes_are_those_of_the_runtime(config: AMSAConfig, lr: tuple[int, int], ref: tuple[int, int]) -> None:
    canvas = common_canvas(lr, [ref]) if config.published_protocol else None
    padded, scales = lr_and_scales(config, lr, ref)
    assert padded == prepare_lr(np.zeros((*lr, 3), np.float32), canvas).shape[2:]
    prepared = prepare_scales(np.zeros((*ref, 3), np.float32), config, canvas)
    assert [(s.picture, s.valid) for s in scales] == [(p.shape[2:], tuple(v[0])) for p, v in prepared]


def test_the_small_network_by_hand() -> None:
    cost = network_macs(TINY, (16, 24), (64, 96))
    keys, pixels = TINY.key_channels, 16 * 24
    picture = 16 * pixels
    assert cost.finish == picture * 9 * (16 * 8 + 8 * 3)
    key_net = pixels * 9 * (4 * 16 * (3 + TINY.refine) + 16 * 32 + 32 * keys)
    content = pixels * 9 * (3 * 48 + 2 * 48 * 48)
    assert cost.encode_lr == key_net + content
    assert cost.match == (sum(c.macs for c in patch_match_macs("paper", TINY.iterations, (16, 24), (16, 24), keys)),) * 3
    assert cost.enumerated[0] == enumerated_macs((16, 24), (16, 24), keys)
    assert cost.encode_ref[0] > key_net
    assert cost.encode_ref[0] == cost.encode_ref[1] > cost.encode_ref[2]  # 51x76 and 40x61, padded
    assert len(set(cost.restore)) == 1
    assert cost.total == cost.encode_lr + cost.finish + sum(cost.encode_ref + cost.match + cost.restore)


def test_restoration_grows_with_the_lr_picture_alone() -> None:
    config = replace(TINY, ref_scales=1)
    a, b, c = (network_macs(config, *sizes) for sizes in (((16, 24), (64, 64)), ((32, 24), (64, 64)), ((16, 24), (640, 64))))
    assert b.restore[0] == 2 * a.restore[0]
    assert b.encode_ref == a.encode_ref
    assert c.restore == a.restore
    assert c.encode_ref[0] == 10 * a.encode_ref[0]


def test_a_picture_too_large_to_compute_is_counted() -> None:
    """The samples alone would take 37 GB (8000 x 8000 x 9 taps x 16 channels); odd LR sizes are padded."""
    config = replace(TINY, ref_scales=1)
    assert network_macs(config, (1999, 1997), (8001, 7999)) == network_macs(config, (2000, 2000), (8001, 7999))


@pytest.mark.parametrize(
    ("lr", "ref", "message"), [((15, 99), (64, 64), "LR is 99x15"), ((16, 16), (64, 63), "reference is 63x64")]
)
def test_pictures_below_the_least_size_are_refused(lr: tuple[int, int], ref: tuple[int, int], message: str) -> None:
    with pytest.raises(AmsaError, match=message):
        network_macs(TINY, lr, ref)


def test_published_scales_all_cost_the_same() -> None:
    cost = network_macs(AMSAConfig.published(8, 1, 4), (20, 20), (100, 70))
    assert len(set(cost.encode_ref)) == len(set(cost.match)) == len(set(cost.enumerated)) == 1
    assert len(cost.encode_ref) == 5


def test_the_table_holds_the_costs() -> None:
    config = replace(TINY, ref_scales=2)
    cost = network_macs(config, (100, 100), (400, 400))
    header, rule, *rows = (line.strip("| ").split(" | ") for line in table(config, (100, 100), (400, 400)).splitlines())
    assert header == ["GMACs", "scale 1", "scale 0.8", "sum"]
    assert len(rule) == 4
    values = {name: [float(c) for c in cells if c.strip()] for name, *cells in rows}
    assert list(values) == [
        "encode_lr", "encode_ref", "match", "restore", "finish", "all", "enumerated, instead of match",
    ]  # fmt: skip
    assert values["match"] == pytest.approx([m / 1e9 for m in (*cost.match, sum(cost.match))], abs=6e-4)
    assert values["all"] == pytest.approx([cost.total / 1e9], abs=6e-4)


@pytest.mark.parametrize("text", ["250", "250x", "x250", "250x250x3", "-1x9", "2.5x3", "1e3x9", "²x9"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    assert parse_size("30x20") == (20, 30)
    with pytest.raises(AmsaError, match="is not a size; write WIDTHxHEIGHT"):
        parse_size(text)


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["amsa", "complexity", "small", "--lr", "24x16", "--ref", "64x96"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == table(AMSAConfig.small(), (16, 24), (96, 64))
