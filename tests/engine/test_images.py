import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from amsa.engine.images import (
    Photo,
    check_format,
    check_writable,
    encode_photo,
    from_array,
    read_photo,
    read_thumbnail,
    require_size,
    resize_bicubic,
    to_array,
    write_photo,
)
from amsa.errors import AmsaError

PICTURES = Path(__file__).parent / "pictures"
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION = 0x0112
SHAPES = {"gray": (5, 7), "gray+alpha": (5, 7, 2), "rgb": (5, 7, 3), "rgba": (5, 7, 4)}


@pytest.fixture(autouse=True)
def _no_stray_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def noise(shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def smooth(height=24, width=32):
    y, x = np.mgrid[0:height, 0:width]
    return np.dstack([x * 7, y * 9, x + y]).astype(np.uint8)


def make_exif(orientation=None, **tags):
    exif = Image.Exif()
    exif[0x010F] = tags.get("make", "Maker")
    exif[0x8298] = "Copyright me"
    exif[0x8769] = {0x9003: "2024:01:02 03:04:05", 0x927C: b"maker note \x00\x01"}
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    if orientation:
        exif[ORIENTATION] = orientation
    return exif.tobytes()


def exif_of(data):
    exif = Image.Exif()
    exif.load(data)
    return exif


def assert_exif_kept(data):
    exif = exif_of(data)
    assert (exif[0x010F], exif[0x8298]) == ("Maker", "Copyright me")
    details, gps = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    assert (details[0x9003], details[0x927C]) == ("2024:01:02 03:04:05", b"maker note \x00\x01")
    assert (gps[1], gps[2]) == ("N", (1, 2, 3))
    assert exif.get(ORIENTATION, 1) == 1


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks, bits=8, colour=2):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def png_16(samples, *chunks):
    """A 16-bit PNG without row filters: an encoder of its own, so that it does not share a mistake with the module."""
    height, width, channels = np.atleast_3d(samples).shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    return png(width, height, *chunks, chunk(b"IDAT", zlib.compress(rows)), bits=16, colour=colour)


def tiff(samples, **changes):
    """An uncompressed little-endian TIFF. ``changes`` are tags, as t274=6."""
    height, width, channels = np.atleast_3d(samples).shape
    tags = {256: width, 257: height, 258: 8 * samples.itemsize, 259: 1, 262: 1 if channels < 3 else 2}
    tags |= {277: channels, 278: height, 279: samples.nbytes, 339: 1}
    tags |= {338: 2} if channels in (2, 4) else {}
    tags |= {int(tag[1:]): value for tag, value in changes.items()}
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags[273] = start + 4 * channels
    entries = b""
    for tag, value in sorted(tags.items()):
        if tag in (258, 339) and channels > 2:
            offset = start if tag == 258 else start + 2 * channels
            entries += struct.pack("<HHII", tag, 3, channels, offset)
        elif tag in (258, 339) and channels == 2:
            entries += struct.pack("<HHIHH", tag, 3, 2, value, value)
        else:
            entries += struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + struct.pack("<H", tags[258]) * channels + struct.pack("<H", tags[339]) * channels + samples.tobytes()


@pytest.fixture
def save(tmp_path):
    def save(data, name="photo.png"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return save


def error_of(call, *args, **options):
    with pytest.raises(AmsaError) as caught:
        call(*args, **options)
    message = str(caught.value)
    assert message.isprintable()  # one line
    return message


# ------------------------------------------------------------------------------------------------ arrays and photos


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", SHAPES)
def test_array_round_trip(kind, dtype):
    samples = noise(SHAPES[kind], dtype)
    photo = from_array(samples)
    assert (photo.height, photo.width) == (5, 7)
    assert photo.rgb.dtype == np.float32
    assert photo.rgb.shape == (5, 7, 3)
    assert photo.rgb.flags.c_contiguous
    assert photo.gray == kind.startswith("gray")
    assert photo.bits == 8 * samples.itemsize
    assert (photo.alpha is not None) == kind.endswith(("alpha", "rgba"))
    back = to_array(photo)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, samples)


