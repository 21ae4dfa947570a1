"""Colours: every matrix, range and depth by the standards' formulas, and back; turns."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from amsa import AmsaError
from amsa.engine.video.pixels import Pixels, to_frame, to_photo, upright

UPRIGHT = (False, False, False)
# AVColorSpace -> Cr in red, Cb and Cr in green, Cb in blue, as BT.709, BT.601 and BT.2020 print them
MATRICES = {1: (1.5748, -0.1873, -0.4681, 1.8556), 6: (1.402, -0.3441, -0.7141, 1.772), 9: (1.4746, -0.1646, -0.5714, 1.8814)}


def flat(format_: str, samples: tuple[int, ...], height: int = 18, width: int = 22) -> av.VideoFrame:
    """A frame of one colour."""
    frame = av.VideoFrame(width, height, format_)
    dtype = np.uint16 if "le" in format_ else np.uint8
    for plane, sample in zip(frame.planes, samples, strict=True):
        plane.update(np.full(plane.buffer_size // dtype().itemsize, sample, dtype).tobytes())
    return frame


def luma(frame: av.VideoFrame, dtype: type = np.uint8) -> NDArray[Any]:
    plane = frame.planes[0]
    return np.frombuffer(plane, dtype).reshape(plane.height, -1)[:, : plane.width]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [8, 10])
def test_rgb_is_what_the_standard_says(matrix: int, full: bool, bits: int) -> None:
    step = 2 ** (bits - 8)
    samples = 110 * step, 140 * step, 90 * step + 1
    black, white, chroma = (0, 256 * step - 1, 256 * step - 1) if full else (16 * step, 219 * step, 224 * step)
    y, cb, cr = (samples[0] - black) / white, (samples[1] - 128 * step) / chroma, (samples[2] - 128 * step) / chroma
    a, b, c, d = MATRICES[matrix]
    frame = flat("yuv420p" if bits == 8 else "yuv420p10le", samples)
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    pixels = Pixels.of(frame, "clip")
    photo = to_photo(frame, pixels, UPRIGHT)
    assert photo.bits == (8 if bits == 8 else 16)
    assert np.abs(photo.rgb - (y + a * cr, y + b * cb + c * cr, y + d * cb)).max() < 3e-5  # the standards round to 4 digits
    back = to_frame(photo.rgb, pixels, frame.format.name)
    assert (back.format.name, back.colorspace, back.color_range) == (frame.format.name, matrix, 2 if full else 1)
    for plane, sample in zip(back.planes, samples, strict=True):
        values = np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16).reshape(plane.height, -1)[:, : plane.width]
        assert (values == sample).all()


def test_luma_comes_back_exactly() -> None:
    rng = np.random.default_rng(0)
    for format_, dtype, most in (("yuv420p", np.uint8, 235), ("yuv422p10le", np.uint16, 940)):
        middle = 512 if dtype == np.uint16 else 128
        frame = flat(format_, (0, middle, middle))
        plane = frame.planes[0]
        plane.update(rng.integers(middle // 8, most, (plane.height, plane.line_size // dtype().itemsize)).astype(dtype).tobytes())
        pixels = Pixels.of(frame, "clip")
        back = to_frame(to_photo(frame, pixels, UPRIGHT).rgb, pixels, format_)
        assert np.array_equal(luma(back, dtype), luma(frame, dtype))


def test_gray_stays_gray() -> None:
    frame = flat("gray", (200,))
    pixels = Pixels.of(frame, "clip")
    photo = to_photo(frame, pixels, UPRIGHT)
    assert photo.gray
    assert np.abs(photo.rgb - 200 / 255).max() < 1e-6
    assert (luma(to_frame(photo.rgb, pixels, "yuv420p")) == 200).all()


def test_the_least_chroma_and_depth_that_keep_the_clips() -> None:
    def of(format_: str) -> tuple[str, int]:
        pixels = Pixels.of(av.VideoFrame(16, 16, format_), "clip")
        return pixels.chroma, pixels.bits

    assert of("yuv420p") == of("nv12") == of("yuvj420p") == ("420", 8)
    assert of("yuv422p10le") == ("422", 10)
    assert of("gbrp") == of("rgb24") == of("bgra") == ("444", 8)
    assert Pixels.of(av.VideoFrame(16, 16, "yuva420p"), "clip").alpha
    assert Pixels.of(av.VideoFrame(16, 16, "yuvj420p"), "clip").full


def test_a_clip_without_tags_is_tagged_as_it_was_read() -> None:
    """Players take untagged clips for BT.709 from 720 rows on, and the result may cross that."""
    assert Pixels.of(av.VideoFrame(32, 270, "yuv420p"), "clip").matrix == 6
    assert Pixels.of(av.VideoFrame(32, 720, "yuv420p"), "clip").matrix == 1


def test_colours_with_no_matrix_are_refused() -> None:
    frame = av.VideoFrame(16, 16, "yuv420p")
    frame.colorspace = 14
    with pytest.raises(AmsaError, match="ICtCp"):
        Pixels.of(frame, "clip")


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [
        ((1, 0, 0, 1), lambda a: a),
        ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),  # a quarter turn clockwise: a phone held upright
        ((-1, 0, 0, -1), lambda a: np.rot90(a, 2)),
        ((0, -1, 1, 0), lambda a: np.rot90(a, 1)),
        ((-1, 0, 0, 1), lambda a: a[:, ::-1]),
        ((0, 1, 1, 0), lambda a: a.swapaxes(0, 1)),
    ],
)
def test_turns(matrix: tuple[int, ...], turns: Any) -> None:
    a, b, c, d = (65536 * v for v in matrix)
    turn = upright(np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32))
    assert turn is not None
    frame = av.VideoFrame.from_ndarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8).astype(np.uint8), "rgb24")
    pixels = Pixels.of(frame, "clip")
    assert np.array_equal(to_photo(frame, pixels, turn).rgb, turns(to_photo(frame, pixels, UPRIGHT).rgb))


def test_other_turns() -> None:
    assert upright(np.array([46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30], np.int32)) is None
