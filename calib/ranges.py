"""From a histogram to the range that int8 represents. All are symmetric: -range .. range in 254 steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..errors import AmsaError
from ..export.layer_precision import LEVELS
from .histograms import BINS, Histogram

PERCENTILE = 99.99
_CANDIDATES = 200  # ranges that are compared by their error
_LEAST = 1e-6  # of an input that is always zero


def largest(histogram: Histogram) -> float:
    """The largest value seen: nothing is clipped."""
    return histogram.largest


def percentile(histogram: Histogram) -> float:
    """The value that 99.99 % of all are below: the rest is clipped."""
    total = np.cumsum(histogram.counts)
    place = int(np.searchsorted(total, PERCENTILE / 100 * total[-1]))
    return min((place + 1) * histogram.limit / BINS, histogram.largest)


def mse(histogram: Histogram) -> float:
    """The range whose rounding and clipping have the least squared error."""
    centres = (np.arange(BINS) + 0.5) * (histogram.limit / BINS)
    candidates = np.linspace(0.05, 1, _CANDIDATES) * histogram.largest
    steps = candidates[:, None] / LEVELS
    errors = (np.round(centres / steps).clip(max=LEVELS) * steps - centres) ** 2 @ histogram.counts.astype(np.float64)
    return float(candidates[int(errors.argmin())])


def entropy(histogram: Histogram) -> float:
    """The range whose quantized distribution is nearest to the values' (Kullback-Leibler), as TensorRT's calibrator finds it.

    Bin 0 is taken as full as bin 1: after a ReLU half of all values are zero, which any range represents.
    """
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]
    used = int(np.ceil(histogram.largest / histogram.limit * BINS))
    best, found = np.inf, used
    for stop in range(LEVELS + 1, used + 1, 8):
        divergence = _divergence(counts, stop)
        if divergence < best:
            best, found = divergence, stop
    return min(found * histogram.limit / BINS, histogram.largest)


def _divergence(counts: NDArray[np.float64], stop: int) -> float:
    """Of the values clipped at bin `stop`, from the same in LEVELS + 1 levels."""
    clipped = counts[:stop].copy()
    clipped[-1] += counts[stop:].sum()
    level = np.arange(stop) * (LEVELS + 1) // stop
    present = clipped > 0  # also the last bin, which has nothing but what was clipped: it cannot be represented for free
    mass = np.bincount(level, counts[:stop], LEVELS + 1)
    share = np.bincount(level, present, LEVELS + 1)
    quantized = np.where(present, (mass / np.maximum(share, 1))[level], 0)
    total = quantized.sum()
    if total == 0:
        return np.inf
    p, q = clipped[present] / clipped.sum(), quantized[present] / total
    if (q == 0).any():
        return np.inf
    return float((p * np.log(p / q)).sum())


METHODS: dict[str, Callable[[Histogram], float]] = {
    "max": largest,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
"""Ways to find a range, by name."""


def find_range(histogram: Histogram, method: str) -> float:
    """The range of a tensor, above zero. AmsaError for a method that does not exist."""
    if method not in METHODS:
        raise AmsaError(f"--method {method} does not exist; choose {', '.join(METHODS)}")
    if histogram.largest == 0.0:
        return _LEAST
    return max(METHODS[method](histogram), _LEAST)
