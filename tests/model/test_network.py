"""The network as a whole: what must hold whatever the weights are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from amsa.config import AMSAConfig
from amsa.model import AMSA
from amsa.model.matching import fusion_weights
from amsa.stages import Stage, TensorIO

TINY = replace(AMSAConfig.small(), blocks=(1, 1, 1, 1), iterations=(1, 1, 1, 2))
CONFIGS = {"small": TINY, "paper": AMSAConfig.paper(8, 1, 4), "published": AMSAConfig.published(8, 1, 4)}


def network(config: AMSAConfig = TINY, seed: int = 0) -> AMSA:
    """Weights as torch draws them: unlike `reset_parameters`, offsets and masks are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AMSA(config).eval()


def pictures(*sizes: tuple[int, int], batch: int = 1, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, 3, *size, generator=generator) for size in sizes]


def sizes_of(config: AMSAConfig) -> list[tuple[int, int]]:
    """LR and three references; of one size where the published masks need it."""
    return [(16, 24), *([(64, 96)] * 3 if config.warp_mask_from_ref else [(64, 96), (96, 64), (64, 64)])]


def assert_nearly_all_close(a: Tensor, b: Tensor) -> None:
    """A near-tie may be decided differently where features differ by a rounding: at most 1% of the pixels."""
    assert a.shape == b.shape
    assert ((a - b).abs() > 1e-4).float().mean() <= 0.01


# ------------------------------------------------------------------------------------------------ forward


@pytest.mark.parametrize("name", ["small", "published"])
@torch.no_grad()
def test_batches_equal_single_pictures(name: str) -> None:
    model = network(CONFIGS[name])
    lr, *refs = pictures(*sizes_of(model.config)[:3], batch=2)
    both = model(lr, [refs])
    assert both.shape == (2, 3, 64, 96)
    assert both.isfinite().all()
    for i in (0, 1):
        alone = model(lr[i : i + 1], [[r[i : i + 1] for r in refs]])
        assert_nearly_all_close(both[i : i + 1], alone)
    assert (both[0] - both[1]).abs().mean() > 0.01


