"""`amsa calibrate`: what it collects, remembers, chooses and writes, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from amsa import AmsaError
from amsa.calib import histograms, run
from amsa.calib.histograms import collect
from amsa.calib.layers import blocks, candidates, layer_macs, model_graphs
from amsa.calib.report import rows, summary, write_plot
from amsa.calib.run import calibrate
from amsa.calib.samples import read_samples
from amsa.calib.sensitivity import Bench, BlockCost, search
from amsa.calib.table import measure, naive, to_markdown, with_layers
from amsa.config import VARIANTS, AMSAConfig
from amsa.engine.backends import SHIPPED_ENGINE_MODEL, SHIPPED_MODEL
from amsa.engine.upscaler import Upscaler
from amsa.export import export_folder
from amsa.export.layer_precision import LayerPrecision, conv_layers, identity, read_precision
from amsa.manifest import ModelFolder

from ..conftest import Run
from .conftest import TINY, save, tiny_network


@pytest.fixture(scope="module")
def found(tiny: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, run.Calibration]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        path = tmp_path_factory.mktemp("found") / "tiny.json"
        return path, calibrate(tiny, [pairs], path, crops=8, held_out_crops=2, max_drop=0.2, threads=1)


def test_what_is_never_quantized() -> None:
    layers = candidates(model_graphs(ModelFolder.open(SHIPPED_MODEL)))
    assert not [n for n in layers if ".keys." in n or n.startswith("finish.")]
    assert not [n for n in layers if n.endswith(("offset_mask", "flow", "flow_vote", "conv_first", "conv4a"))]
    assert "restore.scales.0.aggregation.offset_conv1" in layers
    grouped = blocks(layers)
    assert grouped["encode_lr.content.body.3"] == [f"encode_lr.content.body.3.conv{i}" for i in (1, 2)]
    assert grouped["restore.scales.1.aggregation.offset_conv"] == [f"restore.scales.1.aggregation.offset_conv{i}" for i in (1, 2)]
    assert [layer for group in grouped.values() for layer in group] == layers


@pytest.mark.parametrize("variant", VARIANTS)
def test_macs_are_those_of_the_complexity_report(variant: str) -> None:
    """All convolutions but fixed filters; what is left of the report's are deformable samples (and the blur)."""
    from amsa.training.evaluation.complexity import BILINEAR_MACS, network_macs

    config: AMSAConfig = VARIANTS[variant]()
    sizes = ((40, 48), (160, 192))
    macs, cost = layer_macs(config, *sizes), network_macs(config, *sizes)
    assert sum(n for layer, n in macs.items() if layer.startswith("encode_lr.")) == cost.encode_lr
    assert sum(n for layer, n in macs.items() if layer.startswith("finish.")) == cost.finish
    samples = sum(
        2 * 9 * c * BILINEAR_MACS * s * s * sizes[0][0] * sizes[0][1]
        for s, c in zip((1, 2, 4), config.value_channels, strict=True)
    )
    if variant != "published":
        taps = 2 * 9 * 4 * sizes[0][0] * sizes[0][1] * config.ref_scales if config.refine else 0
        restore = sum(n for layer, n in macs.items() if layer.startswith("restore."))
        assert restore == sum(cost.restore) - samples * config.ref_scales - taps


def test_layers_of_a_graph_have_macs(tiny: Path) -> None:
    graphs = model_graphs(ModelFolder.open(tiny))
    every = {layer for graph in graphs.values() for layer in conv_layers(graph)}
    assert every == set(layer_macs(TINY, (40, 40), (160, 160)))


