"""Brings stored matrices into the form that the C kernels read: a `Plan`, tiles of 16 rows each.

A tile is one stream of bytes; plan.h describes every layout. Each function here takes a format's canonical
tensors (kernels/<op>.py) and returns a `Plan`. It only permutes them: nothing is rounded. `rule` is a Rule or
its numbers; None means exact activations.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import cpu
from kernels.bits import unpack
from kernels.columns import columns_matrix
from kernels.grouped_int import level_codes, levelled, spread
from kernels.outliers import outliers_matrix
from kernels.sparse import bits_mask, mask_bits, scatter_bitmask, scatter_two_four

PLAN_H = (cpu.HERE / "plan.h").read_text("utf-8")
KINDS = dict(
    re.findall(r"\bKIND\((\w+), (\w+)\)", PLAN_H)
)  # name -> how it is multiplied; C numbers them in this order
GRIDS = tuple(re.findall(r"\bGRID\((\w+)\)", PLAN_H))
CODES = tuple(kind for kind, how in KINDS.items() if how in ("BY_INTEGERS", "BY_ENTRIES"))  # int8 times int8
ROWS, COLUMNS = 16, 32  # rows of a tile, columns of a block
SLACK = 64  # bytes that a kernel may read beyond the last value


class Rule(NamedTuple):
    """How activations are rounded to int8."""

    columns: int  # how many columns share a scale, a multiple of 32
    top: int = 127  # the largest code
    threshold: float = 0.0  # activations of that size or larger stay as they are; 0: all are rounded
    static: float = 0.0  # one scale for all tokens; 0: each scale follows from the largest of its activations
    shifted: bool = False  # codes run from a token's least activation to its largest (columns: all)


class _Struct(ctypes.Structure):
    """`struct plan` of plan.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("out", "n", "groups", "group", "rule")),
        *((name, ctypes.c_int32) for name in ("kind", "bits", "top", "grids", "shifted")),
        *((name, ctypes.c_double) for name in ("threshold", "fixed")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "values",
                "mask",
                "starts",
                "scale",
                "zero",
                "offset",
                "table",
                "order",
                "first",
                "second",
            )
        ),
    ]