def test_array_range_and_channels():
    photo = from_array(np.array([[[0, 128, 255, 51]]], np.uint8))
    np.testing.assert_allclose(photo.rgb[0, 0], [0, 128 / 255, 1], rtol=1e-6)
    np.testing.assert_allclose(photo.alpha, [[0.2]], rtol=1e-6)
    np.testing.assert_array_equal(from_array(np.array([[7]], np.uint8)).rgb[0, 0] * 255, [7, 7, 7])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
def test_every_value_survives(dtype):
    samples = np.arange(2 ** (8 * np.dtype(dtype).itemsize)).reshape(16, -1).astype(dtype)
    np.testing.assert_array_equal(to_array(from_array(samples)), samples)


def test_to_array_clips_and_rounds_half_up():
    values = np.array([-0.5, 0.49 / 255, 0.5 / 255, 1.49 / 255, 1.51 / 255, 2], np.float32)
    photo = Photo(np.repeat(values[None, :, None], 3, 2), alpha=values[None, :])
    np.testing.assert_array_equal(to_array(photo)[0], np.repeat([[0], [0], [1], [1], [2], [255]], 4, 1))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), ("float32", "uint8", "uint16")),
        (np.zeros((4, 4), np.int16), ("int16", "uint8")),
        (np.zeros((4, 4), np.uint32), ("uint32", "uint8")),
        (np.zeros((4, 4), bool), ("bool", "uint8")),
        (np.zeros((3, 4, 5), np.uint8), ("(3, 4, 5)", "(H, W, C)")),
        (np.zeros((2, 4, 5, 3), np.uint8), ("(2, 4, 5, 3)", "(H, W, C)")),
        (np.zeros(4, np.uint8), ("(4,)", "(H, W, C)")),
        (np.zeros((0, 4), np.uint8), ("(0, 4)",)),
        ([[1, 2]], ("list", "numpy")),
        (Image.new("CMYK", (4, 4)), ("CMYK", "RGB")),
        (Image.new("F", (4, 4)), ("32-bit",)),
        (Image.new("HSV", (4, 4)), ("HSV", "RGB")),
    ],
)
def test_unsuitable_array(array, words):
    message = error_of(from_array, array, "the left frame")
    assert message.startswith("the left frame ")
    assert all(word in message for word in words)


def test_pillow_image_is_turned_and_keeps_metadata():
    samples = noise((4, 6, 3))
    file = io.BytesIO(encoded(Image.fromarray(samples), "PNG", exif=make_exif(6), icc_profile=ICC))
    photo = from_array(Image.open(file))
    np.testing.assert_array_equal(to_array(photo), np.rot90(samples, -1))
    assert photo.icc == ICC
    assert_exif_kept(photo.exif)


def test_require_size():
    photo = from_array(np.zeros((30, 40), np.uint8))
    require_size(photo, "ref.png", 30)
    message = error_of(require_size, photo, "ref.png", 31)
    assert message.startswith("ref.png is 40x30 pixels; at least 31 on each side")


# ---------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("kind", SHAPES)
def test_read_16_bit_png(save, kind):
    samples = noise(SHAPES[kind], np.uint16)
    photo = read_photo(save(png_16(samples)))
    assert photo.gray == kind.startswith("gray")
    np.testing.assert_array_equal(to_array(photo), samples)


@pytest.mark.parametrize("kind", ["gray", "rgb", "rgba"])
def test_read_16_bit_tiff(save, kind):
    samples = noise(SHAPES[kind], np.uint16)
    np.testing.assert_array_equal(to_array(read_photo(save(tiff(samples), "a.tif"))), samples)


@pytest.mark.parametrize("kind", ["rgb", "rgba"])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_read_16_bit_colour_of_opencv(save, kind, suffix):
    samples = noise(SHAPES[kind], np.uint16)
    data = cv2.imencode(suffix, samples[..., [2, 1, 0, 3][: samples.shape[2]]])[1].tobytes()
    np.testing.assert_array_equal(to_array(read_photo(save(data, "a" + suffix))), samples)


def test_read_big_endian_16_bit_gray_tiff(save):
    samples = noise((5, 7), np.uint16)
    data = encoded(Image.frombytes("I;16B", (7, 5), samples.astype(">u2").tobytes()), "TIFF")
    np.testing.assert_array_equal(to_array(read_photo(save(data, "a.tif"))), samples)


