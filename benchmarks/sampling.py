"""DeformableSample and a 1x1 convolution against torchvision's deformable convolution: `python benchmarks/sampling.py [--quick]`.

Both compute the same. torchvision gets offsets to which the matches were added, and masks of which the sigmoid was taken;
our op does both itself, within the time and memory that are measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from measure import THREADS, Report, compare, in_new_process, parser, peak_memory, ratio
from torch import Tensor
from torchvision.ops import deform_conv2d

from amsa.errors import AmsaError
from amsa.plugins import torch_ops as _register_ops  # noqa: F401  (imported for torch.ops.amsa)
from amsa.plugins.deformable_sample.reference import sampling_field


@dataclass(frozen=True)
class Case:
    """`side`: of the matching grid; the output's is `scale` times that. As many channels come out as go in."""

    channels: int
    groups: int
    scale: int
    side: int

    def __str__(self) -> str:
        output = self.scale * self.side
        return f"{output}x{output}, C={self.channels}, {self.groups} groups, scale {self.scale}"


CASES = (
    Case(64, 8, 1, 9),
    Case(64, 8, 1, 80),
    Case(64, 8, 1, 320),
    Case(32, 8, 2, 80),
    Case(16, 8, 4, 80),
    Case(40, 1, 1, 80),  # the small variant's three
    Case(32, 1, 2, 80),
    Case(16, 1, 4, 80),
)
QUICK = (Case(16, 8, 2, 8),)


class Inputs:
    """Features, matches as the search leaves them (neighbours mostly show neighbours), offsets of about a pixel."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(0)
        c, groups, scale = case.channels, case.groups, case.scale
        side = scale * case.side
        self.scale, self.groups = scale, groups
        last = torch.channels_last
        self.value = torch.randn(1, c, side, side, generator=generator).contiguous(memory_format=last)
        grid = torch.arange(-2, case.side)
        rows, cols = torch.meshgrid(grid, grid, indexing="ij")
        jumps = torch.randint(-3, 4, (2, len(grid) // 4 + 1, len(grid) // 4 + 1), generator=generator)
        jumps = jumps.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, : len(grid), : len(grid)]
        self.match = (torch.stack((rows, cols)) + jumps).int()[None]
        learned = torch.randn(1, 27 * groups, side, side, generator=generator)
        self.offset_mask = learned.contiguous(memory_format=last)
        self.weight = torch.randn(c, c, 3, 3, generator=generator) / (3 * c**0.5)

    def ours(self) -> Callable[[], Tensor]:
        """Samples, then all nine taps' weights at once."""
        c = self.weight.shape[0]
        weight = self.weight.permute(0, 2, 3, 1).reshape(c, 9 * c, 1, 1).contiguous()

        def run() -> Tensor:
            samples = torch.ops.amsa.deformable_sample(
                self.value, self.match, self.offset_mask, scale=self.scale, groups=self.groups
            )
            return F.conv2d(samples, weight)

        return run

    def torchvision(self) -> Callable[[], Tensor]:
        """Offsets from a convolution's own positions, and masks, both made here."""
        side = self.value.shape[2]
        y, x, mask = sampling_field(self.match, self.offset_mask, scale=self.scale, groups=self.groups)
        own, taps = torch.arange(side), torch.arange(3)
        y = y.unflatten(2, (3, 3)) - (own[:, None] + taps.view(3, 1, 1, 1) - 1)
        x = x.unflatten(2, (3, 3)) - (own + taps.view(3, 1, 1) - 1)
        offset = torch.stack((y, x), 4).reshape(1, -1, side, side)
        mask = mask.reshape(1, -1, side, side).contiguous()
        return partial(deform_conv2d, self.value.contiguous(), offset, self.weight, padding=1, mask=mask)


def _contenders(case: Case) -> dict[str, Callable[[], Callable[[], Tensor]]]:
    inputs = Inputs(case)
    return {"ours": inputs.ours, "torchvision": inputs.torchvision}


def memory_of(case: Case, name: str) -> int:
    """Bytes that a call needs above its inputs; for a process of its own."""
    with torch.inference_mode():
        _contenders(QUICK[0])[name]()()
        work = _contenders(case)[name]()
        before, peak = peak_memory(work)
    return peak - before


def measure_case(report: Report, case: Case, rounds: int) -> list[dict[str, object]]:
    """Both on equal inputs."""
    work = {name: make() for name, make in _contenders(case).items()}
    results = {name: run() for name, run in work.items()}
    difference = float((results["ours"] - results["torchvision"]).abs().max())
    if difference > 1e-3:
        raise AmsaError(f"{case}: the results differ by {difference:g}; they must be equal but for rounding")
    costs = compare(work, rounds)
    memory = {name: in_new_process(memory_of, case, name) / 1e6 for name in work}
    times = ratio(costs["torchvision"], costs["ours"])
    report.bar(f"{case}: times faster", times, at_least=1)
    if case.side > 9:
        report.bar(f"{case}: share of torchvision's memory", memory["ours"] / memory["torchvision"], at_most=1)
    return [
        {"": str(case), "by": name, "wall ms": 1e3 * costs[name].wall, "CPU ms": 1e3 * costs[name].cpu, "peak MB": memory[name]}
        for name in work
    ]


def main() -> None:
    """Entry point."""
    options = parser(__doc__ or "").parse_args()
    torch.set_num_threads(THREADS)
    report = Report("sampling", options.output)
    with torch.inference_mode():
        cases = QUICK if options.quick else CASES
        rows = [row for case in cases for row in measure_case(report, case, 3 if options.quick else 9)]
    report.table(
        "deformable convolution",
        rows,
        "Peak: above the inputs, of a single call in a process of its own.",
    )
    report.write()


if __name__ == "__main__":
    try:
        main()
    except AmsaError as e:
        raise SystemExit(f"error: {e}") from None
