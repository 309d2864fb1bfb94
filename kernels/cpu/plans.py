"""Stored matrices as the C kernels read them: tiles of 16 rows, each one stream (plan.h describes every layout).

Each function takes a format's canonical tensors (kernels/<op>.py) and returns a `Plan`. Bringing them into tiles is a
permutation: nothing is rounded. `rule` = (columns that share an int8 scale, largest code), or None for exact activations.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import cpu
from kernels.bits import unpack
from kernels.outliers import outliers_matrix
from kernels.sparse import bits_mask, scatter_bitmask

KINDS = ("F32", "F16", "BF16", "INT", "BOOK", "BITS", "MASK_F16", "MASK_INT", "LOW_RANK", "SUM", "OUTLIERS")
ROWS, COLUMNS = 16, 32  # of a tile, of a block
SLACK = 64  # bytes that a kernel may read beyond the last value

Rule = tuple[int, int] | None


class _Struct(ctypes.Structure):
    """`struct plan` of plan.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("out", "n", "groups", "group", "rule")),
        *((name, ctypes.c_int32) for name in ("kind", "bits", "top", "unused")),
        *((name, ctypes.c_void_p) for name in ("values", "mask", "starts", "scale", "zero", "offset", "table", "order", "first", "second")),
    ]  # fmt: skip


