"""TensorGPT: every token's embedding as a chain of small tensors.

A language model begins with a table: a vector of some hundred numbers for each token of its vocabulary. In
small models that table is a fifth to a third of all weights, and the other methods here leave it alone or
round it. TensorGPT folds each vector into a tensor of many short sides (768 numbers as 2 x 2 x ... x 2 x 3)
and stores it as a tensor train: one small core a side, joined by at most `rank` threads. Each token keeps its
own chain, so a token can be added or changed without touching the others. No data and no training are needed.

Xu et al. 2023, "TensorGPT: Efficient Compression of the Embedding Layer in LLMs based on the Tensor-Train
Decomposition", arXiv 2307.00526. The chain comes from a sequence of truncated SVDs (TT-SVD): fold the rest of
the vector into a matrix, keep its `rank` strongest directions as the next core, go on with what they leave.
The squared error is exactly the sum of what each step discards. A token takes P = sum r_(k-1) I_k r_k
numbers, the same for all.

What is saved: the table only, on disk and in memory, by width / P. All other matrices stay. Where embedding
and head share one table (GPT-2, OPT, small Llama and Qwen) the head is computed from the chains as well, and
the errors count twice; with the head kept dense a second table is stored and the file grows. Models with a
head of their own keep it. A rank whose chains need no fewer numbers than the vector saves nothing: the table
is left as it is, and a note says so.

Expect little: a vector of an embedding table has no reason to be a short chain. At a third of the size the
chains miss it by four fifths of its length, and without training the model is broken long before a half. The
abstract's "38.40 times smaller" is 768 padded to 1024 = 2^10 at rank 1. `kind` = svd spends the same bytes on
a truncated SVD of the whole table, whose directions all tokens share, as a baseline: it misses the vectors by
far less, but drops some directions for every token at once, and where a shared head listens to those the
model suffers more than the vectors.

Deviations: no code of the authors is public, so shapes and ranks are inferred from their ratios; sides are
the width's prime factors by default (without padding: the same for powers of two, shorter chains elsewhere);
"padded" is the paper's shape, "square" folds into one matrix and keeps more at the same size. The cores of a
token get equal sizes before they are rounded to 16 bits.

Cost: seconds to half a minute; one small eigenvalue problem a token and side, in 64 bits. In use a token is
rebuilt from its chain, and a shared head rebuilds 16 rows at a time and multiplies them: the whole table
never exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compression.base import Context, Cost, Edit, Note, Params, TableMethod, param
from compression.low_rank.rank import top_eigenvectors
from compression.packed import FORMATS
from compression.packed.base import Packed
from compression.packed.dense import Dense
from compression.packed.low_rank import LowRank
from compression.packed.tensor_train import TensorTrain
from kernels.tensor_train import values_per_row

TOKENS_PER_CHUNK = 2_048


@dataclass(frozen=True)
class TensorGptParams(Params):
    """How large the chains are, and which tables are stored as chains."""

    rank: int = param(
        4,
        "Threads between neighbouring cores of a token's chain: more keep more of its vector.",
        lo=1,
        hi=32,
        step=1,
        main=True,
        ends=("tiny, worse", "large, better"),
    )
    kind: str = param(
        "tensor_train",
        "What stores the table: a chain for each token, or an SVD of the whole table of no more "
        "bytes, to compare with.",
        choices=("tensor_train", "svd"),
        label="choice",
    )
    modes: str = param(
        "factors",
        "Sides that a vector is folded into: its width's prime factors, twos after padding to a power of "
        "two (the paper's ratios), or two sides as equal as possible.",
        choices=("factors", "padded", "square"),
        level="advanced",
    )
    head: str = param(
        "cores",
        "What a head that shares the table does: read the chains too, or keep a dense table of its own "
        "(the file grows).",
        choices=("cores", "dense"),
        level="advanced",
    )


def prime_factors(n: int) -> tuple[int, ...]:
    """The prime factors 2 <= p_1 <= p_2 <= ... whose product is n."""
    found, p = [], 2
    while p * p <= n:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return (*found, n) if n > 1 else tuple(found)


def padded(width: int) -> tuple[int, ...]:
    """As many twos as it takes for their product to be the next power of two."""
    return (2,) * max(1, (width - 1).bit_length())


def square(width: int) -> tuple[int, ...]:
    """Two factors of width that are as equal as possible, the smaller first."""
    small = max(a for a in range(1, math.isqrt(width) + 1) if width % a == 0)
    return (small, width // small)


MODES: dict[str, Callable[[int], tuple[int, ...]]] = {
    "factors": prime_factors,
    "padded": padded,
    "square": square,
}


def ranks_of(modes: Sequence[int], rank: int) -> tuple[int, ...]:
    """r_0 = 1, r_k = min(rank, product of the modes before, product of those after), r_K = 1."""
    between = (min(rank, math.prod(modes[:k]), math.prod(modes[k:])) for k in range(1, len(modes)))
    return (1, *between, 1)


def shape_of(width: int, params: TensorGptParams) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """(modes, ranks, numbers for each token P) of a table with `width` columns."""
    modes = MODES[params.modes](width)
    ranks = ranks_of(modes, params.rank)
    return modes, ranks, values_per_row(modes, ranks)


def svd_rank(shape: tuple[int, int], values: int) -> int:
    """The rank of a table [vocabulary, width] whose two factors hold at most `values` numbers a token."""
    vocabulary, width = shape
    return vocabulary * values // (vocabulary + width)


def tt_svd(vectors: Tensor, modes: Sequence[int], ranks: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """The cores of each row of vectors [n, width] as a tensor train, and each row's squared error [n].

    The cores are [n, r_(k-1), I_k, r_k] float64. This is sequential TT-SVD. What is left of a row is folded
    into a matrix C. Its strongest left singular vectors U are the top eigenvectors of C C^T, a matrix of at
    most 2 rank rows if all modes are 2. They become a core, and U^T C is left. All cores but the last have
    orthonormal columns.
    """
    rest = F.pad(vectors.double(), (0, math.prod(modes) - vectors.shape[1]))
    cores, error = [], rest.new_zeros(len(rest))
    for k, mode in enumerate(modes[:-1]):
        folded = rest.reshape(len(rest), ranks[k] * mode, -1)
        squares, directions = torch.linalg.eigh(folded @ folded.mT)
        basis = directions[:, :, -ranks[k + 1] :].flip(2)
        error += squares[:, : -ranks[k + 1]].clamp_min(0).sum(1)
        rest = basis.mT @ folded
        cores.append(basis.unflatten(1, (ranks[k], mode)))
    return [*cores, rest.reshape(len(rest), ranks[-2], modes[-1], 1)], error


def trains(table: Tensor, modes: Sequence[int], ranks: Sequence[int], context: Context) -> TensorTrain:
    """table [vocabulary, width] with a chain for every row; some thousand rows are factorised at a time."""
    chunks = table.split(TOKENS_PER_CHUNK)
    stored = []
    for done, chunk in enumerate(chunks):
        context.recorder.check("compressing the table")
        context.recorder.progress("compress", done, len(chunks))
        stored.append(TensorTrain.encode(chunk.shape, tt_svd(chunk, modes, ranks)[0]).cores)
    return TensorTrain(tuple(table.shape), torch.cat(stored), modes, ranks)


def factors(table: Tensor, rank: int) -> LowRank:
    """table [vocabulary, width] as the nearest product of two thin matrices."""
    gram = sum(chunk.double().T @ chunk.double() for chunk in table.split(TOKENS_PER_CHUNK))
    basis = top_eigenvectors(gram, rank).float()
    return LowRank.encode(table @ basis, basis.T)


def relative_error(table: Tensor, packed: Packed) -> float:
    """||E - E'|| / ||E||, where E' is the table as stored."""
    ids = torch.arange(len(table), device=table.device).split(TOKENS_PER_CHUNK)
    lost = sum((table[rows] - packed.rows(rows).to(table.device)).double().square().sum() for rows in ids)
    return float((lost / table.double().square().sum().clamp_min(1e-30)).sqrt())


def compress(bundle, context: Context, params: TensorGptParams) -> Edit:
    """Store the token embedding, and with it a head that shares it."""
    embedding = bundle.module.get_input_embeddings()
    table = embedding.weight.detach().float()
    modes, ranks, values = shape_of(table.shape[1], params)
    if values >= table.shape[1]:
        return Edit(
            notes=(
                Note("rank_saves_nothing", {"rank": params.rank, "values": values, "width": table.shape[1]}),
            )
        )
    if params.kind == "svd":
        packed = factors(table, svd_rank(table.shape, values))
    else:
        packed = trains(table, modes, ranks, context)
    path = next(name for name, module in bundle.module.named_modules() if module is embedding)
    figures = {path: {"relative_error": relative_error(table, packed)}}
    if bundle.geometry.tied and params.head == "dense":
        grown = Note("head_kept", {"bytes": 2 * table.numel()})
        return Edit(table=packed, head=Dense.encode(table), figures=figures, notes=(grown,))
    return Edit(table=packed, figures=figures)


def table_cost(shape: tuple[int, int], params: TensorGptParams, tied: bool) -> Cost | None:
    """The cost of a table [vocabulary, width], with a head that shares it.

    None if the table stays as it is.
    """
    vocabulary, width = shape
    modes, ranks, values = shape_of(width, params)
    if values >= width:
        return None
    if params.kind == "svd":
        size = 2 * svd_rank(shape, values) * (vocabulary + width)
        flops = 4.0 * vocabulary * width**2 + 20.0 * width**3
        peak = 8 * 3 * width**2 + 4 * vocabulary * width
    else:
        sides = [a * m for a, m in zip(ranks, modes, strict=False)]
        size = 2 * vocabulary * values
        flops = vocabulary * sum(4.0 * width * s + 100.0 * s**3 for s in sides[:-1])
        peak = 4 * vocabulary * width + 4 * 8 * TOKENS_PER_CHUNK * math.prod(modes)
    dense = 2 * vocabulary * width if tied and params.head == "dense" else 0
    return Cost(bytes=size + dense, flops=flops, peak_bytes=peak + 2 * dense)


METHOD = TableMethod(
    name="tensorgpt",
    title="TensorGPT",
    family="low_rank",
    paper="https://arxiv.org/abs/2307.00526",
    params=TensorGptParams,
    compress=compress,
    cost=lambda shape, params, tokens: Cost(bytes=2 * shape[0] * shape[1], flops=0.0),
    table_cost=table_cost,
    after=frozenset(FORMATS) - {"dense", "tensor_train"},  # formats of linears, which stay as they are
    identity={"rank": 32},
    tiny={"rank": 2, "modes": "square"},
    essay=__doc__,
)