def test_the_file(found: tuple[Path, run.Calibration], tiny: Path) -> None:
    path, calibration = found
    read = read_precision(path)
    assert read == calibration.precision
    graphs = model_graphs(ModelFolder.open(tiny))
    assert read.model == identity(graphs.values())
    assert read.method == "mse"
    assert read.float32 == ()
    assert set(read.int8) <= set(candidates(graphs))
    assert read.figures["crops"] == 8
    assert read.figures["drop"] <= 0.2
    assert 0.3 < read.figures["int8_share_of_macs"] < 1
    assert len(read.figures["blocks"]) == len(blocks(candidates(graphs)))
    chosen = {layer for block in read.figures["blocks"] if block["chosen"] for layer in block["layers"]}
    assert chosen == set(read.int8)
    assert "NaN" not in path.read_text()
    assert "Infinity" not in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_table_summary_and_plot(found: tuple[Path, run.Calibration], tmp_path: Path) -> None:
    _, calibration = found
    table = rows(calibration)
    assert len(table) == len(calibration.blocks)
    assert {row[-1] for row in table} <= {"int8", "refused"}
    text = "\n".join(summary(calibration))
    assert f"{len(calibration.precision.int8)} layers in int8" in text
    assert "float16 holds every layer" in text
    write_plot(calibration, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(AmsaError, match="cannot write"):
        write_plot(calibration, tmp_path / "no" / "plot.png")


def test_a_second_run_takes_activations_from_the_cache(tiny: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, samples = ModelFolder.open(tiny), read_samples([pairs], 8)
    first = collect(folder, samples, 1)
    monkeypatch.setattr(histograms, "Collector", lambda *_: pytest.fail("collected again"))
    said: list[str] = []
    second = collect(folder, samples, 1, said.append)
    assert "from" in said[0]
    assert second.largest() == first.largest()
    for layer, histogram in first.inputs.items():
        assert (second.inputs[layer].counts == histogram.counts).all()
    with pytest.raises(pytest.fail.Exception):
        collect(folder, read_samples([pairs], 9))  # other data
    monkeypatch.undo()


def test_a_damaged_cache_is_made_again(tiny: Path, pairs: Path, cache: Path) -> None:
    folder, samples = ModelFolder.open(tiny), read_samples([pairs], 8)
    first = collect(folder, samples, 1)
    (file,) = (cache / "amsa" / "calibration").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert collect(folder, samples, 1).largest() == first.largest()


def test_activations_are_those_of_pytorch(tiny: Path, pairs: Path) -> None:
    folder, samples = ModelFolder.open(tiny), read_samples([pairs], 8)
    activations = collect(folder, samples, 1)
    model = tiny_network()
    largest = [0.0, 0.0]

    def hook(_: object, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        largest[0] = max(largest[0], float(inputs[0].abs().max()))
        largest[1] = max(largest[1], float(output.abs().max()))

    model.encode_lr.content.body[1].conv2.register_forward_hook(hook)
    with torch.inference_mode():
        for sample in samples:
            model.encode_lr(torch.from_numpy(np.ascontiguousarray(sample.lr.rgb.transpose(2, 0, 1)))[None])
    found = activations.largest()["encode_lr.content.body.1.conv2"]
    assert found[:2] == pytest.approx(largest, rel=1e-4)


@pytest.mark.slow
def test_a_layer_that_float16_cannot_hold_is_kept(pairs: Path, tmp_path: Path) -> None:
    model = tiny_network()
    with torch.no_grad():
        model.encode_lr.content.body[1].conv1.weight *= 1e6
        model.encode_lr.content.body[1].conv2.weight /= 1e6
    export_folder(model, True, tmp_path / "model")
    found = calibrate(tmp_path / "model", [pairs], tmp_path / "x.json", crops=8, held_out_crops=2, threads=1)
    assert found.precision.float32 == tuple(f"encode_lr.content.body.1.conv{i}" for i in (1, 2))
    assert not set(found.precision.float32) & found.precision.int8.keys()
    assert "kept in float32, since values beyond 16376 were seen: encode_lr.content.body.1.conv1" in "\n".join(summary(found))
    found = replace(found, precision=replace(found.precision, int8={}))
    half = tiny_network()
    with torch.no_grad():
        half.encode_lr.content.body[1].conv1.weight *= 1e6
        half.encode_lr.content.body[1].conv2.weight /= 1e6
    half.to_fp16()
    export_folder(half, True, tmp_path / "half", quantization=found.precision, full=model)
    lr, ref = read_samples([pairs], 8)[0].lr, read_samples([pairs], 8)[0].ref
    full, kept = (Upscaler(tmp_path / name).upscale_photo(lr, [ref]).rgb for name in ("model", "half"))
    assert abs(full - kept).max() < 0.02


@pytest.mark.slow  # an export
def test_activations_that_are_no_numbers(pairs: Path, tmp_path: Path) -> None:
    model = tiny_network()
    with torch.no_grad():
        model.restore.scales[0].head.weight[0, 0] = float("nan")
    export_folder(model, True, tmp_path / "model")
    with pytest.raises(AmsaError, match=r"restore\.scales\.0\.head has values that are no numbers, on left@.*; check the model"):
        collect(ModelFolder.open(tmp_path / "model"), read_samples([pairs], 8))


def test_a_float16_model_is_refused(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(AmsaError, match="is fp16; calibrate the float32 export, its file serves both"):
        calibrate(SHIPPED_ENGINE_MODEL, [pairs], tmp_path / "x.json", crops=8)


class Loses(Bench):
    """Every layer of int8 costs what `prices` says, sums 0.01."""

    def __init__(self, prices: dict[str, float]) -> None:
        self.prices, self._own = prices, [30.0]

    def measure(self, precision: LayerPrecision | None, timed: bool = False) -> object:  # type: ignore[override]
        assert precision is not None
        lost = sum(self.prices[layer] for layer in precision.int8) + 0.01 * precision.int8_sums
        return type("Measured", (), {"truth": 30 - lost})()


def costs(prices: dict[str, float]) -> list[BlockCost]:
    return [BlockCost(name, (name,), price, 50, price, 0.1) for name, price in prices.items()]


@pytest.mark.parametrize(
    ("max_drop", "expected", "sums"),
    [(0.0, ["d"], False), (0.035, ["d", "b", "c"], False), (0.045, ["d", "b", "c"], True), (1.0, ["d", "b", "c", "a"], True)],
)
def test_the_search_takes_the_cheapest_first(max_drop: float, expected: Sequence[str], sums: bool) -> None:
    prices = {"a": 0.5, "b": 0.01, "c": 0.02, "d": 0.0}
    precision, tried = search(Loses(prices), dict.fromkeys(prices, 1.0), costs(prices), max_drop)
    assert [*precision.int8] == expected
    assert precision.int8_sums is sums
    assert [c.name for c in tried] == ["d", "b", "c", "a"]
    assert [c.name for c in tried if c.chosen] == expected
    assert tried[1].total == pytest.approx(0.01)


def test_a_refused_block_does_not_stop_the_search() -> None:
    prices = {"a": 0.04, "b": 0.03, "c": 0.041}
    listed = costs(prices)
    listed = [replace(c, error=e) for c, e in zip(listed, (1.0, 2.0, 0.5), strict=True)]
    precision, _ = search(Loses(prices), dict.fromkeys(prices, 1.0), listed, 0.075)
    assert [*precision.int8] == ["c", "b"]


def test_remembered_stages_change_nothing(tiny: Path, pairs: Path) -> None:
    folder = ModelFolder.open(tiny)
    samples = read_samples([pairs], 8)
    bench = Bench(folder, samples, 1)
    values = {layer: 4.0 for layer in candidates(model_graphs(folder)) if layer.startswith("encode_ref.")}
    precision = LayerPrecision(identity(model_graphs(folder).values()), values)
    base, changed = bench.measure(None), bench.measure(precision)
    assert base.parity == float("inf")
    assert base.error == 0
    assert 30 < changed.parity < 100  # the reference encoder is changed, and little of the picture is its
    again, timed = bench.measure(None), bench.measure(precision, timed=True)
    assert again.truth == base.truth
    assert timed.truth == changed.truth
    assert changed.size < base.size


def test_the_table(found: tuple[Path, run.Calibration], tiny: Path, pairs: Path) -> None:
    path, _ = found
    folder, precision = ModelFolder.open(tiny), read_precision(path)
    everything = naive(folder, precision)
    assert set(everything.int8) == {layer for graph in model_graphs(folder).values() for layer in conv_layers(graph)}
    models = {"FP32": folder, "INT8": with_layers(folder, precision), "all": with_layers(folder, everything)}
    table = measure(models, read_samples([pairs], 8), 1)
    assert [row.name for row in table] == [*models]
    assert table[0].parity == float("inf")
    assert table[0].ratio == 1
    assert table[2].parity < table[1].parity
    assert table[1].size < table[0].size
    assert len(to_markdown(table).splitlines()) == 5
    with pytest.raises(AmsaError, match="the precision file lacks the largest values seen"):
        naive(folder, replace(precision, figures={}))


def cli(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "amsa", "calibrate", *map(str, arguments), "--threads", "1", "--held-out-crops", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.slow
def test_the_command(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.json"
    code, out, err = cli(
        tiny, "--data", pairs, "-o", output, "--crops", 8, "--method", "percentile", "--plot", tmp_path / "x.png"
    )
    assert code == 0, err
    assert "layers in int8" in out
    assert read_precision(output).method == "percentile"
    assert (tmp_path / "x.png").is_file()
    code, out, _ = cli(tiny, "--data", pairs, "-o", output, "--crops", 8, "--json")
    assert json.loads(out)["method"] == "mse"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "best"], "--method best does not exist; choose max, percentile, entropy, mse"),
        (["--max-drop", "-1"], "--max-drop -1.0 must be a number of dB from 0"),
        (["--crops", "2"], "2 crops are too few; take at least 8 to calibrate with, and 1 to measure on"),
        (["--plot", "x.pdf"], "a plot's name must end in .png"),
        (["-o", "x.txt"], "x.txt: a precision file's name must end in .json"),
        (["-o", "no/folder/x.json"], "no such folder; create it first"),
    ],
)
def test_what_is_refused_on_the_command_line(
    run: Run, tiny: Path, pairs: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    given = arguments if "-o" in arguments else ["-o", str(tmp_path / "x.json"), *arguments]
    code, _, err = run("calibrate", tiny, "--data", pairs, *given)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_cannot_be_written(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(AmsaError, match="cannot be written; choose another name or folder"):
        calibrate(tiny, [pairs], tmp_path / "locked" / "x.json", crops=8)


def test_a_full_disk(found: tuple[Path, run.Calibration], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(AmsaError, match=r"cannot write .*: No space left on device; free some space"):
        run._write(tmp_path / "x.json", "{}")
    assert not list(tmp_path.glob("*x.json*"))


def test_a_folder_in_the_output_s_place(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(AmsaError, match=r"x\.json cannot be written"):
        calibrate(tiny, [pairs], tmp_path / "x.json", crops=8)


@pytest.mark.slow
def test_one_picture_is_told(tiny: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.png", 200, 200)
    code, _, err = cli(tiny, "--data", tmp_path, "-o", tmp_path / "x.json", "--crops", 8)
    assert code == 0
    assert "note: all 8 crops are of one picture" in err
