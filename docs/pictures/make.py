"""Draws the README's pictures from scikit-image's coffee photo (CC0): `python docs/pictures/make.py`.

The reference is the same photo turned, enlarged and brightened. `result.jpg` is what the shipped model makes of it. In
`matching.jpg` the third panel shows the matching alone: every LR pixel replaced by the 4x4 reference pixels at the centre of
its match.
"""

from pathlib import Path

import cv2
import numpy as np
from skimage.data import coffee

from amsa.engine.backends import open_backend
from amsa.engine.demo import shrink
from amsa.engine.images import Photo, from_array, write_photo
from amsa.engine.metrics import compare_pictures, side_by_side
from amsa.engine.references import prepare_lr, prepare_scales
from amsa.engine.upscaler import Upscaler

photo = coffee()
truth = from_array(photo[8:360, 100:484].copy())
turn = cv2.getRotationMatrix2D((300, 190), 8, 1.1)
turned = cv2.warpAffine(photo, turn, (600, 400), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
ref = from_array(np.clip(turned[8:360, 100:484] * 1.05, 0, 255).astype(np.uint8))
lr, bicubic = shrink(truth)

backend = open_backend()
pixels, valid = prepare_scales(ref.rgb, backend.config, None)[0]
queries = backend.run("encode_lr", {"lr": prepare_lr(lr.rgb, None)})
keys = backend.run("encode_ref", {"ref": pixels})
inputs = {k: v for k, v in {**queries, **keys}.items() if k.startswith(("query_", "key_"))}
match = backend.run("match", {**inputs, "valid": valid, "seed": np.zeros(1, np.int32)})["match"][0]

# The patch anchored one position before a pixel is centred on it; the field starts at anchor -2.
centre = match[:, 1 : 1 + lr.height, 1 : 1 + lr.width] + 1
centre = np.clip(centre, 0, np.array(ref.rgb.shape[:2]).reshape(2, 1, 1) // 4 - 1)
rows = (4 * centre[0]).repeat(4, 0).repeat(4, 1) + np.arange(truth.height)[:, None] % 4
cols = (4 * centre[1]).repeat(4, 0).repeat(4, 1) + np.arange(truth.width)[None, :] % 4
panels = [("LR", lr.rgb), ("reference", ref.rgb), ("reference pixels at the matches", ref.rgb[rows, cols]), ("truth", truth.rgb)]
write_photo(Path(__file__).parent / "matching.jpg", Photo(side_by_side(panels)))

sr = Upscaler().upscale_photo(lr, [ref])
for name, picture in (("bicubic", bicubic), ("amsa", sr)):
    print(f"{name}: PSNR-Y {compare_pictures(picture.rgb, truth.rgb, 4).psnr_y:.2f} dB")
panels = [("LR", lr.rgb), ("bicubic", bicubic.rgb), ("amsa", sr.rgb), ("reference", ref.rgb), ("truth", truth.rgb)]
write_photo(Path(__file__).parent / "result.jpg", Photo(side_by_side(panels)))