@pytest.mark.parametrize("name", ["small", "published"])
@torch.no_grad()
def test_forward_is_the_five_stages(name: str) -> None:
    model = network(CONFIGS[name])
    lr, *refs = pictures(*sizes_of(model.config))
    queries, content = model.encode_lr(lr)
    encoded = [model.encode_ref(r) for r in refs]
    seed = torch.tensor([7], dtype=torch.int32)
    found = []
    for ref, (keys, _, _) in zip(refs, encoded, strict=True):
        found.append(model.match(queries, keys, torch.tensor([[ref.shape[2] // 4, ref.shape[3] // 4]]).int(), seed))
    # Photos at two scales and at one: published weights want the values of each photo's first scale.
    values = [encoded[i][1:] for i in ((0, 0, 2) if name == "published" else (0, 1, 2))]
    accumulator = torch.zeros(1, model.config.channels[-1], 64, 96)
    weights = fusion_weights([relevance for _, relevance in found], model.config.sharpness)
    for (match, _), weight, (value, masks) in zip(found, weights, values, strict=True):
        accumulator = model.restore(content, match, weight, value, masks, accumulator)
    torch.testing.assert_close(model.finish(accumulator, lr), model(lr, [refs[:2], refs[2:]], seed=7))


@torch.no_grad()
def test_the_order_of_references_does_not_matter() -> None:
    model = network()
    lr, a, b = pictures((16, 16), (64, 64), (64, 96))
    torch.testing.assert_close(model(lr, [[a], [b]]), model(lr, [[b], [a]]), rtol=0, atol=1e-4)
    assert (model(lr, [[a], [b]]) - model(lr, [[a]])).abs().max() > 1e-3


@torch.no_grad()
def test_a_reference_that_repeats_adds_nothing() -> None:
    model = network()
    lr, ref = pictures((16, 16), (64, 64))
    torch.testing.assert_close(model(lr, [[ref, ref], [ref]]), model(lr, [[ref]]), rtol=0, atol=1e-4)


@torch.no_grad()
def test_seeds() -> None:
    model = network()
    lr, ref = pictures((32, 32), (96, 128))
    assert torch.equal(model(lr, [[ref]], seed=3), model(lr, [[ref]], seed=3))
    assert not torch.equal(model(lr, [[ref]], seed=3), model(lr, [[ref]], seed=4))


@torch.no_grad()
def test_training_and_evaluation_agree() -> None:
    model = network()
    lr, ref = pictures((16, 16), (64, 64))
    evaluated = model.eval()(lr, [[ref]])
    assert torch.equal(model.train()(lr, [[ref]]), evaluated)


@torch.no_grad()
def test_padding_of_a_reference_is_never_matched() -> None:
    model = network()
    lr, ref = pictures((16, 16), (96, 96))
    seen: list[Tensor] = []
    model.match.register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs[0]))
    valid = torch.tensor([[17, 21]], dtype=torch.int32)
    model(lr, [[ref]], [[valid]])
    model(lr, [[ref]])
    matched, whole = (m[0, :, 2:-2, 2:-2].amax((1, 2)) for m in seen)
    assert (matched <= torch.tensor([17 - 3, 21 - 3])).all()
    assert (whole > torch.tensor([17 - 3, 21 - 3])).all()


@pytest.mark.parametrize(("lr", "ref"), [((20, 16), (64, 64)), ((16, 18), (64, 64)), ((16, 16), (48, 64)), ((16, 16), (64, 80))])
def test_sizes_must_be_multiples(lr: tuple[int, int], ref: tuple[int, int]) -> None:
    wrong, multiple = (("lr", 8), ("ref", 32))[lr == (16, 16)]
    size = ref if wrong == "ref" else lr
    pair = pictures(lr, ref)
    with pytest.raises(ValueError, match=f"^{wrong} is {size[0]}x{size[1]}; both sides must be multiples of {multiple}"):
        network()(pair[0], [pair[1:]])


# ------------------------------------------------------------------------------------------------ gradients


def gradients(config: AMSAConfig, count: int) -> dict[str, Tensor | None]:
    model = network(config).train()
    lr, *refs = pictures((16, 16), *[(64, 64)] * count)
    model(lr, [[r] for r in refs]).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_reach_every_parameter(name: str) -> None:
    grads = gradients(CONFIGS[name], 2)
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    assert [n for n, grad in grads.items() if grad is None or not grad.any()] == []
    parts = {n.rsplit(".", 2)[0].split(".body")[0] for n in grads}
    assert len(parts) > 8  # and there are parameters to reach, in every part
    assert {n.split(".")[0] for n in grads} == {"encode_ref", "encode_lr", "restore", "finish"}


def test_one_reference_alone_trains_the_keys_only_where_positions_are_refined() -> None:
    grads = gradients(TINY, 1)
    assert all(grad is not None and grad.any() for n, grad in grads.items() if n.startswith("encode_ref.keys."))
    grads = gradients(replace(TINY, refine=0), 1)  # its weight is 1 whatever its relevance
    without = {n for n, grad in grads.items() if grad is None or not grad.any()}
    assert without == {n for n in grads if n.startswith("encode_ref.keys.")} != set()


# ------------------------------------------------------------------------------------------------ weights, declared shapes


def weights(seed: int) -> dict[str, Tensor]:
    model = AMSA(CONFIGS["published"])
    model.reset_parameters(seed)
    return model.state_dict()


def test_untrained_weights_come_from_the_seed_alone() -> None:
    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(v, again[k]) for k, v in first.items())
    assert all(not torch.equal(v, other[k]) for k, v in first.items() if v.any())
    assert first["restore.scales.1.head.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert not any(v.any() for k, v in first.items() if "mask" in k or k.endswith(".bias"))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_an_untrained_network_gives_nearly_the_upsampled_picture(name: str) -> None:
    model = network(CONFIGS[name])
    model.reset_parameters(0)
    lr, ref = pictures((16, 24), (64, 96))
    base = model.finish(torch.zeros(1, model.config.channels[-1], 64, 96), lr)
    assert 0 < (model(lr, [[ref]]) - base).abs().max() < 0.1


def test_compact_keys_are_shared() -> None:
    model = network()
    assert model.encode_lr.keys is model.encode_ref.keys
    assert network(CONFIGS["paper"]).encode_lr.keys is not network(CONFIGS["paper"]).encode_ref.keys


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_stages_have_the_declared_tensors(name: str) -> None:
    config = CONFIGS[name]
    model, stages = network(config), {s.name: s for s in config.stages()}
    ref_size = (16, 24) if name == "published" else (24, 16)
    words = {"h": 16, "w": 24, "Hk": ref_size[0], "Wk": ref_size[1]}

    def declared(tensor: TensorIO) -> tuple[tuple[int, ...], str]:
        return tuple(eval(str(d).replace("/", "//"), {}, words) for d in tensor.dims), tensor.dtype

    def check(stage: Stage, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        for tensors, io in ((inputs, stage.inputs), (outputs, stage.outputs)):
            actual = [(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in tensors]
            assert actual == [declared(t) for t in io], stage.name

    lr, ref = pictures((16, 24), (4 * ref_size[0], 4 * ref_size[1]))
    keys, values, masks = model.encode_ref(ref)
    check(stages["encode_ref"], [ref], [*keys, *values, *masks])
    queries, content = model.encode_lr(lr)
    check(stages["encode_lr"], [lr], [*queries, content])
    valid, seed = torch.tensor([ref_size], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    match, relevance = model.match(queries, keys, valid, seed)
    check(stages["match"], [*queries, *keys, valid, seed], [match, relevance])
    weight, accumulator = torch.ones_like(relevance), torch.zeros(1, config.channels[-1], 64, 96)
    restored = model.restore(content, match, weight, values, masks, accumulator)
    check(stages["restore"], [content, match, weight, *values, *masks, accumulator], [restored])
    check(stages["finish"], [restored, lr], [model.finish(restored, lr)])
