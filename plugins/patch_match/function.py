"""PatchMatch as an ONNX function body of standard ops: what runtimes without our kernel execute.

The steps, nine candidates and nine taps are loops; nothing is unfolded, so memory stays at a few copies of the features.
Types: features may be float16 or float32. Inside they are float32 and positions int64; with int8 arithmetic the float32 holds
whole numbers, a pixel's inner product stays below 2^24, and the sum of nine is a float64: exact, in whatever order.
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
def PatchMatch(
    query,
    ref,
    valid,
    init,
    iterations: int,
    schedule: str,
    level: int,
    pad: int,
    init_scale: int,
    arithmetic: str = "float",
):
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    two = op.Constant(value_ints=[2])
    three = op.Constant(value_ints=[3])
    pads = op.Constant(value_int=pad)
    stride = op.Cast(op.Pow(op.Constant(value_float=2.0), op.Cast(op.Constant(value_int=level), to=1)), to=7)
    published = op.Equal(op.Constant(value_string=schedule), op.Constant(value_string="published"))
    fast = op.Equal(op.Constant(value_string=schedule), op.Constant(value_string="fast"))
    exact = op.Cast(op.Equal(op.Constant(value_string=schedule), op.Constant(value_string="exact")), to=7)
    int8 = op.Equal(op.Constant(value_string=arithmetic), op.Constant(value_string="int8"))

    # ------------------------------------------------------------------ sizes
    n = op.Shape(ref, start=0, end=1)
    query_rows = op.Shape(query, start=2, end=3)
    query_cols = op.Shape(query, start=3, end=4)
    height = query_rows - 2 + 2 * pads  # positions
    width = query_cols - 2 + 2 * pads
    grid = op.Concat(n, height, width, axis=0)
    ref_size = op.Shape(ref, start=2, end=4)
    size = op.Expand(op.Cast(valid, to=7), op.Concat(n, one, axis=0))  # [N, 2]
    size = op.Min(op.Max(size, one), ref_size * stride)
    inside = op.Max((size + (stride - 1)) / stride, 3 - 2 * pads)  # ceil
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
    query_float = op.Cast(query, to=1)
    ref_float = op.Where(mask, op.Cast(ref, to=1), op.Constant(value_float=0.0))

    # int8: whole numbers from -127 to 127, one scale for a whole feature map
    query_finite = op.Where(op.Or(op.IsNaN(query_float), op.IsInf(query_float)), op.Constant(value_float=0.0), query_float)
    ref_finite = op.Where(op.Or(op.IsNaN(ref_float), op.IsInf(ref_float)), op.Constant(value_float=0.0), ref_float)
    every = op.Constant(value_ints=[1, 2, 3])
    query_largest = op.ReduceMax(op.Abs(query_finite), every)
    ref_largest = op.ReduceMax(op.Abs(ref_finite), every)
    least = op.Constant(value_float=1e-30)
    query_scale = op.Where(query_largest < least, op.Constant(value_float=0.0), 127.0 / op.Max(query_largest, least))
    ref_scale = op.Where(ref_largest < least, op.Constant(value_float=0.0), 127.0 / op.Max(ref_largest, least))
    query_whole = op.Clip(op.Round(query_finite * query_scale), -127.0, 127.0)
    ref_whole = op.Clip(op.Round(ref_finite * ref_scale), -127.0, 127.0)
    query_used = op.Where(int8, query_whole, query_float)
    ref_used = op.Where(int8, ref_whole, ref_float)
    unit = op.Where(query_largest < least, op.Constant(value_float=0.0), query_largest / 127.0)
    unit = op.Where(int8, unit, op.Constant(value_float=1.0))  # [1|N, 1, 1, 1]: turns a score into the float score

    ref_padded = op.Pad(ref_used, border)
    energy = op.Cast(op.ReduceSum(ref_padded * ref_padded, one, keepdims=1), to=11)
    last = op.Constant(value_ints=[9223372036854775807])
    minus_two = op.Constant(value_ints=[-2])
    minus_one = op.Constant(value_ints=[-1])
    above = op.Slice(energy, zero, minus_two, two)
    middle = op.Slice(energy, one, minus_one, two)
    energy = above + middle + op.Slice(energy, two, last, two)
    left = op.Slice(energy, zero, minus_two, three)
    centre = op.Slice(energy, one, minus_one, three)
    energy = op.Cast(left + centre + op.Slice(energy, two, last, three), to=1)
    floor = op.Where(int8, op.Constant(value_float=1.0), op.Constant(value_float=1e-24))
    # The root in float64 and then rounded is the correctly rounded one of float32; ONNX does not ask for that.
    norm = op.Cast(op.Sqrt(op.Cast(op.Max(energy, floor), to=11)), to=1)
    inverse_norm = op.Reshape(1.0 / norm, op.Constant(value_ints=[-1]))
    channels = op.Shape(ref, start=1, end=2)
    table_shape = op.Concat(op.Constant(value_ints=[-1]), channels, axis=0)
    ref_table = op.Reshape(op.Transpose(ref_padded, perm=[0, 2, 3, 1]), table_shape)
    query_padded = op.Pad(query_used, border)
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
    handed_y = op.Where(published, op.Cast(rescaled_y, to=7), doubled_y)
    handed_x = op.Where(published, op.Cast(rescaled_x, to=7), doubled_x)
    is_handed = op.Cast(keep, to=9)
    y = op.Min(op.Max(op.Where(is_handed, handed_y, start_y), zero), count_y - 1)
    x = op.Min(op.Max(op.Where(is_handed, handed_x, start_x), zero), count_x - 1)

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
    steps = op.Squeeze(op.Constant(value_int=iterations) * per_iteration * (1 - exact))

    jitter_y = op.Constant(value_ints=_jitter_y)
    jitter_x = op.Constant(value_ints=_jitter_x)
    row_period = op.Max(2 * (height - 1), one)
    col_period = op.Max(2 * (width - 1), one)
    lowest = op.Constant(value_float=-3.4028234663852886e38)
    nothing = op.Cast(op.Constant(value_float=0.0), to=11)
    best = op.Expand(lowest, grid)
    for step in range(steps):
        within = op.Mod(step, per_iteration)
        iteration = step / per_iteration
        is_lr = op.Where(published, op.Cast(within < lr_reach, to=7), 1 - op.Mod(within, two)) > zero
        turn = op.Where(published, op.Where(is_lr, within, within - lr_reach), within / 2)
        turn = op.Where(fast, op.Where(is_lr, paper - 1 - turn, zero), turn)
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
            total = op.Expand(nothing, grid)
            for tap in range(9):
                ref_pixel = op.Gather(ref_table, ref_row + (tap / 3) * ref_cols + op.Mod(tap, three))
                query_pixel = op.Gather(query_table, query_row + (tap / 3) * padded_cols + op.Mod(tap, three))
                product = op.ReduceSum(ref_pixel * query_pixel, op.Constant(value_ints=[-1]), keepdims=0)
                total = total + op.Cast(product, to=11)
            norm_row = batch * norm_area + candidate_y * norm_cols + candidate_x
            score = op.Cast(total, to=1) * op.Gather(inverse_norm, norm_row)
            # The first candidate is the one to beat, even where its score is not a number.
            better = op.Or(score > best, op.Equal(k, zero_scalar))
            score = op.Where(score > lowest, score, lowest)
            next_y = op.Where(better, candidate_y, next_y)
            next_x = op.Where(better, candidate_x, next_x)
            best = op.Where(better, score, best)
        y = op.Identity(next_y)
        x = op.Identity(next_x)

    # ------------------------------------------------- exact: all rows of the reference, one after the other
    y = op.Where(op.Cast(exact, to=9), zero, y)
    x = op.Where(op.Cast(exact, to=9), zero, x)
    ref_rows = op.Squeeze(exact * op.ReduceMax(count_y, keepdims=0))
    norm_rows = op.Reshape(inverse_norm, op.Concat(n, op.Constant(value_ints=[-1]), norm_cols, axis=0))
    norm_count = op.Squeeze(norm_cols)
    ref_pixels = op.Transpose(ref_padded, perm=[0, 2, 1, 3])  # [N, rows, C, columns]
    query_pixels = op.Transpose(query_padded, perm=[0, 2, 3, 1])  # [1|N, rows, columns, C]
    ref_index = op.Range(zero_scalar, norm_count, one_scalar)
    beyond = op.Unsqueeze(ref_index, op.Constant(value_ints=[0, 1, 2])) >= op.Unsqueeze(count_x, three)
    shape = op.Concat(op.Shape(query, start=0, end=1), op.Constant(value_ints=[-1]), channels, axis=0)
    for ref_row in range(ref_rows):
        sums = op.Unsqueeze(op.Expand(nothing, grid), three)
        for tap in range(9):
            tap_row = op.Reshape(tap / 3, one)
            tap_col = op.Mod(op.Reshape(tap, one), three)
            keys = op.Gather(ref_pixels, op.Squeeze(ref_row + tap_row), axis=1)  # [N, C, columns]
            keys = op.Slice(keys, tap_col, tap_col + norm_cols, two)
            rows_taken = op.Slice(query_pixels, tap_row, tap_row + height, one)
            taken = op.Reshape(op.Slice(rows_taken, tap_col, tap_col + width, two), shape)
            product = op.Reshape(op.MatMul(taken, keys), op.Concat(grid, op.Constant(value_ints=[-1]), axis=0))
            sums = sums + op.Cast(product, to=11)
        norms = op.Unsqueeze(op.Gather(norm_rows, ref_row, axis=1), op.Constant(value_ints=[1, 2]))
        scores = op.Cast(sums, to=1) * norms  # [N, H, W, columns]
        scores = op.Where(op.And(scores > lowest, op.Not(beyond)), scores, lowest)
        row_best = op.ReduceMax(scores, op.Constant(value_ints=[-1]), keepdims=0)
        better = op.And(row_best > best, ref_row < count_y)
        y = op.Where(better, ref_row, y)
        x = op.Where(better, op.ArgMax(scores, axis=-1, keepdims=0), x)
        best = op.Where(better, row_best, best)

    match = op.Cast(op.Concat(op.Unsqueeze(y, one), op.Unsqueeze(x, one), axis=1), to=6)
    relevance = op.Unsqueeze(best, one) * unit
    return match, relevance
