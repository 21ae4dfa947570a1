"""The figures of the model that ships: `make model-card DATA=FOLDER`.

The folder holds photos that the model was not trained on: `castle/` of one scene, `set14/` of anything. Four sets are made
of them, and scored as `amsa evaluate` does it:

- castle: crops on a grid of each photo at half its size (at full size these photos are soft); as reference the window of
  another one that looks most like LR
- synthetic: crops of all photos, with a reference that is warped and recoloured
- set14: the pictures, without a relevant reference
- whole: the castle photos as they are, with the next one as reference
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...engine.images import Photo, read_photo, resize_bicubic, to_array, write_photo
from ...engine.metrics import side_by_side
from ...engine.upscaler import Upscaler
from ...errors import AmsaError
from ..data import decode
from ..layouts import Case, read_layout
from ..synthetic import Warp, synthetic_reference
from .protocol import Protocol, Result, Setting
from .scenes import find_window, grid_crops

Image8 = NDArray[np.uint8]

_CROP, _STEP, _WINDOW = 320, 200, 384
_SYNTHETIC_CROP, _SYNTHETIC_REF = 192, 256

_RELEVANT = Setting("relevant")
_IRRELEVANT = Setting("irrelevant", first=1)
_LR = Setting("LR itself", "lr")


@dataclass(frozen=True)
class TestSet:
    """Cases with their settings. A case's first reference is the relevant one, where there is one."""

    name: str
    cases: list[Case]
    settings: tuple[Setting, ...]