def test_16_bit_png_colour_key_is_alpha(save):
    for samples, key in [(noise((5, 7, 3), np.uint16), ">HHH"), (noise((5, 7), np.uint16), ">H")]:
        value = np.atleast_1d(samples[2, 3])
        photo = read_photo(save(png_16(samples, chunk(b"tRNS", struct.pack(key, *map(int, value))))))
        expected = np.ones((5, 7))
        expected[2, 3] = 0
        np.testing.assert_array_equal(photo.alpha, expected)
        np.testing.assert_array_equal(to_array(photo)[..., :-1], np.atleast_3d(samples))


def test_first_frame_of_a_16_bit_animation(save):
    samples = [noise((5, 7, 3), np.uint16, seed) for seed in range(2)]
    control = [struct.pack(">IIIIIHHBB", number, 7, 5, 0, 0, 1, 10, 0, 0) for number in (0, 1)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples[1])
    animated = png_16(samples[0], chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"fcTL", control[0]))
    second = chunk(b"fcTL", control[1]) + chunk(b"fdAT", struct.pack(">I", 2) + zlib.compress(rows))
    with pytest.warns(UserWarning, match="several frames"):
        photo = read_photo(save(animated[:-12] + second + animated[-12:]))
    np.testing.assert_array_equal(to_array(photo), samples[0])


def test_chunk_that_claims_gigabytes_does_not_reach_opencv(save, monkeypatch):
    data = png_16(noise((5, 7, 3), np.uint16))
    at = data.index(b"IDAT")
    monkeypatch.setattr(cv2, "imdecode", lambda *args: pytest.fail("decoded"))
    message = error_of(read_photo, save(data[: at - 4] + struct.pack(">I", 0xF0000000) + data[at:]))
    assert "cut short or damaged" in message


def palette_image():
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    return image


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.new("1", (2, 1), 1), {}, np.full((1, 2), 255)),
        (Image.new("1", (2, 1), 1), {"transparency": 1}, np.full((1, 2, 2), [255, 0])),
        (Image.new("L", (2, 1), 9), {"transparency": 9}, np.full((1, 2, 2), [9, 0])),
        (Image.new("LA", (2, 1), (9, 5)), {}, np.full((1, 2, 2), [9, 5])),
        (Image.new("RGB", (2, 1), (1, 2, 3)), {"transparency": (1, 2, 3)}, np.full((1, 2, 4), [1, 2, 3, 0])),
        (palette_image(), {}, [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]),
        (palette_image(), {"transparency": 1}, [[[10, 20, 30, 255], [40, 50, 60, 0], [70, 80, 90, 255]]]),
        (palette_image(), {"transparency": b"\x07\x08"}, [[[10, 20, 30, 7], [40, 50, 60, 8], [70, 80, 90, 255]]]),
    ],
)
def test_read_png_modes(save, image, options, expected):
    np.testing.assert_array_equal(to_array(read_photo(save(encoded(image, "PNG", **options)))), expected)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "WEBP", "PNG"])
def test_read_lossless_formats(save, kind):
    image = Image.fromarray(smooth())
    image = image.quantize(64) if kind == "GIF" else image
    options = {"lossless": True} if kind == "WEBP" else {}
    photo = read_photo(save(encoded(image, kind, **options), "name.does.not.matter"))
    np.testing.assert_array_equal(to_array(photo), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("kind", "gray"), [("JPEG", True), ("JPEG", False), ("AVIF", False), ("WEBP", False)])
def test_read_lossy_formats(save, kind, gray):
    image = Image.fromarray(smooth()).convert("L" if gray else "RGB")
    photo = read_photo(save(encoded(image, kind, quality=95)))
    assert photo.gray == gray
    assert np.abs(to_array(photo).astype(int) - np.asarray(image)).max() < 16


def oriented(kind, samples, orientation):
    if kind == "png 8":
        return encoded(Image.fromarray(samples), "PNG", exif=make_exif(orientation))
    if kind == "png 16":
        return png_16(samples, chunk(b"eXIf", make_exif(orientation)[6:]))
    return tiff(samples, t274=orientation)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png 8", "png 16", "tiff 8", "tiff 16"])
