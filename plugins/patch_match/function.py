"""PatchMatch as an ONNX function body of standard ops: what runtimes without our kernel execute.

The steps, nine candidates and nine taps are loops; nothing is unfolded, so memory stays at a few copies of the features.
Types: features may be float16 or float32; everything inside is float32 and int64.
"""

# mypy: ignore-errors
# onnxscript reads this source as text: a subset of Python in which every name is a tensor. Annotations are not evaluated.

from onnxscript import opset20 as op
from onnxscript import script
from onnxscript.values import Opset

from ..spec import DOMAIN, VERSION
from .schedule import JITTER_X, JITTER_Y

_jitter_y = list(JITTER_Y)
_jitter_x = list(JITTER_X)


@script(Opset(DOMAIN, VERSION), default_opset=op)
def PatchMatch(query, ref, valid, init, iterations: int, schedule: str, level: int, pad: int, init_scale: int):
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    two = op.Constant(value_ints=[2])
    three = op.Constant(value_ints=[3])
    pads = op.Constant(value_int=pad)
    stride = op.Cast(op.Pow(op.Constant(value_float=2.0), op.Cast(op.Constant(value_int=level), to=1)), to=7)
    published = op.Equal(op.Constant(value_string=schedule), op.Constant(value_string="published"))
    fast = op.Equal(op.Constant(value_string=schedule), op.Constant(value_string="fast"))

    # ------------------------------------------------------------------ sizes
    n = op.Shape(ref, start=0, end=1)
    query_rows = op.Shape(query, start=2, end=3)
    query_cols = op.Shape(query, start=3, end=4)
    height = query_rows - 2 + 2 * pads  # positions
    width = query_cols - 2 + 2 * pads
    grid = op.Concat(n, height, width, axis=0)
    size = op.Expand(op.Cast(valid, to=7), op.Concat(n, one, axis=0))  # [N, 2]
    inside = (size + (stride - 1)) / stride  # ceil
    coarse = (size + (2 * stride - 1)) / (2 * stride)
    count = inside - 2 + 2 * pads
    split_y, split_x = op.Split(inside, axis=1, num_outputs=2)
    count_y, count_x = op.Split(op.Reshape(count, op.Constant(value_ints=[-1, 2, 1, 1])), axis=1, num_outputs=2)
    count_y = op.Squeeze(count_y, one)  # [N, 1, 1]
    count_x = op.Squeeze(count_x, one)

    # --------------------------------------------------- tables of pixel rows
    zero_scalar = op.Constant(value_int=0)
    one_scalar = op.Constant(value_int=1)
    border = op.Concat(zero, zero, op.Reshape(pads, one), op.Reshape(pads, one), axis=0)
    border = op.Concat(border, border, axis=0)
    rows_inside = op.Range(zero_scalar, op.Squeeze(op.Shape(ref, start=2, end=3)), one_scalar) < split_y  # [N, Hr]
    cols_inside = op.Range(zero_scalar, op.Squeeze(op.Shape(ref, start=3, end=4)), one_scalar) < split_x
    mask = op.And(
        op.Unsqueeze(rows_inside, op.Constant(value_ints=[1, 3])),
        op.Unsqueeze(cols_inside, op.Constant(value_ints=[1, 2])),
    )
    ref_padded = op.Pad(op.Cast(ref, to=1) * op.Cast(mask, to=1), border)
    energy = op.ReduceSum(ref_padded * ref_padded, one, keepdims=1)
    energy = 9.0 * op.AveragePool(energy, kernel_shape=[3, 3], strides=[1, 1])
    inverse_norm = op.Reshape(1.0 / op.Sqrt(op.Max(energy, op.Constant(value_float=1e-24))), op.Constant(value_ints=[-1]))
    channels = op.Shape(ref, start=1, end=2)
    table_shape = op.Concat(op.Constant(value_ints=[-1]), channels, axis=0)
    ref_table = op.Reshape(op.Transpose(ref_padded, perm=[0, 2, 3, 1]), table_shape)
    query_padded = op.Pad(op.Cast(query, to=1), border)
    query_table = op.Reshape(op.Transpose(query_padded, perm=[0, 2, 3, 1]), table_shape)

    ref_cols = op.Shape(ref_padded, start=3, end=4)
    ref_area = op.Shape(ref_padded, start=2, end=3) * ref_cols
    norm_cols = ref_cols - 2
    norm_area = (op.Shape(ref_padded, start=2, end=3) - 2) * norm_cols
    padded_cols = op.Shape(query_padded, start=3, end=4)
    query_area = op.Shape(query_padded, start=2, end=3) * padded_cols
    batch = op.Unsqueeze(op.Range(zero_scalar, op.Squeeze(n), one_scalar), op.Constant(value_ints=[1, 2]))  # [N, 1, 1]
    query_batch = op.Min(batch, op.Shape(query, start=0, end=1) - 1)  # batch 1 is shared
    rows = op.Unsqueeze(op.Range(zero_scalar, op.Squeeze(height), one_scalar), op.Constant(value_ints=[0, 2]))  # [1, H, 1]
    cols = op.Unsqueeze(op.Range(zero_scalar, op.Squeeze(width), one_scalar), op.Constant(value_ints=[0, 1]))  # [1, 1, W]
    query_row = query_batch * query_area + rows * padded_cols + cols  # [N, H, W]: each patch's first pixel

    # ------------------------------------------------------ matches to begin with
    start = op.Expand(op.Cast(init, to=7), op.Concat(n, one, one, one, axis=0))
    keep = op.Constant(value_int=init_scale) - 1  # 0: on this grid; 1: hand over from the coarser one
    # The position's own cell in `init`: with pad 0 a corner p is the patch centred at p + 1.
    parent_rows = (op.Squeeze(rows, op.Constant(value_ints=[0, 2])) + keep * (1 - pads)) / (1 + keep)
    parent_cols = (op.Squeeze(cols, op.Constant(value_ints=[0, 1])) + keep * (1 - pads)) / (1 + keep)
    start = op.Gather(op.Gather(start, parent_rows, axis=2), parent_cols, axis=3)
    start_y, start_x = op.Split(start, axis=1, num_outputs=2)
    start_y = op.Squeeze(start_y, one)  # [N, H, W]
    start_x = op.Squeeze(start_x, one)
    # published: rescaled to this level's range; otherwise doubled, each child at its own offset, centre -> corner.
    coarse_y, coarse_x = op.Split(op.Reshape(coarse, op.Constant(value_ints=[-1, 2, 1])), axis=1, num_outputs=2)
    coarse_y = op.Unsqueeze(op.Squeeze(op.Max(coarse_y - 1, one), one), two)
    coarse_x = op.Unsqueeze(op.Squeeze(op.Max(coarse_x - 1, one), one), two)
    rescaled_y = op.Round(op.Cast(start_y, to=1) * op.Cast(count_y - 1, to=1) / op.Cast(coarse_y, to=1))
    rescaled_x = op.Round(op.Cast(start_x, to=1) * op.Cast(count_x - 1, to=1) / op.Cast(coarse_x, to=1))
    doubled_y = 2 * start_y + op.Mod(rows + (1 - pads), two) - (1 - pads)
    doubled_x = 2 * start_x + op.Mod(cols + (1 - pads), two) - (1 - pads)
    doubled_y = op.Min(op.Max(doubled_y, zero), count_y - 1)
    doubled_x = op.Min(op.Max(doubled_x, zero), count_x - 1)
    handed_y = op.Where(published, op.Cast(rescaled_y, to=7), doubled_y)
    handed_x = op.Where(published, op.Cast(rescaled_x, to=7), doubled_x)
    is_handed = op.Cast(keep, to=9)
    y = op.Where(is_handed, handed_y, start_y)
    x = op.Where(is_handed, handed_x, start_x)

    # ------------------------------------------------------------ the schedule
    # Reach: how many dilations 1, 2, 4, ..; each is one more for every bound that the size passes.
    exponents = op.Range(zero_scalar, op.Constant(value_int=24), one_scalar)
    powers = op.Cast(op.Pow(op.Constant(value_float=2.0), op.Cast(exponents, to=1)), to=7)
    # published: floor(log2((side - 3) // 8)) + 1 of level 0's shorter side, at least 1
    lr_side = (op.Min(query_rows, query_cols) * stride - 3) / 8
    ref_side = (op.ReduceMin(size, keepdims=0) - 3) / 8  # one valid size per call or all alike, see the README
    lr_published = op.Max(op.ReduceSum(op.Cast(powers <= lr_side, to=7), zero, keepdims=1), one)
    ref_published = op.Max(op.ReduceSum(op.Cast(powers <= ref_side, to=7), zero, keepdims=1), one)
    # paper: the least t >= 1 with 64 * 4^t >= N
    bounds = 64 * op.Slice(powers, one, op.Constant(value_ints=[12])) * op.Slice(powers, one, op.Constant(value_ints=[12]))
    paper = 1 + op.ReduceSum(op.Cast(bounds < query_rows * query_cols, to=7), zero, keepdims=1)
    lr_reach = op.Where(published, lr_published, paper)
    ref_reach = op.Where(published, ref_published, paper)
    per_iteration = lr_reach + ref_reach
    steps = op.Squeeze(op.Constant(value_int=iterations) * per_iteration)

    jitter_y = op.Constant(value_ints=_jitter_y)
    jitter_x = op.Constant(value_ints=_jitter_x)
    row_period = op.Max(2 * (height - 1), one)
    col_period = op.Max(2 * (width - 1), one)
    lowest = op.Constant(value_float=-3.4028234663852886e38)
    best = op.Expand(lowest, grid)
    for step in range(steps):
        within = op.Mod(step, per_iteration)
        iteration = step / per_iteration
        is_lr = op.Where(published, op.Cast(within < lr_reach, to=7), 1 - op.Mod(within, two)) > zero
        turn = op.Where(published, op.Where(is_lr, within, within - lr_reach), within / 2)
        dilation = op.Gather(powers, turn)  # [1]
        jitter = op.Where(published, op.Mod(iteration, dilation), zero)
        best = op.Expand(lowest, grid)
        next_y = op.Identity(y)
        next_x = op.Identity(x)
        for k in range(9):
            offset_y = dilation * (k / 3 - 1)
            offset_x = dilation * (op.Mod(k, three) - 1)
            # LR propagation: the neighbour's match, reflected at the border
            from_row = op.Mod(op.Abs(op.Reshape(rows, op.Constant(value_ints=[-1])) + offset_y), row_period)
            from_col = op.Mod(op.Abs(op.Reshape(cols, op.Constant(value_ints=[-1])) + offset_x), col_period)
            from_row = op.Min(from_row, row_period - from_row)
            from_col = op.Min(from_col, col_period - from_col)
            neighbour_y = op.Gather(op.Gather(y, from_row, axis=1), from_col, axis=2)
            neighbour_x = op.Gather(op.Gather(x, from_row, axis=1), from_col, axis=2)
            # fast: moved back by how far the neighbour is away
            shifted_y = neighbour_y - (op.Reshape(from_row, op.Constant(value_ints=[-1, 1])) - rows)
            shifted_x = neighbour_x - (from_col - cols)
            shifted_y = op.Min(op.Max(shifted_y, zero), count_y - 1)
            shifted_x = op.Min(op.Max(shifted_x, zero), count_x - 1)
            neighbour_y = op.Where(fast, shifted_y, neighbour_y)
            neighbour_x = op.Where(fast, shifted_x, neighbour_x)
            # Ref propagation: the neighbours of one's own match
            around_y = y + offset_y + jitter * op.Gather(jitter_y, k)
            around_x = x + offset_x + jitter * op.Gather(jitter_x, k)
            around_y = op.Where(published, op.Mod(around_y, count_y), op.Min(op.Max(around_y, zero), count_y - 1))
            around_x = op.Where(published, op.Mod(around_x, count_x), op.Min(op.Max(around_x, zero), count_x - 1))
            candidate_y = op.Where(is_lr, neighbour_y, around_y)
            candidate_x = op.Where(is_lr, neighbour_x, around_x)
            # Score: nine taps
            ref_row = batch * ref_area + candidate_y * ref_cols + candidate_x
            total = op.Expand(op.Constant(value_float=0.0), grid)
            for tap in range(9):
                ref_pixel = op.Gather(ref_table, ref_row + (tap / 3) * ref_cols + op.Mod(tap, three))
                query_pixel = op.Gather(query_table, query_row + (tap / 3) * padded_cols + op.Mod(tap, three))
                total = total + op.ReduceSum(ref_pixel * query_pixel, op.Constant(value_ints=[-1]), keepdims=0)
            score = total * op.Gather(inverse_norm, batch * norm_area + candidate_y * norm_cols + candidate_x)
            better = score > best
            next_y = op.Where(better, candidate_y, next_y)
            next_x = op.Where(better, candidate_x, next_x)
            best = op.Where(better, score, best)
        y = op.Identity(next_y)
        x = op.Identity(next_x)

    match = op.Cast(op.Concat(op.Unsqueeze(y, one), op.Unsqueeze(x, one), axis=1), to=6)
    relevance = op.Unsqueeze(best, one)
    return match, relevance
