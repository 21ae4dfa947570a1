"""The paper's experiments as lists of settings, and its numbers to compare with."""

from __future__ import annotations

from ...errors import AmsaError
from ..layouts import Layout
from .protocol import Setting

EXPERIMENTS = {
    "table1": "Table 1: one row for each dataset",
    "relevance": "Table 3: references of falling relevance, and the LR picture itself",
    "misalignment": "Figure 7: the reference shows things gamma times larger than LR, where the network upscales x4",
    "robustness": "the given reference against an irrelevant one and the LR picture itself",
}

GAMMAS = (8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0)
"""Scale of the reference against LR. The paper's text gives no list, only that pictures are halved (so that 8 is the
reference as it is) and that its curve goes on below 4; its figure is not in the text."""

PAPER_TABLE_1 = {
    "cufed5": (28.50, 0.849),
    "sun80": (30.29, 0.819),
    "urban100": (26.18, 0.789),
    "manga109": (30.57, 0.914),
}
"""PSNR and SSIM of AMSA-rec."""
PAPER_TABLE_3 = {"L1": (28.58, 0.849), "L2": (27.52, 0.816), "L3": (27.25, 0.809), "L4": (27.04, 0.803), "LR": (26.63, 0.789)}
"""PSNR and SSIM of AMSA-rec on CUFED5. L1 is the same run as in Table 1, where the paper prints 28.50."""

_DEFAULT = {"urban100": "lr", "photos": "lr", "manga109": "irrelevant"}  # by kind; the others have references


def settings(experiment: str, layout: Layout, refs: int = 1) -> list[Setting]:
    """The settings of an experiment on a dataset.

    Args:
        experiment: one of `EXPERIMENTS`.
        layout: the dataset.
        refs: how many of a case's references are used at once (not by "relevance", which takes one at a time).

    Raises:
        AmsaError: no such experiment, or it needs references that this kind of dataset does not have.
    """
    if experiment not in EXPERIMENTS:
        raise AmsaError(f"--experiment {experiment} does not exist; choose {', '.join(EXPERIMENTS)}")
    levels = max(len(case.refs) for case in layout.cases)
    if experiment == "table1":
        if reference := _DEFAULT.get(layout.kind):
            return [Setting({"lr": "LR as reference", "irrelevant": "another picture as reference"}[reference], reference)]
        return [Setting("1 reference" if min(refs, levels) == 1 else f"{min(refs, levels)} references", count=refs)]
    if experiment == "robustness":
        given = [Setting("given", count=refs)] if levels else []
        return [*given, Setting("irrelevant", "irrelevant"), Setting("LR", "lr")]
    if not levels:
        raise AmsaError(f"--experiment {experiment} needs references of their own, which {layout.kind} has not; give CUFED5")
    if experiment == "relevance":
        return [*(Setting(f"L{i + 1}", first=i) for i in range(levels)), Setting("LR", "lr")]
    return [Setting(f"gamma {gamma:g}", count=refs, gamma=gamma) for gamma in GAMMAS]


def paper(experiment: str, kind: str, setting: Setting) -> tuple[float, float] | None:
    """PSNR and SSIM that the paper prints for AMSA-rec there, or None."""
    if experiment == "table1" and setting.count == 1:
        return PAPER_TABLE_1.get(kind)
    if experiment == "relevance" and kind == "cufed5":
        return PAPER_TABLE_3.get(setting.label)
    return None