def test_orientation_is_applied_once(save, kind, orientation):
    samples = noise((5, 7, 3), np.uint16 if kind.endswith("16") else np.uint8)
    photo = read_photo(save(oriented(kind, samples, orientation)))
    for channel in range(3):  # Pillow turns each channel for comparison, in a mode that holds 16 bits
        image = Image.fromarray(samples[..., channel].astype(np.int32))
        image.getexif()[ORIENTATION] = orientation
        np.testing.assert_array_equal(to_array(photo)[..., channel], np.asarray(ImageOps.exif_transpose(image)))
    assert photo.exif is None or exif_of(photo.exif).get(ORIENTATION, 1) == 1


def test_orientation_of_jpeg_and_avif(save):
    samples = smooth()
    for kind in ("JPEG", "AVIF", "WEBP"):
        photo = read_photo(save(encoded(Image.fromarray(samples), kind, quality=95, exif=make_exif(8))))
        assert np.abs(to_array(photo).astype(int) - np.rot90(samples)).max() < 32
        assert_exif_kept(photo.exif)


@pytest.mark.parametrize(("order", "prefix"), [("<", b"Exif\0\0"), (">", b"Exif\0\0"), ("<", b"Exif\0\0Exif\0\0")])
def test_exif_keeps_every_other_byte(save, order, prefix):
    entries = struct.pack(order + "HHII", 0x010F, 2, 4, 0x41424300)
    entries += struct.pack(order + "HHIHH", ORIENTATION, 3, 1, 3, 0)
    entries += struct.pack(order + "HHII", 0xC4A5, 7, 8, 50)
    exif = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 3) + entries
    exif += struct.pack(order + "I", 0) + b"PrintIM\0" + b"what points nowhere"
    samples = noise((4, 4, 3))
    photo = read_photo(save(encoded(Image.fromarray(samples), "PNG", exif=prefix + exif)))
    np.testing.assert_array_equal(to_array(photo), samples[::-1, ::-1])
    at = exif.index(struct.pack(order + "H", ORIENTATION)) + 8
    assert photo.exif == b"Exif\0\0" + exif[:at] + struct.pack(order + "H", 1) + exif[at + 2 :]


def test_damaged_exif_is_left_out_with_a_warning(save):
    samples = noise((4, 4, 3))
    path = save(encoded(Image.fromarray(samples), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"))
    with pytest.warns(UserWarning, match=r"EXIF data of .*photo\.png is damaged"):
        photo = read_photo(path)
    assert photo.exif is None
    np.testing.assert_array_equal(to_array(photo), samples)


def animation(kind):
    frames = [Image.fromarray(noise((8, 8, 3), seed=seed)) for seed in range(2)]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "GIF"])
def test_several_frames_warn(save, kind):
    path = save(animation(kind))
    with pytest.warns(UserWarning, match=r"photo\.png has several frames"):
        photo = read_photo(path)
    if kind != "GIF":
        np.testing.assert_array_equal(to_array(photo), noise((8, 8, 3)))


def test_the_second_picture_of_a_phone_jpeg_is_no_frame(save):
    assert read_photo(save(animation("MPO"))).width == 8  # a warning would be an error here


def test_10_bit_avif_warns(save):
    data = cv2.imencode(".avif", np.full((32, 32, 3), 600, np.uint16), [cv2.IMWRITE_AVIF_DEPTH, 10])[1].tobytes()
    with pytest.warns(UserWarning, match="10 or 12 bits"):
        photo = read_photo(save(data, "a.avif"))
    assert photo.bits == 8


