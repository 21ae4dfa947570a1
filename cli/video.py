"""`amsa upscale` of a clip."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .terminal import err, out, print_json, progress_bar, require_extra, say_backend

if TYPE_CHECKING:
    from ..engine.video.run import Progress

_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".wmv", ".asf"}
_SUFFIXES |= {".flv", ".3gp", ".3g2", ".ogv", ".mxf", ".y4m", ".264", ".h264", ".265", ".hevc", ".ivf"}


def is_clip(path: Path) -> bool:
    """By its suffix: such files are read as clips."""
    return path.suffix.lower() in _SUFFIXES


def upscale_clip(
    clip: Path,
    refs: list[Path],
    ref_folder: Path | None,
    max_refs: int | None,
    output: Path,
    codec: str | None,
    crf: int | None,
    seed: int,
    as_json: bool,
    arguments: dict[str, Any],
) -> None:
    """Upscale one clip; `arguments`: of `Upscaler`."""
    require_extra("video", "av")
    from ..engine.candidates import MAX_REFS, candidates_below
    from ..engine.details import short_names
    from ..engine.upscaler import Upscaler
    from ..engine.video import upscale_video
    from ..engine.video.run import SEGMENT

    candidates = refs
    if ref_folder is not None:
        candidates = candidates_below(ref_folder, refs)
        max_refs = MAX_REFS if max_refs is None else max_refs
    upscaler = Upscaler(**arguments)
    if not as_json:
        say_backend(upscaler)

    def line(done: int, total: int, what: str) -> None:
        """Where there is no bar: a line whenever a segment is saved."""
        if done and done % SEGMENT == 0:
            err.print(what)

    def chosen(names: list[str]) -> None:
        """Before hours are spent on them."""
        if not as_json:
            err.print(f"references: {', '.join(short_names(names))}; of {len(candidates)} candidates")

    settings: dict[str, Any] = {"codec": codec or "h264", "crf": crf, "seed": seed, "max_refs": max_refs, "chosen": chosen}
    try:
        with progress_bar(as_json) as bar:
            progress: Progress | None = None if as_json else bar or line
            report = upscale_video(upscaler, clip, candidates, output, progress=progress, **settings)
    except KeyboardInterrupt:
        err.print("interrupted; the same command goes on from the last segment that was saved")
        sys.exit(130)
    if as_json:
        print_json(report.as_dict())
        return
    found = f", {report.resumed} of them done before" if report.resumed else ""
    out.print(f"{output}: {report.width}x{report.height}, {report.frames} frames{found} in {report.seconds:.1f} s")