class Plan:
    """A matrix [out, n] in tiles; keeps its tensors alive. `op` and `rule` name the kernel that serves it."""

    def __init__(self, op: str, kind: str, shape: tuple[int, int], rule: Rule = None, *, bits: int = 0, group: int = 0,
                 parts: tuple[Plan, ...] = (), **tensors: Tensor | None):  # fmt: skip
        self.op, self.kind, self.shape, self.rule, self.parts = op, kind, tuple(shape), rule, parts
        self.tensors = {name: t for name, t in tensors.items() if t is not None}
        out, n = shape
        whole = -(-n // COLUMNS) * COLUMNS
        group = whole if group in (0, -1) else group
        columns, top = rule or (0, 127)
        self.struct = _Struct(out=out, n=n, groups=1 if group >= n else -(-n // group), group=group, rule=min(columns, whole),
                              kind=KINDS.index(kind), bits=bits, top=top)  # fmt: skip
        for name, tensor in self.tensors.items():
            setattr(self.struct, name, tensor.data_ptr())
        for name, part in zip(("first", "second"), parts, strict=False):
            setattr(self.struct, name, part.address)
        self.address = ctypes.addressof(self.struct)
        self.handle = next(_numbers)
        _plans[self.handle] = self

    def clone(self) -> Plan:
        """The same matrix in other memory."""
        parts = tuple(part.clone() for part in self.parts)
        tensors = {name: t.clone() for name, t in self.tensors.items()}
        return Plan(
            self.op, self.kind, self.shape, self.rule, bits=self.struct.bits, group=self.struct.group, parts=parts, **tensors
        )

    @property
    def in_int8(self) -> bool:
        """True if activations are multiplied as integers; float weights take them rounded, as floats."""
        return self.rule is not None and (self.kind in ("INT", "MASK_INT", "BOOK", "BITS") or any(p.in_int8 for p in self.parts))

    def all_tensors(self) -> list[Tensor]:
        return [*self.tensors.values(), *(t for part in self.parts for t in part.all_tensors())]

    def matrix(self) -> Tensor:
        """Outliers as a dense float32 [out, in]."""
        values, columns = (self.tensors[name][: -SLACK // 2] for name in ("values", "mask"))
        dense, order = outliers_matrix(values, columns, self.tensors["starts"], self.shape[1]), self.tensors.get("order")
        return dense if order is None else dense[:, order.argsort()]

    def ordered(self, order: Tensor) -> Plan:
        """Outliers for an input whose column k is column order[k] of W."""
        columns = order.argsort()[self.tensors["mask"].long() & 0xFFFF].to(torch.int16)  # what stands in the slack: some column
        return Plan(self.op, self.kind, self.shape, self.rule, **self.tensors | {"mask": columns, "order": order})

    @property
    def bytes(self) -> int:
        """Memory that the tiles take, padding included."""
        return sum(t.numel() * t.element_size() for t in self.all_tensors())


_numbers = itertools.count()
_plans: weakref.WeakValueDictionary[int, Plan] = weakref.WeakValueDictionary()


@torch.library.custom_op("compression_explorer::product", mutates_args=())
def traced_product(x: Tensor, plan: int, out: int) -> Tensor:
    """`cpu.product` as an operator that torch.compile puts into its graph; plan: its handle, out: its rows."""
    return cpu.product(_plans[plan], x)


@traced_product.register_fake
def _(x, plan, out):
    return x.new_empty((*x.shape[:-1], out))


@torch.library.custom_op("compression_explorer::rows", mutates_args=())
def traced_rows(ids: Tensor, plan: int, n: int) -> Tensor:
    """`cpu.rows` likewise; n: columns."""
    return cpu.rows(_plans[plan], ids)


@traced_rows.register_fake
def _(ids, plan, n):
    return ids.new_empty((ids.numel(), n), dtype=torch.float32)


def dense(weight: Tensor, rule: Rule = None) -> Plan:
    """weight [out, in] float32, float16 or bfloat16, as it is."""
    kind = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[weight.dtype]
    tiles = _padded(weight)  # [tiles, 16, columns]
    if kind == "BF16":
        tiles = tiles.unflatten(2, (-1, 2)).transpose(1, 2)
    else:
        tiles = tiles.transpose(1, 2)
    return Plan("dense", kind, weight.shape, rule, values=_slack(tiles))


def grouped_int(codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group_size: int, n: int, rule: Rule = None,
                group_index: Tensor | None = None) -> Plan:  # fmt: skip
    """codes packed to the bit [out, bytes]; scale [out, groups]; zero uint8 [out, groups] or None (the middle).

    group_index [in]: each column's group where groups are no runs; columns are then brought together by group.
    """
    q, order = unpack(codes, bits, n), None
    if group_index is not None:
        order = group_index.argsort(stable=True).to(torch.int32)
        q = q[:, order.long()]
    values = _threes(q) if bits == 3 else _planes(q, (bits,) if bits == 8 else tuple(b for b in (4, 2, 1) if bits & b))
    return Plan("grouped_int", "INT", (len(codes), n), rule, bits=bits, group=group_size, values=_slack(values),
                scale=_grid(scale.half()), zero=None if zero is None else _grid(zero), order=order)  # fmt: skip


def codebook(codes: Tensor, scale: Tensor, table: Tensor, group_size: int, n: int, rule: Rule = None) -> Plan:
    """4-bit codes into a table of 16."""
    values, table = _planes(unpack(codes, 4, n), (4,)), table.float()
    worth = table.abs().max().clamp_min(1e-30) / 32767
    whole = (table / worth).round().int() + 32768
    return Plan("codebook", "BOOK", (len(codes), n), rule, bits=4, group=group_size, values=_slack(values), scale=_grid(scale.half()),
                table=torch.cat([table, worth[None]]), offset=torch.cat([whole & 255, whole >> 8]).to(torch.uint8))  # fmt: skip


def binary_coded(planes: Tensor, alpha: Tensor, offset: Tensor | None, group_size: int, n: int, rule: Rule = None) -> Plan:
    """planes [bits, out, bytes], alpha [bits, out, groups], offset [out, groups] or None."""
    bits, out = planes.shape[:2]
    values = torch.cat([_planes(bits_mask(plane, n).to(torch.uint8), (1,)) for plane in planes], 2)
    scale = torch.stack([_grid(a.half()) for a in alpha], 2)  # [tiles, groups, bits, 16]
    return Plan("binary_coded", "BITS", (out, n), rule, bits=bits, group=group_size, values=_slack(values),
                scale=scale.contiguous(), offset=None if offset is None else _grid(offset.half()))  # fmt: skip


def bitmask(kept: Tensor, values: Tensor, n: int, rule: Rule = None, op: str = "bitmask") -> Plan:
    """kept bits [out, bytes], values float16 of the kept places, row by row."""
    mask = bits_mask(kept, n)
    pairs = lambda t: _padded(t).unflatten(2, (-1, 2)).transpose(1, 2)  # noqa: E731  [tiles, pairs of columns, 16, 2]
    weight, mask = pairs(scatter_bitmask(values.half(), mask)), pairs(mask)
    starts = _starts(mask.flatten(1).sum(1) * 2)
    return Plan(op, "MASK_F16", (len(kept), n), rule, values=_slack(weight[mask]), mask=_bytes(mask), starts=starts)


def bitmask_codes(mask: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group_size: int, rule: Rule = None,
                  op: str = "bitmask") -> Plan:  # fmt: skip
    """mask bool [out, in] (True: kept), codes uint8 [out, in]."""
    shape = mask.shape
    codes, mask = (_quads(t) for t in (codes, mask))  # [tiles, blocks, 8, 16, 4]
    counts = mask.flatten(3).sum(3)  # [tiles, blocks, 8]
    sizes = (counts + 1) // 2 if bits <= 4 else counts
    values = codes[mask]
    if bits <= 4:  # two codes a byte, beginning anew every four columns
        first = torch.repeat_interleave(sizes.flatten().cumsum(0) - sizes.flatten(), counts.flatten())
        place = torch.arange(len(values)) - torch.repeat_interleave(
            counts.flatten().cumsum(0) - counts.flatten(), counts.flatten()
        )
        stream = torch.zeros(int(sizes.sum()), dtype=torch.int32)
        values = stream.index_add_(0, first + place // 2, values.int() << (4 * (place % 2)).int()).to(torch.uint8)
    return Plan(op, "MASK_INT", shape, rule, bits=bits, group=group_size, values=_slack(values), mask=_bytes(mask),
                starts=_starts(sizes.flatten(1).sum(1)), scale=_grid(scale.half()), zero=None if zero is None else _grid(zero))  # fmt: skip


def low_rank(u: Tensor, v: Tensor, rule: Rule = None) -> Plan:
    """u [out, rank], v [rank, in], 16 bits each."""
    return Plan("low_rank", "LOW_RANK", (u.shape[0], v.shape[1]), rule, parts=(dense(v, rule), dense(u)))


def total(first: Plan, second: Plan) -> Plan | None:
    """The sum of two matrices of one shape; None where their columns stand in different orders."""
    order = first.tensors.get("order")
    if order is not None and second.kind == "OUTLIERS":
        second = second.ordered(order)
    if (order is None) != ("order" not in second.tensors):
        return None
    return Plan(first.op, "SUM", first.shape, first.rule, parts=(first, second), order=order)


def outliers(values: Tensor, columns: Tensor, starts: Tensor, n: int, rule: Rule = None) -> Plan:
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


def to_range(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast, clamped to the type's finite range."""
    limit = torch.finfo(dtype).max
    return weight.clamp(-limit, limit).to(dtype)


def _padded(matrix: Tensor) -> Tensor:
    """[out, in] -> [tiles, 16, columns], zeros beyond the edges."""
    out, n = matrix.shape
    return F.pad(matrix, (0, -n % COLUMNS, 0, -out % ROWS)).view(-1, ROWS, -(-n // COLUMNS) * COLUMNS)


def _quads(matrix: Tensor) -> Tensor:
    """[out, in] -> [tiles, blocks, 8, 16, 4]: four columns of 16 rows together."""
    return _padded(matrix).unflatten(2, (-1, 8, 4)).permute(0, 2, 3, 1, 4)


def _planes(codes: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Codes [out, in] -> the words of plan.h: uint8 [tiles, blocks, words, 16, 4], a plane of each width, low bits first."""
    quads, at, words = _quads(codes), 0, []
    for width in widths:
        together = quads.unflatten(2, (width, 8 // width)) >> at  # [tiles, blocks, words, codes in a byte, 16, 4]
        mask = (1 << width) - 1
        words.append(sum((together[:, :, :, k] & mask) << (width * k) for k in range(8 // width)))
        at += width
    return torch.cat(words, 2)


def _threes(codes: Tensor) -> Tensor:
    """Codes of 3 bits -> uint8 [tiles, blocks, 3, 16, 4]: two in six bits, and a third of the last two in the bits above."""
    c = _quads(codes)
    last = c[:, :, 6] | c[:, :, 7] << 3
    return torch.stack([c[:, :, 2 * k] | c[:, :, 2 * k + 1] << 3 | (last >> 2 * k & 3) << 6 for k in range(3)], 2)


def _grid(per_group: Tensor) -> Tensor:
    """[out, groups] -> [tiles, groups, 16]."""
    out = per_group.shape[0]
    return F.pad(per_group, (0, 0, 0, -out % ROWS)).view(-1, ROWS, per_group.shape[1]).transpose(1, 2).contiguous()


def _starts(sizes: Tensor) -> Tensor:
    """Bytes before each tile, int64 [tiles + 1]."""
    return F.pad(sizes.cumsum(0), (1, 0)).contiguous()


def _bytes(mask: Tensor) -> Tensor:
    """bool, any shape -> bits in order, 8 a byte."""
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return _slack((mask.reshape(-1, 8) * weights).sum(-1, dtype=torch.uint8))


def _slack(values: Tensor) -> Tensor:
    """A flat contiguous copy with room to read beyond the end."""
    return F.pad(values.reshape(-1), (0, SLACK // values.element_size()))
