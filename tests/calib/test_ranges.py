"""Histograms in bounded memory, and the ranges that each method finds in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amsa import AmsaError
from amsa.calib.histograms import BINS, Histogram, collect
from amsa.calib.layers import candidates, model_graphs
from amsa.calib.ranges import METHODS, find_range
from amsa.calib.samples import read_samples
from amsa.engine.backends import SHIPPED_MODEL
from amsa.manifest import ModelFolder


def histogram_of(*calls: np.ndarray) -> Histogram:
    histogram = Histogram()
    for values in calls:
        assert histogram.add(values.astype(np.float32))
    return histogram


def test_the_range_doubles_and_nothing_is_lost() -> None:
    rng = np.random.default_rng(0)
    calls = [rng.normal(size=5000) * scale for scale in (0.01, 0.1, 1.0, 30.0)]
    found = histogram_of(*calls)
    every = np.abs(np.concatenate(calls).astype(np.float32))
    assert found.counts.sum() == every.size
    assert found.counts.shape == (BINS,)
    assert found.largest == every.max()
    assert every.max() <= found.limit < 2 * every.max()
    expected, _ = np.histogram(every, BINS, (0, found.limit))
    assert abs(np.cumsum(found.counts) - np.cumsum(expected)).max() <= 2  # values on an edge


def test_zeros_then_values() -> None:
    found = histogram_of(np.zeros(100), np.ones(50))
    assert (found.counts[0], found.counts[-1], found.largest) == (100, 50, 1)


def test_many_values_are_thinned_and_the_largest_is_kept() -> None:
    values = np.zeros(1_000_000, np.float32)
    values[777_777] = 5
    found = histogram_of(values)
    assert found.largest == 5
    assert found.counts.sum() <= 1 << 16


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_numbers_are_refused(value: float) -> None:
    histogram = histogram_of(np.ones(10))
    before = histogram.counts.copy()
    assert not histogram.add(np.array([1.0, value], np.float32))
    assert (histogram.counts == before).all()


def normal_with_outlier() -> Histogram:
    rng = np.random.default_rng(1)
    return histogram_of(*(rng.normal(size=60_000) for _ in range(10)), np.array([60.0]))


def test_max() -> None:
    assert find_range(normal_with_outlier(), "max") == 60


def test_percentile() -> None:
    """99.99 % of a normal distribution's absolute values are below 3.89."""
    assert find_range(normal_with_outlier(), "percentile") == pytest.approx(3.89, abs=0.1)


def test_mse_is_the_least_error_of_all_ranges() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=50_000)
    values[0] = 12

    def error(limit: float) -> float:
        step = limit / 127
        return float(np.square(np.round(values / step).clip(-127, 127) * step - values).mean())

    found = find_range(histogram_of(values), "mse")
    least = min(error(limit) for limit in np.linspace(1, 12, 400))
    assert error(found) <= 1.02 * least
    assert error(found) < 0.9 * error(12)


def test_entropy_clips_an_outlier_and_keeps_a_uniform_distribution() -> None:
    assert 2.5 < find_range(normal_with_outlier(), "entropy") < 12
    uniform = histogram_of(np.linspace(0, 3, 60_000))
    assert find_range(uniform, "entropy") == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_an_input_that_is_always_zero(method: str) -> None:
    assert find_range(histogram_of(np.zeros(100)), method) > 0


def test_a_single_value() -> None:
    for method in METHODS:
        assert 0 < find_range(histogram_of(np.full(100, 2.0)), method) <= 2


def test_an_unknown_method() -> None:
    with pytest.raises(AmsaError, match="--method best does not exist; choose max, percentile, entropy, mse"):
        find_range(normal_with_outlier(), "best")


def test_every_method_differs_from_max_on_the_shipped_model(pairs: Path) -> None:
    """Else it need not be offered. Most ranges are 5 % smaller, at least."""
    folder = ModelFolder.open(SHIPPED_MODEL)
    activations = collect(folder, read_samples([pairs], 8), 1)
    layers = candidates(model_graphs(folder))
    ranges = {m: np.array([find_range(activations.inputs[layer], m) for layer in layers]) for m in METHODS}
    for method, found in ranges.items():
        assert (found <= ranges["max"] * 1.0001).all()
        if method != "max":
            assert np.median(found / ranges["max"]) < 0.95, method
            others = [o for m, o in ranges.items() if m not in ("max", method)]
            assert all(np.median(abs(found / other - 1)) > 0.01 for other in others), method
