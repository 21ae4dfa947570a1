"""The config's variants, its round trip, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from amsa.config import VARIANTS, AMSAConfig
from amsa.errors import AmsaError

SMALL = AMSAConfig.small().to_dict()


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_round_trip_through_json(make: Callable[[], AMSAConfig]) -> None:
    config = make()
    again = AMSAConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)  # lists became tuples
    changed = replace(config, sharpness=7, ref_scales=2)  # a whole number for a fraction is fine
    assert AMSAConfig.from_dict(changed.to_dict()) == changed != config


def test_variants() -> None:
    published, paper, small = AMSAConfig.published(), AMSAConfig.paper(), AMSAConfig.small()
    assert [c.variant for c in (published, paper, small)] == list(VARIANTS) == ["published", "paper", "small"]
    assert (published.iterations, paper.iterations) == ((1, 1, 1, 4), (1, 1, 2, 6))
    assert (published.schedule, paper.schedule) == ("published", "paper")
    assert [c.published_protocol for c in (published, paper, small)] == [True, False, False]
    assert [c.warp_mask_from_ref for c in (published, paper, small)] == [True, False, False]
    assert AMSAConfig.published(16, 2, 4).channels == (16, 16, 16)
    assert AMSAConfig.published(16, 2, 4).blocks == (2, 2, 2, 2)
    assert AMSAConfig.published(16, 2, 4).groups == 4
    assert len(published.stages()) == 6


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"sharpness", "ref_scales", "ref_factor", "arithmetic"}))
def test_missing_fields_are_named(name: str) -> None:
    with pytest.raises(AmsaError, match=f"missing field {name}$"):
        AMSAConfig.from_dict({k: v for k, v in SMALL.items() if k != name})


def test_unknown_fields_are_named() -> None:
    with pytest.raises(AmsaError, match=r"unknown field depth, width; known are .*blocks, channels"):
        AMSAConfig.from_dict({**SMALL, "width": 1, "depth": 2})


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("wrong", [None, {}, [[]], b""], ids=repr)
def test_fields_of_another_type_are_named(name: str, wrong: Any) -> None:
    with pytest.raises(AmsaError, match=f"^config: {name} is "):
        AMSAConfig.from_dict({**SMALL, name: wrong})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("variant", "large"),
        ("encoder", "vit"),
        ("schedule", "quick"),
        ("base", "nearest"),
        ("key_channels", 0),
        ("key_channels", "16"),
        ("key_channels", 16.0),
        ("key_channels", True),
        ("value_channels", [32, 32]),
        ("value_channels", [32, 32, 0]),
        ("channels", 32),
        ("channels", [48, 32, -16]),
        ("blocks", [1, 1, 1]),
        ("blocks", [1, 1, 1, "1"]),
        ("groups", 0),
        ("groups", 1.5),
        ("refine", -1),
        ("refine", True),
        ("iterations", [1, 1, 2, 0]),
        ("iterations", [1, 1, 2, True]),
        ("cosine", "yes"),
        ("sharpness", "10"),
        ("ref_scales", 0),
        ("ref_factor", [0.8]),
        ("channels", [48, 32, 1]),  # the last convolutions halve the width: none would be left
        ("sharpness", float("nan")),
        ("sharpness", -1.0),
        ("ref_factor", 0.0),
        ("ref_factor", 1.5),
    ],
)
def test_bad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(AmsaError, match=f"^config: {name} is ") as caught:
        AMSAConfig.from_dict({**SMALL, name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [None, [], [1], "abc", 3], ids=repr)
def test_something_else_than_a_table(values: Any) -> None:
    with pytest.raises(AmsaError, match=r"^config: "):
        AMSAConfig.from_dict(values)


def test_fields_must_fit_each_other() -> None:
    with pytest.raises(AmsaError, match=r"the vgg encoder has 256 key channels and \(256, 128, 64\) value channels"):
        replace(AMSAConfig.published(), key_channels=16)
    with pytest.raises(AmsaError, match="the vgg encoder"):
        replace(AMSAConfig.small(), encoder="vgg")
    with pytest.raises(AmsaError, match="must divide into 3 groups"):
        replace(AMSAConfig.small(), groups=3)
