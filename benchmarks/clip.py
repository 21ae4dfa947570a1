"""A clip from end to end: `python benchmarks/clip.py PHOTO REFERENCE [SECONDS] [WIDTHxHEIGHT]`.

A pan over PHOTO with a zoom, 12 frames a second, H.264 at CRF 20, with a tone as sound; 10 seconds of 480x270 if nothing is given
(an hour on 2 cores). `amsa upscale` is killed (SIGKILL) as soon as it tells that the first 48 frames are saved and the next one
begins, and started again. REFERENCE: another photo of the scene.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amsa.engine.metrics import luma, psnr

RATE = 12
SAMPLES = 48000


def view(photo: Image.Image, size: tuple[int, int], t: float) -> NDArray[np.uint8]:
    """What the camera sees at t, 0 to 1: nine tenths of the photo's height or eight of its width, moving on and nearer."""
    width = min(0.8 * photo.width, 0.9 * photo.height * size[0] / size[1]) * (1 - 0.1 * t)
    height = width * size[1] / size[0]
    x, y = (photo.width - width) * t, (photo.height - height) * (0.3 + 0.4 * t)
    return np.asarray(photo.resize(size, Image.Resampling.LANCZOS, box=(x, y, x + width, y + height)))


def record(path: Path, frames: Sequence[NDArray[np.uint8]]) -> None:
    """Write a clip with a tone of 440 Hz."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"crf": "20"})
        video.height, video.width, video.pix_fmt = *frames[0].shape[:2], "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLES, layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(video.encode())
        tone = np.sin(2 * np.pi * 440 / SAMPLES * np.arange(len(frames) * SAMPLES // RATE)).astype(np.float32) / 4
        for first in range(0, len(tone), 1024):
            sound = av.AudioFrame.from_ndarray(tone[None, first : first + 1024], "fltp", "mono")
            sound.sample_rate, sound.pts = SAMPLES, first
            container.mux(audio.encode(sound))
        container.mux(audio.encode())


def sound(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def upscale(command: Sequence[str], kill: bool) -> str:
    """Run a command, which with `kill` ends as soon as frame 49 begins; what it printed last."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        line = ""
        for line in process.stdout:
            print(line, end="", flush=True)
            if kill and line.startswith("frame 49 of "):
                process.kill()
    return line


def main() -> None:
    """Prints what `amsa upscale` says, and how the result compares."""
    names, options = sys.argv[1:3], sys.argv[3:]
    seconds = float(options[0]) if options else 10
    sides = [int(side) for side in (options[1] if len(options) > 1 else "480x270").split("x")]
    size, count = (sides[0], sides[1]), round(RATE * seconds)
    with Image.open(names[0]) as file:
        photo = file.convert("RGB")
    with tempfile.TemporaryDirectory() as folder:
        clip, result = Path(folder, "clip.mp4"), Path(folder, "result.mp4")
        record(clip, [view(photo, size, i / (count - 1)) for i in range(count)])
        command = [sys.executable, "-m", "amsa", "upscale", str(clip), names[1], "-o", str(result)]
        upscale(command, kill=True)
        if result.exists():
            print("done before it could be killed")
        else:
            upscale(command, kill=False)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        left = {path.name for path in Path(folder).iterdir()} - {clip.name, result.name}
        qualities, times = [], []
        with av.open(str(clip)) as source, av.open(str(result)) as made:
            pairs = zip(source.decode(video=0), made.decode(video=0), strict=True)
            for i, (small, large) in enumerate(pairs):
                times.append(small.time == large.time)
                if i % 8 == 0:
                    truth = luma(view(photo, (4 * size[0], 4 * size[1]), i / (count - 1)))
                    bicubic = small.reformat(4 * size[0], 4 * size[1], "rgb24", interpolation="BICUBIC").to_ndarray()
                    qualities.append([psnr(truth, luma(frame)) for frame in (bicubic, large.to_ndarray(format="rgb24"))])
        before, after = np.mean(qualities, 0)
        equal = "equal" if sound(clip) == sound(result) else "DIFFERS"
        print(f"{len(times)} frames, {sum(times)} at their times; sound {equal}; left beside the result: {left or 'nothing'}")
        cpu = (used.ru_utime + used.ru_stime) / count
        print(f"PSNR-Y {before:.2f} dB by bicubic, {after:.2f} dB; {cpu:.1f} CPU seconds a frame")


if __name__ == "__main__":
    main()
