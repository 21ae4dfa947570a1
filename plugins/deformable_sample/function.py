"""DeformableSample as an ONNX function body of standard ops: what runtimes without our kernel execute.

All nine taps and groups at once: the four corners of every sample are rows gathered from a table of pixels. Features may
be float16 or float32; coordinates and sums are float32.
"""

# mypy: ignore-errors
# onnxscript reads this source as text: a subset of Python in which every name is a tensor. Annotations are not evaluated.

from onnxscript import opset20 as op
from onnxscript import script
from onnxscript.values import Opset

from ..spec import DOMAIN, VERSION


@script(Opset(DOMAIN, VERSION), default_opset=op)
def DeformableSample(value, match, offset_mask, scale: int, groups: int):
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    two = op.Constant(value_ints=[2])
    nine = op.Constant(value_ints=[9])
    s = op.Constant(value_int=scale)
    g = op.Reshape(op.Constant(value_int=groups), one)
    zero_scalar = op.Constant(value_int=0)
    one_scalar = op.Constant(value_int=1)

    n = op.Shape(match, start=0, end=1)
    channels = op.Shape(value, start=1, end=2)
    rows = op.Shape(value, start=2, end=3)
    cols = op.Shape(value, start=3, end=4)
    height = op.Shape(offset_mask, start=2, end=3)
    width = op.Shape(offset_mask, start=3, end=4)

    # --------------------- where the taps sample without offsets: [N, 2, 9, H, W]
    taps = op.Unsqueeze(op.Range(zero_scalar, op.Constant(value_int=3), one_scalar), one)  # [3, 1]
    r = op.Range(zero_scalar, op.Squeeze(height), one_scalar)
    c = op.Range(zero_scalar, op.Squeeze(width), one_scalar)
    anchors = op.Cast(match, to=7)
    moved = s * op.Gather(op.Gather(anchors, r / s - taps + 2, axis=2), c / s - taps + 2, axis=4)  # [N, 2, 3, H, 3, W]
    moved = op.Transpose(moved, perm=[0, 1, 2, 4, 3, 5])  # [N, 2, 3, 3, H, W]
    moved_y, moved_x = op.Split(moved, axis=1, num_outputs=2)
    within_y = op.Reshape((s + 1) * taps - 1, op.Constant(value_ints=[3, 1, 1, 1])) + op.Unsqueeze(op.Mod(r, s), one)
    within_x = op.Reshape((s + 1) * taps - 1, op.Constant(value_ints=[1, 3, 1, 1])) + op.Mod(c, s)
    field = op.Concat(n, one, nine, height, width, axis=0)
    y = op.Reshape(op.Cast(moved_y + within_y, to=1), field)  # [N, 1, 9, H, W]
    x = op.Reshape(op.Cast(moved_x + within_x, to=1), field)

    # ------------------------------------------------------ learned offsets, masks
    # Masks alone: the missing 18 * groups offset channels are padded with zeros in front.
    missing = 27 * g - op.Shape(offset_mask, start=1, end=2)
    learned = op.Pad(op.Cast(offset_mask, to=1), op.Concat(zero, missing, op.Constant(value_ints=[0, 0, 0, 0, 0, 0]), axis=0))
    offsets, logits = op.Split(learned, op.Concat(18 * g, 9 * g, axis=0), axis=1)
    minus_one = op.Constant(value_ints=[-1])
    offsets = op.Reshape(offsets, op.Concat(minus_one, g, nine, two, height, width, axis=0))
    offset_y, offset_x = op.Split(offsets, axis=3, num_outputs=2)
    y = y + op.Squeeze(offset_y, op.Constant(value_ints=[3]))  # [N, G, 9, H, W]
    x = x + op.Squeeze(offset_x, op.Constant(value_ints=[3]))
    logits = op.Reshape(logits, op.Concat(minus_one, g, nine, height, width, one, axis=0))

    # --------------------------------------------------------------- four corners
    y = op.Min(op.Max(y, op.Constant(value_float=-1.0)), op.Cast(rows, to=1))
    x = op.Min(op.Max(x, op.Constant(value_float=-1.0)), op.Cast(cols, to=1))
    top = op.Floor(y)
    left = op.Floor(x)
    group = channels / g
    pixels = op.Reshape(op.Cast(value, to=1), op.Concat(minus_one, g, group, rows, cols, axis=0))
    table = op.Reshape(op.Transpose(pixels, perm=[0, 1, 3, 4, 2]), op.Concat(minus_one, group, axis=0))
    batch = op.Min(op.Range(zero_scalar, op.Squeeze(n), one_scalar), op.Shape(value, start=0, end=1) - 1)
    batch = op.Unsqueeze(batch, op.Constant(value_ints=[1, 2, 3, 4]))
    part = op.Unsqueeze(op.Range(zero_scalar, op.Squeeze(g), one_scalar), op.Constant(value_ints=[1, 2, 3]))
    base = (batch * g + part) * (rows * cols)
    total = op.Expand(op.Constant(value_float=0.0), op.Concat(op.Shape(y), group, axis=0))
    for corner in range(4):
        corner_y = top + op.Cast(corner / 2, to=1)
        corner_x = left + op.Cast(op.Mod(corner, two), to=1)
        weight = (1.0 - op.Abs(y - corner_y)) * (1.0 - op.Abs(x - corner_x))
        row = op.Cast(corner_y, to=7)
        col = op.Cast(corner_x, to=7)
        inside = op.And(op.And(row >= 0, row < rows), op.And(col >= 0, col < cols))
        weight = weight * op.Cast(inside, to=1)
        row = op.Min(op.Max(row, zero), rows - 1)
        col = op.Min(op.Max(col, zero), cols - 1)
        sample = op.Gather(table, base + row * cols + col)  # [N, G, 9, H, W, C/G]
        total = total + op.Unsqueeze(weight, minus_one) * sample
    total = total * op.Sigmoid(logits)
    total = op.Transpose(total, perm=[0, 2, 1, 5, 3, 4])
    return op.CastLike(op.Reshape(total, op.Concat(n, 9 * channels, height, width, axis=0)), value)