class Plan:
    """A matrix [out, n] in tiles. It keeps its tensors alive; `op` and `rule` name its kernel."""

    def __init__(
        self,
        op: str,
        kind: str,
        shape: tuple[int, int],
        rule: Rule | None = None,
        *,
        bits: int = 0,
        group: int = 0,
        grids: str = "WHOLE",
        parts: tuple[Plan, ...] = (),
        **tensors: Tensor | None,
    ):
        self.op = op
        self.kind = kind
        out, n = shape
        self.shape = (out, n)
        self.rule = rule
        self.grids = grids
        self.parts = parts
        self.tensors = {name: t for name, t in tensors.items() if t is not None}
        whole = -(-n // COLUMNS) * COLUMNS
        group = whole if group in (0, -1) else group
        columns, top, threshold, static, shifted = Rule(*(rule or (0,)))
        groups = tensors["values"].shape[1] if kind == "COLUMNS" else 1 if group >= n else -(-n // group)
        self.struct = _Struct(
            out=out,
            n=n,
            groups=groups,
            group=group,
            rule=min(columns, whole),
            kind=list(KINDS).index(kind),
            bits=bits,
            top=top,
            grids=GRIDS.index(grids),
            threshold=threshold,
            fixed=static,
            shifted=shifted,
        )
        for name, tensor in self.tensors.items():
            setattr(self.struct, name, tensor.data_ptr())
        for name, part in zip(("first", "second"), parts, strict=False):
            setattr(self.struct, name, part.address)
        self.address: int = ctypes.addressof(self.struct)
        self.handle = next(_numbers)
        _plans[self.handle] = self

    def clone(self) -> Plan:
        """The same matrix in other memory."""
        parts = tuple(part.clone() for part in self.parts)
        tensors = {name: t.clone() for name, t in self.tensors.items()}
        return Plan(
            self.op,
            self.kind,
            self.shape,
            self.rule,
            bits=self.struct.bits,
            group=self.struct.group,
            grids=self.grids,
            parts=parts,
            **tensors,
        )

    def serves(self, op: str) -> str:
        """The key in kernels.OPS of the op that multiplies a token here: `op`, or "looked_up"."""
        return "looked_up" if self.kind == "LOOK" else op

    @property
    def adds(self) -> bool:
        """True for a matrix of a few weights, whose products are added to another matrix's."""
        return KINDS[self.kind] == "BY_ADDING"

    @property
    def in_int8(self) -> bool:
        """True if activations are multiplied as integers. Float weights take rounded ones as floats."""
        return self.rule is not None and (self.kind in CODES or any(p.in_int8 for p in self.parts))

    @property
    def outliers_exact(self) -> bool:
        """True if the rule leaves large activations as they are."""
        return self.rule is not None and Rule(*self.rule).threshold > 0

    @property
    def obeys(self) -> bool:
        """Whether this matrix can follow its rule.

        A rule with a threshold or a zero point needs codes of 8 bits, or floats.
        """
        if not (self.outliers_exact or self.struct.shifted):
            return True
        codes = (
            self.kind == "INT"
            and self.struct.bits == 8
            and (not self.struct.shifted or "offset" in self.tensors)
        )
        return all(p.obeys for p in self.parts) and (self.kind not in CODES or codes)

    def all_tensors(self) -> list[Tensor]:
        """Each tensor of the plan, once."""
        found = [*self.tensors.values(), *(t for part in self.parts for t in part.all_tensors())]
        return list({id(t): t for t in found}.values())

    def matrix(self) -> Tensor:
        """Outliers or columns as a dense float32 [out, in]."""
        values, starts, order = self.tensors["values"], self.tensors["starts"], self.tensors.get("order")
        if self.kind == "COLUMNS":
            dense = columns_matrix(
                values.transpose(1, 2).flatten(0, 1)[: self.shape[0]], starts, self.shape[1]
            )
        else:
            dense = outliers_matrix(
                values[: -SLACK // 2], self.tensors["mask"][: -SLACK // 2], starts, self.shape[1]
            )
        return dense if order is None else dense[:, order.argsort()]

    def ordered(self, order: Tensor) -> Plan:
        """Outliers or columns for an input whose column k is column order[k] of W."""
        name = "starts" if self.kind == "COLUMNS" else "mask"
        columns = self.tensors[name]  # the slack behind them holds any column
        places = order.argsort()[
            columns.long() & 0xFFFF if columns.dtype is torch.int16 else columns.long()
        ].to(columns.dtype)
        return Plan(
            self.op, self.kind, self.shape, self.rule, **self.tensors | {name: places, "order": order}
        )

    @property
    def bytes(self) -> int:
        """Memory that the tiles take, padding included."""
        return sum(t.numel() * t.element_size() for t in self.all_tensors())


_numbers = itertools.count()
_plans: weakref.WeakValueDictionary[int, Plan] = weakref.WeakValueDictionary()


@torch.library.custom_op("compression_explorer::product", mutates_args=())
def traced_product(x: Tensor, plan: int, out: int) -> Tensor:
    """`cpu.product` as an operator that torch.compile can put into its graph.

    plan: the plan's handle; out: its number of rows.
    """
    return cpu.product(_plans[plan], x)


@traced_product.register_fake
def _(x, plan, out):
    return x.new_empty((*x.shape[:-1], out))


@torch.library.custom_op("compression_explorer::rows", mutates_args=())
def traced_rows(ids: Tensor, plan: int, n: int) -> Tensor:
    """`cpu.rows` as such an operator; n: the number of columns."""
    return cpu.rows(_plans[plan], ids)


@traced_rows.register_fake
def _(ids, plan, n):
    return ids.new_empty((ids.numel(), n), dtype=torch.float32)


def dense(weight: Tensor, rule: Rule | None = None) -> Plan:
    """weight [out, in] float32, float16 or bfloat16, as it is."""
    kind = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[weight.dtype]
    tiles = _padded(weight)  # [tiles, 16, columns]
    if kind == "BF16":
        tiles = tiles.unflatten(2, (-1, 2)).transpose(1, 2)
    else:
        tiles = tiles.transpose(1, 2)
    return Plan("dense", kind, weight.shape, rule, values=_slack(tiles))


def grouped_int(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    n: int,
    rule: Rule | None = None,
    group_index: Tensor | None = None,
) -> Plan:
    """Grouped integers. codes packed to the bit [out, bytes]; scale [out, groups].

    zero: uint8 [out, groups]; or None, which means the middle of the range; or real numbers in float16, or in
    float32 if the scales are float32 too.

    group_index [in]: each column's group, if groups are not runs of neighbours. The columns are then
    reordered so that each group is a run.
    """
    grids = (
        "WHOLE"
        if zero is None or zero.dtype is torch.uint8
        else "REAL"
        if zero.dtype is torch.float16
        else "FLOATS"
    )
    sums = (
        _row_sums(codes, scale, zero, bits, group_size, n, group_index)
        if rule and Rule(*rule).shifted
        else None
    )
    scale, zero = _grid(scale if grids == "FLOATS" else scale.half()), None if zero is None else _grid(zero)
    tensors = {"scale": scale, "zero": zero, "offset": sums}
    return _ints(
        codes, bits, n, group_index, op="grouped_int", rule=rule, group=group_size, grids=grids, **tensors
    )


def two_level(
    codes: Tensor,
    levels: Sequence[Tensor],
    stats: Sequence[Tensor],
    level_bits: int,
    bits: int,
    group_size: int,
    n: int,
    rule: Rule | None = None,
    group_index: Tensor | None = None,
) -> Plan:
    """Grouped integers with scales and zero points that are integer codes themselves.

    levels: the codes of the scales and of the zero points, each packed to `level_bits` row by row. stats: the
    grids of these codes, each float16 [runs of 16 rows, groups, 2], a scale and a zero.
    """
    levels = [level_codes(c, s, level_bits, len(codes)) for c, s in zip(levels, stats, strict=True)]
    if level_bits > 4:  # two don't go into a byte
        scale, zero = (levelled(c, s) for c, s in zip(levels, stats, strict=True))
        return grouped_int(codes, scale, zero, bits, group_size, n, rule, group_index)
    both = _grid(levels[0] | levels[1] << 4)
    # exact
    step = torch.stack(
        [t.float() for s in stats for t in (s[..., 0], -s[..., 0].float() * s[..., 1].float())], -1
    )
    records = torch.cat([both, step.contiguous().view(torch.uint8)], -1)  # [tiles, groups, 32]
    return _ints(
        codes,
        bits,
        n,
        group_index,
        op="grouped_int",
        rule=rule,
        group=group_size,
        grids="LEVELS",
        scale=records,
    )


def _ints(
    codes: Tensor, bits: int, n: int, group_index: Tensor | None, *, op: str, rule: Rule | None, **grid
) -> Plan:
    q, order = unpack(codes, bits, n), None
    if group_index is not None:
        order = group_index.argsort(stable=True).to(torch.int32)
        q = q[:, order.long()]
    values = (
        _threes(q)
        if bits == 3
        else _planes(q, (bits,) if bits == 8 else tuple(b for b in (4, 2, 1) if bits & b))
    )
    return Plan(op, "INT", (len(codes), n), rule, bits=bits, values=_slack(values), order=order, **grid)


def codebook(
    codes: Tensor, scale: Tensor, table: Tensor, group_size: int, n: int, rule: Rule | None = None
) -> Plan:
    """4-bit codes into a table of 16; scale float32 (nested scales) or 16 bits."""
    grids = "FLOATS" if scale.dtype is torch.float32 else "WHOLE"
    values, table = _planes(unpack(codes, 4, n), (4,)), table.float()
    worth = table.abs().max().clamp_min(1e-30) / 32767
    whole = (table / worth).round().int() + 32768
    return Plan(
        "codebook",
        "BOOK",
        (len(codes), n),
        rule,
        bits=4,
        group=group_size,
        grids=grids,
        values=_slack(values),
        scale=_grid(scale),
        table=torch.cat([table, worth[None]]),
        offset=torch.cat([whole & 255, whole >> 8]).to(torch.uint8),
    )


def binary_coded(
    planes: Tensor,
    alpha: Tensor,
    offset: Tensor | None,
    group_size: int,
    n: int,
    rule: Rule | None = None,
    looked_up: bool | None = None,
) -> Plan:
    """planes [bits, out, bytes], alpha [bits, out, groups], offset [out, groups] or None.

    looked_up: True if a single token's sums come from tables, False if they are added bit by bit, None for
    the way that is faster on this processor (`cpu.look_up_pays`).
    """
    bits, out = planes.shape[:2]
    looked_up = cpu.look_up_pays() if looked_up is None else looked_up
    signs = [bits_mask(plane, n).to(torch.uint8) for plane in planes]
    values = torch.cat([_nibbles(plane) if looked_up else _planes(plane, (1,)) for plane in signs], 2)
    scale = torch.stack([_grid(a.half()) for a in alpha], 2)  # [tiles, groups, bits, 16]
    return Plan(
        "binary_coded",
        "LOOK" if looked_up else "BITS",
        (out, n),
        rule,
        bits=bits,
        group=group_size,
        values=_slack(values),
        scale=scale.contiguous(),
        offset=None if offset is None else _grid(offset.float()),
    )


def bitmask(kept: Tensor, values: Tensor, n: int, rule: Rule | None = None, op: str = "bitmask") -> Plan:
    """kept: bits [out, bytes]; values: float16 at the kept places, row by row."""
    mask = bits_mask(kept, n)
    weight, shape = scatter_bitmask(values.half(), mask), (len(kept), n)
    if n % 4 == 0 and bool((mask.view(-1, 4).sum(1) == 2).all()):
        return Plan(op, "TWO_F16", shape, rule, **_two_of_four(weight, mask))

    def pairs(t):
        return _padded(t).unflatten(2, (-1, 2)).transpose(1, 2)

    weight, mask = pairs(weight), pairs(mask)
    starts = _starts(mask.flatten(1).sum(1) * 2)
    return Plan(op, "MASK_F16", shape, rule, values=_slack(weight[mask]), mask=_bytes(mask), starts=starts)


def _two_of_four(weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Two of every four columns, stored without a mask.

    They are the kept values, and two bits for each value that give its column.
    """

    def fours(t):
        return _padded(t).unflatten(2, (-1, 4)).transpose(1, 2)

    places = (~fours(mask)).to(torch.uint8).argsort(dim=-1, stable=True)[..., :2]  # the kept ones come first
    values = fours(weight).gather(-1, places)
    # [tiles, blocks, bytes of a lane, 2, 16]
    codes = (places[..., 0] | places[..., 1] << 2).unflatten(1, (-1, 4, 2))
    both = (codes[:, :, :, 0] | codes[:, :, :, 1] << 4).transpose(2, 3)
    return {"values": _slack(values), "mask": both.to(torch.uint8).contiguous()}


def bitmask_codes(
    mask: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    rule: Rule | None = None,
    op: str = "bitmask",
) -> Plan:
    """mask bool [out, in] (True: kept), codes uint8 [out, in]."""
    shape = mask.shape
    codes, mask = (_quads(t) for t in (codes, mask))  # [tiles, blocks, 8, 16, 4]
    counts = mask.flatten(3).sum(3)  # [tiles, blocks, 8]
    sizes, values = counts, codes[mask]
    if bits <= 4:  # two codes a byte, of eight columns together
        sizes = counts.unflatten(2, (4, 2)).amax(3)

        def of_code(per_quad):
            return torch.repeat_interleave(per_quad, counts.flatten())

        place = (
            torch.arange(len(values))
            - of_code(_begins(counts))
            + of_code(_begins(sizes).repeat_interleave(2))
        )
        high = of_code(torch.tensor([0, 4], dtype=torch.int32).repeat(sizes.numel()))
        values = (
            torch.zeros(int(sizes.sum()), dtype=torch.int32)
            .index_add_(0, place, values.int() << high)
            .to(torch.uint8)
        )
    return Plan(
        op,
        "MASK_INT",
        shape,
        rule,
        bits=bits,
        group=group_size,
        values=_slack(values),
        mask=_bytes(mask),
        starts=_starts(sizes.flatten(1).sum(1)),
        scale=_grid(scale.half()),
        zero=None if zero is None else _grid(zero),
    )


def low_rank(u: Tensor, v: Tensor, rule: Rule | None = None) -> Plan:
    """u [out, rank], v [rank, in], 16 bits each."""
    return Plan("low_rank", "LOW_RANK", (u.shape[0], v.shape[1]), rule, parts=(dense(v, rule), dense(u)))


def sum_of(first: Plan, second: Plan) -> Plan | None:
    """The sum of two matrices of one shape; None if their columns are in different orders."""
    order = first.tensors.get("order")
    if order is not None and second.adds:
        second = second.ordered(order)
    if (order is None) != ("order" not in second.tensors):
        return None
    return Plan(first.op, "SUM", first.shape, first.rule, parts=(first, second), order=order)


def outliers(values: Tensor, columns: Tensor, starts: Tensor, n: int, rule: Rule | None = None) -> Plan:
    """A few 16-bit values, row by row."""
    return Plan(
        "outliers",
        "OUTLIERS",
        (len(starts) - 1, n),
        rule,
        values=_slack(values.half()),
        mask=_slack(columns),
        starts=starts.int(),
    )


def columns(values: Tensor, index: Tensor, n: int, rule: Rule | None = None) -> Plan:
    """A few whole columns: values [out, k] in 16 bits, index [k]."""
    return Plan("columns", "COLUMNS", (len(values), n), rule, values=_grid(values.half()), starts=index.int())


def tensor_train(
    cores: Tensor, modes: tuple[int, ...], ranks: tuple[int, ...], n: int, rule: Rule | None = None
) -> Plan:
    """cores float16 [out, P]: each row's chain, flat."""
    shape = torch.tensor([len(modes), *modes, *ranks], dtype=torch.int32)
    return Plan("tensor_train", "TENSOR_TRAIN", (len(cores), n), rule, values=_grid(cores), starts=shape)


def two_four(values: Tensor, positions: Tensor, n: int, rule: Rule | None = None) -> Plan:
    """values float16 [out, in / 2], positions packed to 2 bits."""
    places = unpack(positions, 2, n // 2)
    keep = scatter_two_four(torch.ones_like(places), places).bool()
    # scattered, then gathered, so that the values are in the order of the columns
    return bitmask(mask_bits(keep), scatter_two_four(values, places)[keep], n, rule, "two_four")


# op (a key of kernels.OPS) -> a function of its operands, columns and rule that makes the plan
TILES: dict[str, Callable[..., Plan]] = {
    "dense": lambda weight, n, rule: dense(weight, rule),
    "grouped_int": grouped_int,
    "codebook": codebook,
    "binary_coded": partial(binary_coded, looked_up=False),
    "looked_up": partial(binary_coded, looked_up=True),
    "bitmask": lambda kept, values, starts, n, rule: bitmask(kept, values, n, rule),
    "two_four": two_four,
    "low_rank": lambda u, v, n, rule: low_rank(u, v, rule),
    "outliers": outliers,
    "columns": columns,
    "tensor_train": tensor_train,
}


def to_range(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a weight to a type, after clamping it to the type's finite range."""
    limit = torch.finfo(dtype).max
    return weight.to(dtype, copy=True).clamp_(-limit, limit)


def _padded(matrix: Tensor) -> Tensor:
    """[out, in] -> [tiles, 16, columns], zeros beyond the edges."""
    out, n = matrix.shape
    beyond = (0, -n % COLUMNS, 0, -out % ROWS)
    return (F.pad(matrix, beyond) if any(beyond) else matrix).reshape(-1, ROWS, n + beyond[1])


def _quads(matrix: Tensor) -> Tensor:
    """[out, in] -> [tiles, blocks, 8, 16, 4]: four columns of 16 rows together."""
    return _padded(matrix).unflatten(2, (-1, 8, 4)).permute(0, 2, 3, 1, 4)


def _planes(codes: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Codes [out, in] -> the words of plan.h: uint8 [tiles, blocks, words, 16, 4].

    They are a plane for each of the widths, low bits first.
    """
    quads, at, words = _quads(codes), 0, []
    for width in widths:
        # [tiles, blocks, words, codes in a byte, 16, 4]
        together = quads.unflatten(2, (width, 8 // width)) >> at
        mask = (1 << width) - 1
        words.append(sum((together[:, :, :, k] & mask) << (width * k) for k in range(8 // width)))
        at += width
    return torch.cat(words, 2)


def _nibbles(signs: Tensor) -> Tensor:
    """Bits uint8 [out, in] -> uint8 [tiles, blocks, 1, 4, 16].

    A nibble holds the bits of four columns. The low nibbles hold the block's first 16 columns.
    """
    quads = _quads(signs)
    four = sum(quads[..., k] << k for k in range(4))  # [tiles, blocks, 8, 16]
    return (four[:, :, :4] | four[:, :, 4:] << 4).unsqueeze(2)


def _threes(codes: Tensor) -> Tensor:
    """Codes of 3 bits -> uint8 [tiles, blocks, 3, 16, 4].

    Each byte holds two codes in its low six bits. Its upper two bits hold a part of the last columns' codes.
    """
    c = _quads(codes)
    last = c[:, :, 6] | c[:, :, 7] << 3
    return torch.stack(
        [c[:, :, 2 * k] | c[:, :, 2 * k + 1] << 3 | (last >> 2 * k & 3) << 6 for k in range(3)], 2
    )


def _grid(per_group: Tensor) -> Tensor:
    """[out, groups] -> [tiles, groups, 16]."""
    return (
        F.pad(per_group, (0, 0, 0, -len(per_group) % ROWS))
        .unflatten(0, (-1, ROWS))
        .transpose(1, 2)
        .contiguous()
    )


def _row_sums(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    n: int,
    group_index: Tensor | None,
):
    """The sum of each row of the matrix, float32 [tiles, 1, 16]."""

    def of_column(t):
        return spread(t.float(), n, group_size) if group_index is None else t.float()[:, group_index]

    middle = 2 ** (bits - 1) if zero is None else of_column(zero)
    return _grid((of_column(scale) * (unpack(codes, bits, n).float() - middle)).sum(1, keepdim=True))


def _begins(sizes: Tensor) -> Tensor:
    """Where each run begins, for runs of these sizes that follow each other; flat."""
    return sizes.flatten().cumsum(0) - sizes.flatten()


def _starts(sizes: Tensor) -> Tensor:
    """Bytes before each tile, int64 [tiles + 1]."""
    return F.pad(sizes.cumsum(0), (1, 0)).contiguous()


def _bytes(mask: Tensor) -> Tensor:
    """bool, any shape -> bits in order, 8 a byte."""
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return _slack((mask.reshape(-1, 8) * weights).sum(-1, dtype=torch.uint8))


def _slack(values: Tensor) -> Tensor:
    """A flat contiguous copy with room to read beyond the end.

    It is the only copy that is made: the largest matrix decides how much memory loading takes at most.
    """
    flat = values.new_zeros(values.numel() + SLACK // values.element_size())
    flat[: values.numel()].view(values.shape).copy_(values)
    return flat