def test_heic_of_a_phone(save):
    """Upright by its own box, whatever its EXIF says; see pictures/README.md."""
    pytest.importorskip("pi_heif")
    photo = read_photo(PICTURES / "phone.heic")
    y, x = np.mgrid[:48, :64]
    stored = np.dstack([x * 255 // 63, y * 255 // 47, (x + y) * 255 // 110])
    assert np.abs(to_array(photo).astype(int) - np.rot90(stored, -1)).max() < 8
    assert (photo.bits, exif_of(photo.exif)[ORIENTATION]) == (8, 1)
    assert ImageCms.getProfileDescription(io.BytesIO(photo.icc)).startswith("sRGB")
    assert read_thumbnail(PICTURES / "phone.heic", 32).shape == (32, 24, 3)
    with pytest.warns(UserWarning, match=r"two\.heic has several frames; only the main one is read"):
        assert read_photo(PICTURES / "two.heic").width == 64  # the second, and not the first, which has 32
    with pytest.warns(UserWarning, match=r"ten_bits\.heic has 10 or 12 bits"):
        assert read_photo(PICTURES / "ten_bits.heic").bits == 8
    data = (PICTURES / "phone.heic").read_bytes()
    assert "damaged" in error_of(read_photo, save(data[:-200], "cut.heic"))


def test_heic_without_a_reader(save, monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    path = save((PICTURES / "phone.heic").read_bytes(), "IMG_0001.HEIC")
    assert error_of(read_photo, path) == f"{path} is HEIC; to read it: pip install 'amsa[heic]', or save it as PNG or JPEG"
    avif = encoded(Image.fromarray(smooth()), "AVIF")  # both call themselves mif1 too
    assert b"mif1" in avif[:40]
    assert read_photo(save(avif)).width == 32


def test_one_pixel(save):
    assert to_array(read_photo(save(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")))).tolist() == [[[1, 2, 3]]]


def premultiplied():
    samples = noise((5, 7, 4), np.uint16)
    samples[..., :3] //= 4
    samples[..., 3] = 30000
    return tiff(samples, t338=1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"no picture at all", "damaged or no picture in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture in a known format"),
        (encoded(Image.fromarray(smooth()), "PNG")[:10], "damaged"),
        (encoded(Image.fromarray(noise((9, 9, 3))), "PNG")[:-60], "cut short or damaged"),
        (encoded(Image.fromarray(smooth()), "JPEG")[:-200], "cut short or damaged"),
        (encoded(Image.fromarray(smooth()), "TIFF")[:-60], "cut short or damaged"),
        (encoded(Image.fromarray(smooth()), "BMP")[:-60], "cut short or damaged"),
        (encoded(Image.fromarray(smooth()), "WEBP")[:-20], "damaged"),
        (encoded(Image.fromarray(smooth()), "AVIF")[:-20], "damaged"),
        (png_16(noise((9, 9, 3), np.uint16))[:-60], "cut short or damaged"),
        (tiff(noise((9, 9, 3), np.uint16))[:-60], "cut short or damaged"),
        (png_16(noise((9, 9), np.uint16), chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 0, 0, 0, 0))), "its header"),
        (png(10_000, 10_000), "10000x10000 pixels; at most 64 megapixels"),
        (png(60_000, 60_000), "too large"),
        (encoded(Image.new("CMYK", (4, 4)), "JPEG"), "is CMYK; convert it to RGB"),
        (encoded(Image.new("CMYK", (4, 4)), "TIFF"), "is CMYK; convert it to RGB"),
        (encoded(Image.new("LAB", (4, 4)), "TIFF"), "is LAB; convert it to RGB"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "float"),
        (encoded(Image.new("I", (4, 4)), "TIFF"), "save it with 8 or 16 bits"),
        (tiff(noise((4, 4), np.uint16), t339=2), "signed"),
        (tiff(noise((4, 4)), t339=2), "signed"),
        (tiff(noise((4, 4), np.uint16), t258=12), "odd-sized"),
        (tiff(noise((4, 4), np.uint16), t262=0), "white as 0"),
        (premultiplied(), "unusual way; save it as a 16-bit PNG"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:4].hex(),
)
def test_bad_file(save, data, words):
    path = save(data, "my photo.png")
    message = error_of(read_photo, path)
    assert message.startswith(f"{path} ")
    assert words in message


def test_bad_path(tmp_path):
    assert "does not exist" in error_of(read_photo, tmp_path / "gone.png")
    (tmp_path / "file").touch()
    assert "does not exist" in error_of(read_photo, tmp_path / "file" / "gone.png")
    assert "is a folder" in error_of(read_photo, tmp_path)
    assert "regular file" in error_of(read_photo, "/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    assert "regular file" in error_of(read_photo, tmp_path / "pipe")
    error_of(read_photo, "null\0byte.png")
    error_of(read_photo, "x" * 5000)
    assert "'two\\nlines.png'" in error_of(read_photo, "two\nlines.png")


def test_no_permission(save):
    path = save(encoded(Image.new("L", (4, 4)), "PNG"))
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        message = error_of(read_photo, path)
    finally:
        os.seteuid(user)
    assert "permission denied" in message


def test_max_pixels(save):
    path = save(encoded(Image.new("L", (40, 30)), "PNG"))
    assert read_photo(path, max_pixels=1200).width == 40
    assert "40x30" in error_of(read_photo, path, max_pixels=1199)


def test_too_large_is_not_decoded(save, monkeypatch):
    path = save(encoded(Image.new("L", (40, 30)), "PNG"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    error_of(read_photo, path, max_pixels=1199)


FUZZED = {
    "png 8": encoded(Image.fromarray(smooth(8, 9)), "PNG", exif=make_exif(6), icc_profile=ICC[:128]),
    "png 16": png_16(noise((6, 6, 4), np.uint16), chunk(b"eXIf", make_exif(3)[6:])),
    "jpeg": encoded(Image.fromarray(smooth(16, 16)), "JPEG", exif=make_exif(5)),
    "tiff": encoded(Image.fromarray(smooth(8, 9)), "TIFF", compression="tiff_lzw"),
    "tiff 16": tiff(noise((6, 6, 3), np.uint16), t274=7),
    "gif": animation("GIF"),
}


@pytest.mark.parametrize("kind", FUZZED)
def test_mutated_files_give_a_photo_or_an_error(save, kind):
    rng = np.random.default_rng(list(kind.encode()))
    messages = []
    for _ in range(60):
        data = np.frombuffer(FUZZED[kind], np.uint8).copy()
        for at in rng.integers(0, min(len(data), 400), rng.integers(1, 6)):
            data[at] = rng.integers(0, 256)
        path = save(data[: rng.integers(20, len(data))].tobytes() if rng.random() < 0.2 else data.tobytes())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                photo = read_photo(path)
            except AmsaError as error:
                messages.append(str(error))
            else:
                assert to_array(photo).shape[:2] == (photo.height, photo.width)
        assert all(str(path) in str(warning.message) for warning in caught)  # ours, not Pillow's
    assert messages
    assert all(message.isprintable() for message in messages)


def test_a_content_in_memory_is_read_and_made_as_a_file_is(tmp_path):
    photo = from_array(noise((5, 7, 4), np.uint16))
    for name in ("photo.png", "photo.tif"):
        write_photo(tmp_path / name, photo)
        content = (tmp_path / name).read_bytes()
        assert encode_photo(f"no/such/folder/{name}", photo) == content
        read = read_photo("no/such/file", content=content)
        np.testing.assert_array_equal(to_array(read), to_array(read_photo(tmp_path / name)))
    half = encode_photo("a.png", photo)[:100]
    for wrong, words in ((b"", "LR is empty"), (b"hello", "LR is damaged or no picture"), (half, "LR is cut short")):
        with pytest.raises(AmsaError, match=words):
            read_photo("LR", content=wrong)
    with pytest.raises(AmsaError, match="LR is 7x5 pixels; at most 3e-05 megapixels"):
        read_photo("LR", content=encode_photo("a.png", photo), max_pixels=30)


# ---------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
def test_lossless_round_trip(tmp_path, kind, dtype, suffix):
    samples = noise(SHAPES[kind], dtype)
    path = tmp_path / f"a{suffix}"
    if (kind, dtype, suffix.lower()[:4]) == ("gray+alpha", np.uint16, ".tif"):
        assert "write a .png" in error_of(write_photo, path, from_array(samples))
        return
    photo = from_array(samples)
    write_photo(path, Photo(photo.rgb, photo.alpha, photo.gray, photo.bits, ICC, make_exif()))
    back = read_photo(path)
    assert (back.bits, back.gray) == (photo.bits, photo.gray)
    np.testing.assert_array_equal(to_array(back), samples)
    assert back.icc == ICC
    assert_exif_kept(back.exif)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["gray", "rgb", "rgba"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_other_software_reads_16_bits(tmp_path, kind, suffix):
    samples = noise(SHAPES[kind], np.uint16)
    path = tmp_path / f"a{suffix}"
    write_photo(path, from_array(samples))
    expected = samples if kind == "gray" else samples[..., [2, 1, 0, 3][: samples.shape[2]]]
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), expected)
    with Image.open(path) as image:
        image.load()
        pixels = np.asarray(image)
    np.testing.assert_array_equal(pixels, samples if kind == "gray" else samples >> 8)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".avif", ".bmp"])
@pytest.mark.parametrize("gray", [True, False])
def test_8_bit_formats(tmp_path, suffix, gray):
    samples = smooth()[..., 2] if gray else smooth()
    path = tmp_path / f"a{suffix}"
    write_photo(path, from_array(samples))
    back = read_photo(path)
    assert back.gray == (gray and suffix not in (".webp", ".avif"))  # those two have no gray
    pixels = np.rint(back.rgb * 255)[..., 0] if gray else to_array(back)
    assert np.abs(pixels.astype(int) - samples).max() <= (0 if suffix == ".bmp" else 20)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif"])
def test_8_bit_metadata(tmp_path, suffix):
    write_photo(tmp_path / f"a{suffix}", Photo(from_array(smooth()).rgb, icc=ICC, exif=make_exif()))
    back = read_photo(tmp_path / f"a{suffix}")
    assert back.icc == ICC
    assert_exif_kept(back.exif)


def test_jpeg_quality_and_chroma(tmp_path):
    write_photo(tmp_path / "a.jpg", from_array(smooth()))
    expected = Image.open(io.BytesIO(encoded(Image.fromarray(smooth()), "JPEG", quality=95, subsampling=0)))
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.quantization == expected.quantization
        assert {layer[1:3] for layer in image.layer} == {(1, 1)}


@pytest.mark.parametrize("suffix", [".webp", ".avif"])
def test_alpha_of_lossy_formats(tmp_path, suffix):
    samples = np.dstack([smooth(), np.where(smooth()[..., 0] > 90, 255, 0).astype(np.uint8)])
    write_photo(tmp_path / f"a{suffix}", from_array(samples))
    alpha = to_array(read_photo(tmp_path / f"a{suffix}"))[..., 3].astype(int)
    assert np.abs(alpha - samples[..., 3]).max() < 16


def test_bmp_says_that_it_drops_metadata(tmp_path):
    with pytest.warns(UserWarning, match="BMP holds no ICC profile or EXIF"):
        write_photo(tmp_path / "a.bmp", Photo(from_array(smooth()).rgb, icc=ICC))
    assert read_photo(tmp_path / "a.bmp").icc is None


def test_jpeg_exif_goes_into_a_tiff_without_its_pixel_tags(tmp_path):
    exif = exif_of(make_exif())
    exif[0x0142] = 64  # TileWidth: in a TIFF this would say that the pixels are tiled
    exif[0x0103] = 5
    write_photo(tmp_path / "a.tif", Photo(from_array(smooth()).rgb, exif=exif.tobytes()))
    back = read_photo(tmp_path / "a.tif")
    np.testing.assert_array_equal(to_array(back), smooth())
    assert_exif_kept(back.exif)
    assert not {0x0100, 0x0103, 0x0111, 0x0142} & set(exif_of(back.exif))


def test_tiff_without_unwritable_exif(tmp_path):
    with pytest.warns(UserWarning, match=r"a\.tif: the EXIF data does not fit"):
        write_photo(tmp_path / "a.tif", Photo(from_array(smooth()).rgb, icc=ICC, exif=b"Exif\0\0nonsense"))
    back = read_photo(tmp_path / "a.tif")
    np.testing.assert_array_equal(to_array(back), smooth())
    assert back.icc == ICC


DEEP, CLEAR = from_array(noise((4, 4, 3), np.uint16)), from_array(noise((4, 4, 4)))


@pytest.mark.parametrize(
    ("photo", "suffix", "words"),
    [
        *[(DEEP, suffix, "holds 8 bits") for suffix in (".jpg", ".jpeg", ".webp", ".avif", ".bmp")],
        *[(CLEAR, suffix, "no transparency") for suffix in (".jpg", ".bmp")],
        (from_array(noise((1, 16384))), ".webp", "at most 16383 pixels a side, not 16384"),
        (from_array(noise((65501, 1))), ".jpg", "at most 65500 pixels a side"),
        (Photo(DEEP.rgb, exif=bytes(65534)), ".jpg", "EXIF"),
        (CLEAR, ".xyz", ".png, .jpg, .jpeg, .webp, .tif, .tiff, .avif, .bmp"),
        (CLEAR, "", ".png, .jpg"),
    ],
)
def test_what_a_format_cannot_hold(tmp_path, photo, suffix, words):
    path = tmp_path / f"a{suffix}"
    message = error_of(write_photo, path, photo)
    assert str(path) in message
    assert words in message
    assert message == error_of(check_format, path, photo)
    assert not list(tmp_path.iterdir())


def test_check_format_of_the_enlarged_photo(tmp_path):
    photo = from_array(noise((1, 4096)))
    check_format(tmp_path / "a.webp", photo, 3)
    assert "not 16384" in error_of(check_format, tmp_path / "a.webp", photo, 4)
    check_format(tmp_path / "a.png", photo, 4)


def test_failed_writing_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        message = error_of(write_photo, path, CLEAR)
    assert message.startswith(f"{path} cannot be written (No space left on device)")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_photo(path, CLEAR)
    np.testing.assert_array_equal(to_array(read_photo(path)), to_array(CLEAR))


def test_failed_encoding_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*args, **options):
        raise ValueError("encoder\nbroke")

    monkeypatch.setattr(Image.Image, "save", fail)
    assert "encoder broke" in error_of(write_photo, path, CLEAR)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_into_a_missing_folder(tmp_path):
    assert "cannot be written" in error_of(write_photo, tmp_path / "gone" / "a.png", CLEAR)


def test_new_file_has_ordinary_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_photo(tmp_path / "a.png", CLEAR)
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_check_writable(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "old.png").write_bytes(b"old")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    check_writable(tmp_path / "new.png")
    check_writable(tmp_path / "old.png")
    check_writable(str(tmp_path / "new.JPG"))
    assert (tmp_path / "old.png").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 4
    for path, words in [
        (tmp_path / "gone" / "a.png", f"{tmp_path / 'gone'} does not exist; create it first"),
        (tmp_path / "file" / "a.png", "Not a directory"),
        (tmp_path / "folder.png", "is a folder"),
        (tmp_path / "pipe.png", "not a regular file"),
        (tmp_path / "a.xyz", ".png, .jpg"),
        (tmp_path / "a", ".png, .jpg"),
        ("", ".png, .jpg"),
        ("/proc/self/a.png", "cannot be written"),
        (tmp_path / f"{'x' * 300}.png", "cannot be written"),
    ]:
        assert words in error_of(check_writable, path)


# --------------------------------------------------------------------------------------------------------- resizing


def test_resize_is_pillows_bicubic():
    samples = noise((20, 30, 3)) // 4 + 90  # far from 0 and 255, where Pillow clips between its two passes
    for height, width in [(80, 120), (7, 11), (33, 10)]:
        expected = np.asarray(Image.fromarray(samples).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        result = resize_bicubic(samples.astype(np.float32) / 255, height, width)
        assert result.shape == (height, width, 3)
        assert result.dtype == np.float32
        assert np.abs(result * 255 - expected).max() <= 1.5  # Pillow rounds twice
        np.testing.assert_array_equal(resize_bicubic(samples[..., 1].astype(np.float32) / 255, height, width), result[..., 1])


def test_resize_keeps_16_bit_precision():
    ramp = np.linspace(0.5, 0.5 + 64 / 65535, 64, dtype=np.float32)[None].repeat(8, 0)
    result = resize_bicubic(ramp, 8, 256)
    assert len(np.unique(result[4])) > 200
    np.testing.assert_allclose(result[4, ::4], ramp[4], atol=1 / 65535)


def test_resize_overshoots_and_takes_views():
    step = np.zeros((8, 8, 3), np.float32)
    step[:, 4:] = 1
    result = resize_bicubic(step[:, ::-1], 32, 32)
    assert result.max() > 1.01
    assert result.min() < -0.01