def castle(photos: Sequence[Path], strangers: Sequence[Path], folder: Path) -> TestSet:
    """Crops with the window found for them, and a picture of something else."""
    pictures = [np.asarray(Image.fromarray(decode(p)).reduce(2)) for p in photos]
    cases: list[Case] = []
    for i, photo in enumerate(pictures):
        others = [p for j, p in enumerate(pictures) if j != i]
        for top, left in grid_crops(photo, _CROP, _STEP):
            hr = photo[top : top + _CROP, left : left + _CROP]
            lr = np.asarray(Image.fromarray(hr).resize((_CROP // 4, _CROP // 4), Image.Resampling.BICUBIC))
            w = find_window(lr, others, _WINDOW)
            name = f"{photos[i].stem}-{top}-{left}"
            files = [folder / f"{name}-{kind}.png" for kind in ("hr", "ref")]
            for path, part in zip(files, (hr, others[w.photo][w.top : w.top + _WINDOW, w.left : w.left + _WINDOW]), strict=True):
                Image.fromarray(part).save(path)
            cases.append(Case(name, files[0], (files[1], strangers[len(cases) % len(strangers)])))
    return TestSet("castle", cases, (_RELEVANT, _IRRELEVANT, _LR))


def synthetic(photos: Sequence[Path], folder: Path) -> TestSet:
    """A crop of each photo with a warped and recoloured reference, and the next photo as irrelevant one."""
    cases = []
    for i, path in enumerate(photos):
        rng, photo = np.random.default_rng(i), decode(path)
        corner = tuple(int(rng.integers(side - _SYNTHETIC_CROP + 1)) for side in photo.shape[:2])
        ref, _, _ = synthetic_reference(rng, photo, (corner[0], corner[1]), _SYNTHETIC_CROP, _SYNTHETIC_REF, Warp())
        hr = photo[corner[0] : corner[0] + _SYNTHETIC_CROP, corner[1] : corner[1] + _SYNTHETIC_CROP]
        files = [folder / f"{path.stem}-{kind}.png" for kind in ("hr", "ref")]
        for file, part in zip(files, (hr, ref), strict=True):
            Image.fromarray(part).save(file)
        cases.append(Case(path.stem, files[0], (files[1], photos[(i + 1) % len(photos)])))
    return TestSet("synthetic", cases, (_RELEVANT, _IRRELEVANT, _LR))


def make_sets(data: Path, folder: Path) -> list[TestSet]:
    """The four sets; crops and references are written into the folder."""
    scene, singles = ([case.hr for case in read_layout(data / name, "photos").cases] for name in ("castle", "set14"))
    for name in ("castle", "synthetic"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    others = [Case(p.stem, p, (p, singles[(i + 1) % len(singles)])) for i, p in enumerate(singles)]
    whole = [Case(p.stem, p, (scene[(i + 1) % len(scene)],)) for i, p in enumerate(scene)]
    return [
        castle(scene, singles, folder / "castle"),
        synthetic([*scene, *singles], folder / "synthetic"),
        TestSet("set14", others, (_IRRELEVANT, _LR)),
        TestSet("whole", whole, (_RELEVANT,)),
    ]


@dataclass(frozen=True)
class Row:
    """Mean figures of a set with one kind of reference; gains in dB of PSNR-Y over bicubic."""

    set: str
    reference: str
    count: int
    bicubic: float
    amsa: float
    ssim: float
    worst_gain: float
    worst: str

    @classmethod
    def of(cls, test: TestSet, setting: Setting, results: Sequence[Result]) -> Row:
        worst = min(results, key=lambda r: r.gain)
        figures = np.array([(r.bicubic.psnr, r.amsa.psnr, r.amsa.ssim) for r in results])
        bicubic, amsa, ssim = map(float, figures.mean(0))
        return cls(test.name, setting.label, len(results), bicubic, amsa, ssim, worst.gain, worst.name)


def score(upscaler: Upscaler, sets: Sequence[TestSet], folder: Path) -> Iterator[tuple[Row, list[Result]]]:
    """Score every set with every kind of reference; the pictures are kept in the folder."""
    protocol = Protocol(upscaler)
    for test in sets:
        for setting in test.settings:
            place = folder / test.name / setting.label
            place.mkdir(parents=True, exist_ok=True)

            def keep(name: str, photo: Photo, place: Path = place) -> None:
                write_photo(place / f"{name}.png", photo)

            results = [protocol.run(test.cases, i, setting, keep) for i in range(len(test.cases))]
            yield Row.of(test, setting, results), results


def exhaustive_gain(checkpoint: Path, cases: Sequence[Case]) -> float:
    """By how many dB PSNR-Y exhaustive matching is better than PatchMatch, over cases whose sides are multiples of 32."""
    import torch

    from ...model.checkpoints import load_checkpoint
    from ..data import to_tensor
    from ..restoration import restore
    from .protocol import score as score_picture

    model, _ = load_checkpoint(checkpoint)
    gains = []
    for case in cases:
        hr, ref = decode(case.hr), decode(case.refs[0])
        lr = np.asarray(Image.fromarray(hr).resize((hr.shape[1] // 4, hr.shape[0] // 4), Image.Resampling.BICUBIC))
        batch = {"lr": to_tensor(lr)[None], "ref": to_tensor(ref)[None]}
        found = []
        for matching in ("patch_match", "exhaustive"):
            with torch.inference_mode():
                sr, _, _ = restore(model, batch, list(range(model.config.ref_scales)), matching)
            picture = to_array(Photo(sr[0].permute(1, 2, 0).numpy()))
            found.append(score_picture(picture, hr).psnr)
        gains.append(found[1] - found[0])
    return float(np.mean(gains))


def to_markdown(rows: Sequence[Row]) -> str:
    """A table."""
    lines = ["| set | n | reference | bicubic | ours | gain | worst gain |", "|---|--:|---|--:|--:|--:|--:|"]
    for r in rows:
        gain = r.amsa - r.bicubic
        lines.append(
            f"| {r.set} | {r.count} | {r.reference} | {r.bicubic:.2f} | {r.amsa:.2f} / {r.ssim:.3f} | {gain:+.2f} "
            f"| {r.worst_gain:+.2f} ({r.worst}) |"
        )
    return "\n".join(lines) + "\n"


def picture(test: TestSet, setting: Setting, results: Sequence[Result], pictures: Path, output: Path) -> None:
    """The best, the middle and the worst case of a set: LR, bicubic, ours, reference (at the truth's size), truth."""
    order = sorted(range(len(results)), key=lambda i: results[i].gain)
    rows = []
    for i in (order[-1], order[len(order) // 2], order[0]):
        case, result = test.cases[i], results[i]
        truth = read_photo(case.hr)
        from ...engine.demo import shrink

        lr, bicubic = shrink(truth)
        ours = read_photo(pictures / test.name / setting.label / f"{case.name}.png")
        panels = [("LR", lr), ("bicubic", bicubic), (f"ours {result.gain:+.2f} dB", ours)]
        ref = resize_bicubic(read_photo(case.refs[setting.first]).rgb, truth.height, truth.width)
        panels += [("reference", Photo(ref.clip(0, 1))), ("truth", truth)]
        rows.append(side_by_side([(label, photo.rgb) for label, photo in panels]))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=1) for row in rows]
    write_photo(output, Photo(np.concatenate(padded)))


def main() -> None:
    """Entry point of `make model-card`."""
    parser = argparse.ArgumentParser(prog="make model-card", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("models", type=Path, nargs="+", help="checkpoints; the exhaustive comparison is of the first")
    options = parser.parse_args()
    sets = make_sets(options.data, options.output)
    report: dict[str, list[Any]] = {}
    for model in options.models:
        upscaler = Upscaler(model, skip=0)
        rows = []
        for row, results in score(upscaler, sets, options.output / model.stem):
            test = next(s for s in sets if s.name == row.set)
            setting = next(s for s in test.settings if s.label == row.reference)
            file = options.output / f"{model.stem}-{row.set}-{row.reference.replace(' ', '-')}.png"
            if row.set in ("castle", "synthetic") and setting is _RELEVANT:
                picture(test, setting, results, options.output / model.stem, file)
            rows.append(row)
            print(to_markdown([row]).splitlines()[-1], flush=True)
            report.setdefault(str(model), []).append({**asdict(row), "cases": [asdict(r) for r in results]})
        print(f"\n{model}\n\n{to_markdown(rows)}", flush=True)
    exhaustive = exhaustive_gain(options.models[0], sets[0].cases)
    print(f"exhaustive matching instead of PatchMatch, castle: {exhaustive:+.3f} dB")
    (options.output / "figures.json").write_text(json.dumps({"models": report, "exhaustive": exhaustive}, indent=1))


if __name__ == "__main__":
    try:
        main()
    except AmsaError as e:
        raise SystemExit(f"error: {e}") from None
