"""TensorGPT: every token's embedding as a chain of small tensors.

A language model begins with a table: a vector of some hundred numbers for each token of its vocabulary. In
small models this table is a fifth to a third of all weights, and the other methods here leave it alone or
round it. TensorGPT folds each vector into a tensor (576 numbers as 24 x 24, or as 2 x 2 x ... x 3) and stores
it as a tensor train: a chain with one small core for each side, whose neighbours share at most `rank`
threads. Each token has a chain of its own, so a token can be added or changed without touching the others. No
data and no training are needed.

Xu et al. 2023, "TensorGPT: Efficient Compression of the Embedding Layer in LLMs based on the Tensor-Train
Decomposition", arXiv 2307.00526. The chain comes from a sequence of truncated SVDs (TT-SVD): fold the rest of
the vector into a matrix, keep its `rank` strongest directions as the next core, and go on with the rest. The
squared error is exactly the sum of what each step discards. Every token takes P = sum r_(k-1) I_k r_k
numbers.

What is saved: only the table becomes smaller, width / P times, on disk and in memory. All other matrices
stay. A model with a head of its own keeps it. If embedding and head share one table (GPT-2, OPT, small Llama
and Qwen), `head` decides. By default the head keeps the dense table, so a second table is stored. The file
then grows, and the run shows what the chains cost if they replace the input's table alone. With `cores` the
head reads the chains too. The file then shrinks, but every token's probability is computed from an inexact
vector. If a rank's chains need as many numbers as the vector, nothing would be saved: the table is left as it
is, and a note says so.

What the papers claim, and what comes out here. The first version of the paper says 38.40 times smaller. This
is 768 padded to 1024 = 2^10 at rank 1, and no quality is claimed for it. The second version, and TensorSLM
(2025, arXiv 2506.13514), claim about 2 times at comparable quality. The default has this size: two sides of
24, 6 threads, 2.00 times. On the first 2,048 tokens of WikiText-2 the offline model has a perplexity of 30.
With the input's table in chains it has 114: it still writes, but its quality isn't comparable. If the shared
head reads the same chains, the perplexity is 124,723 (32,768 tokens), and the model is broken.

`kind` = svd spends the same bytes on a truncated SVD of the whole table, whose directions all tokens share.
It misses the vectors by 0.41 of their length, where the chains miss them by 0.59. Yet its perplexity is
2,871, because a plain SVD treats rare tokens like frequent ones, whose vectors have other directions.
`weighted` says how errors count. With frequency, each token's error counts as often as the token occurs in
the calibration text (a tenth of the weight is spread over the whole vocabulary). The perplexity is then 93,
below that of the chains at the same bytes. If the shared head reads the table too, it is 182 instead of the
plain SVD's 68,380. With states, an error counts as much as the final hidden states see of it, (e - e') M (e -
e')^T with M the mean of h h^T. This is for a head that reads the table. Both are closed forms: the strongest
directions of the weighted table.

Training (`train_tokens`): the numbers of the chains, or of the two thin matrices, are trained on the
calibration text. The loss is KL(before || after) for each token, where `before` is the model before this
step. All other weights are frozen. A chain learns only from texts with its own token in them, so the chains
of rare tokens stay as they were. With a shared head every token learns. The best state on held-out windows is
kept. The control is the SVD in the same bytes, trained in the same way.

Deviations: no code of the authors is public, so shapes and ranks are inferred from their ratios. Two sides as
equal as possible are the default, because they keep more at the same size; "factors" are the width's prime
factors, "padded" is the shape of the paper's ratios. The cores of a token are scaled to equal root mean
squares before they are rounded to 16 bits. Weighted errors and training are ours.

Cost: seconds to half a minute; one small eigenvalue problem for each token and side, in 64 bits. A training
step takes two forward passes and one backward pass, and computes the probabilities of all tokens twice. In
use a token is rebuilt from its chain. A shared head rebuilds 16 rows at a time and multiplies them, so the
whole table never exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compression import arch
from compression.base import (
    BUDGET_MINUTES,
    BadParam,
    Context,
    Cost,
    Edit,
    Note,
    Params,
    TrainedTableMethod,
    param,
)
from compression.bundle import Bundle
from compression.divergences import forward_kl
from compression.likelihood import final_states, hidden_states
from compression.low_rank.rank import top_eigenvectors
from compression.packed import FORMATS
from compression.packed.base import Packed
from compression.packed.dense import Dense
from compression.packed.low_rank import LowRank
from compression.packed.tensor_train import TensorTrain
from compression.row_losses import sum_over_rows
from compression.surgery import instead
from compression.training import Budget, from_text, train
from kernels.tensor_train import split, tensor_train_rows, values_per_row

TOKENS_PER_CHUNK = 2_048
UNSEEN = 0.1  # share of the tokens' weights that is spread evenly over the vocabulary
DAMPING = 0.01  # share of the mean diagonal that is added to the states' second moments


@dataclass(frozen=True)
class TensorGptParams(Params):
    """How large the chains are, and which tables are stored as chains."""

    rank: int = param(
        6,
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
        "square",
        "Sides that a vector is folded into: two sides as equal as possible, its width's prime factors, or "
        "twos after padding to a power of two (the paper's ratios).",
        choices=("square", "factors", "padded"),
        level="advanced",
    )
    head: str = param(
        "dense",
        "What a head that shares the table does: keep a dense table of its own (the file grows), or read "
        "what is stored too.",
        choices=("dense", "cores"),
    )
    weighted: str = param(
        "nothing",
        "What the SVD weighs its errors by: nothing, how often a token occurs in the text, the states that "
        "a shared head multiplies, or both.",
        choices=("nothing", "frequency", "states", "both"),
        level="advanced",
        when={"kind": "svd"},
    )
    train_tokens: int = param(
        0, "Train what is stored on this many tokens of text; 0: don't train.", lo=0, hi=1_000_000_000
    )
    train_minutes: float = param(
        20.0, "Or for this many minutes, whichever comes first.", lo=0.1, hi=10_000.0, level="advanced"
    )
    learning_rate: float = param(1e-3, "Highest step size of AdamW.", lo=1e-7, hi=1.0, level="advanced")


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


def tensor_trains(table: Tensor, modes: Sequence[int], ranks: Sequence[int], context: Context) -> TensorTrain:
    """table [vocabulary, width] with a chain for every row; some thousand rows are factorised at a time."""
    chunks = table.split(TOKENS_PER_CHUNK)
    stored = []
    for done, chunk in enumerate(chunks):
        context.recorder.check("compressing the table")
        context.recorder.progress("compress", done, len(chunks))
        stored.append(TensorTrain.encode(chunk.shape, tt_svd(chunk, modes, ranks)[0]).cores)
    return TensorTrain(tuple(table.shape), torch.cat(stored), modes, ranks)


def frequencies(windows: Tensor, vocabulary: int) -> Tensor:
    """How often each token occurs in token ids `windows`, as shares [vocabulary] float64 that sum to 1.

    UNSEEN of the whole is spread evenly, so that a token that doesn't occur still counts a little.
    """
    counts = torch.bincount(windows.flatten().cpu(), minlength=vocabulary).double()
    return (1 - UNSEEN) * counts / counts.sum() + UNSEEN / vocabulary


def second_moments(bundle: Bundle, windows: Tensor, context: Context) -> Tensor:
    """Mean of h h^T [width, width] float64 over the states h that the head multiplies on `windows`."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for done, states in hidden_states(bundle, windows):
        context.recorder.check("reading the text")
        context.recorder.progress("compress", done, len(windows))
        flat = states.flatten(0, -2).double()
        total, tokens = total.to(flat.device) + flat.T @ flat, tokens + len(flat)
    return total / tokens


def factors(table: Tensor, rank: int, rows: Tensor | None = None, columns: Tensor | None = None) -> LowRank:
    """table E [vocabulary, width] as the product E' of two thin matrices that is nearest to it.

    It minimises sum over tokens t of rows[t] (e_t - e'_t) M (e_t - e'_t)^T with M = columns, a positive
    definite matrix [width, width]; None stands for equal weights. With S = M^(1/2), and V the strongest
    directions of sum rows[t] S e_t^T e_t S, that is E' = (E S V) (V^T S^-1).
    """
    gram = torch.zeros((), dtype=torch.float64, device=table.device)
    equal = torch.ones((), dtype=torch.float64).expand(len(table))
    weights = (equal if rows is None else rows).to(table.device).split(TOKENS_PER_CHUNK)
    for chunk, weight in zip(table.split(TOKENS_PER_CHUNK), weights, strict=True):
        gram = gram + chunk.double().T @ (chunk.double() * weight[:, None])
    if columns is None:
        basis = top_eigenvectors(gram, rank).float()
        return LowRank.encode(table @ basis, basis.T)
    squares, directions = torch.linalg.eigh(columns.to(table.device))
    root = (directions * squares.sqrt()) @ directions.T
    inverse = (directions / squares.sqrt()) @ directions.T
    basis = top_eigenvectors(root @ gram @ root, rank)
    return LowRank.encode(table @ (root @ basis).float(), (basis.T @ inverse).float())


def damped(moments: Tensor) -> Tensor:
    """Second moments [n, n] with DAMPING of their mean diagonal on the diagonal: positive definite."""
    return moments + DAMPING * moments.diagonal().mean() * torch.eye(len(moments)).to(moments)


def relative_error(table: Tensor, packed: Packed) -> float:
    """||E - E'|| / ||E||, where E' is the table as stored."""
    ids = torch.arange(len(table), device=table.device).split(TOKENS_PER_CHUNK)
    lost = sum((table[rows] - packed.rows(rows).to(table.device)).double().square().sum() for rows in ids)
    return float((lost / table.double().square().sum().clamp_min(1e-30)).sqrt())


class TaughtTable(nn.Module):
    """A stored table in training: the numbers of its format in float32, and the rows that they stand for."""

    def __init__(self, packed: TensorTrain | LowRank, dtype: torch.dtype, scale: float = 1.0):
        """scale: the architecture's factor on the rows that enter the first block (arch.embedding_scale)."""
        super().__init__()
        self.packed, self.dtype, self.scale = packed, dtype, scale
        numbers = (packed.cores,) if isinstance(packed, TensorTrain) else (packed.u, packed.v)
        self.numbers = nn.ParameterList(nn.Parameter(t.detach().float().clone()) for t in numbers)

    def rows(self, ids: Tensor | None = None) -> Tensor:
        """Vectors [n, width] of token ids [n]; of all tokens if ids is None."""
        own, *shared = self.numbers
        own = own if ids is None else own[ids]
        if isinstance(self.packed, TensorTrain):
            return tensor_train_rows(own, self.packed.modes, self.packed.ranks, self.packed.shape[1])
        return own @ shared[0]

    def forward(self, ids: Tensor) -> Tensor:
        return self.scale * self.rows(ids.flatten()).to(self.dtype).unflatten(0, ids.shape)

    def stored(self) -> TensorTrain | LowRank:
        """The numbers as they are saved."""
        with torch.no_grad():
            if isinstance(self.packed, TensorTrain):
                parts = split(self.numbers[0], self.packed.modes, self.packed.ranks)
                return TensorTrain.encode(self.packed.shape, parts)
            return LowRank.encode(*self.numbers)


class TaughtHead(nn.Module):
    """A head that reads the table in training: states [n, width] -> logits [n, vocabulary]."""

    def __init__(self, table: TaughtTable):
        super().__init__()
        self.table = table

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table.rows().to(x.dtype).T


def distillation_loss(bundle: Bundle, table: TaughtTable, shared: bool, ids: Tensor) -> Tensor:
    """Mean KL(bundle's model || the same with the stored table) a token of ids [b, window]; differentiable.

    shared: whether the head reads the stored table too.
    """
    ids, head = ids.to(bundle.device), arch.head(bundle.module)[1]
    with torch.no_grad():
        taught = final_states(bundle, ids).flatten(0, 1)
    with instead(bundle.module.get_input_embeddings(), table.forward):
        hidden = final_states(bundle, ids).flatten(0, 1)

    def lost(logits: Tensor, rows: slice) -> Tensor:
        with torch.no_grad():
            expected = head(taught[rows])
        return forward_kl(expected, logits)

    learner = TaughtHead(table) if shared else head
    return sum_over_rows(learner, bundle.geometry.vocabulary, hidden, lost) / len(hidden)


def taught(
    bundle: Bundle, packed: TensorTrain | LowRank, shared: bool, context: Context, params: TensorGptParams
) -> tuple[TensorTrain | LowRank, tuple[Note, ...], list]:
    """(the table trained on context.windows [n, window], notes, the training's curve)."""
    table = TaughtTable(packed, bundle.module.dtype, arch.embedding_scale(bundle.module))

    def loss(ids: Tensor) -> Tensor:
        return distillation_loss(bundle, table, shared, ids)

    assert context.windows is not None, "`reads` asks for them"
    course = train(
        list(table.numbers),
        loss,
        *from_text(context.windows, loss, context.seed),
        Budget(params.train_tokens, params.train_minutes),
        rate=params.learning_rate,
        recorder=context.recorder,
    )
    notes = course.notes("tensorgpt")
    if course.best >= course.before:  # the untrained state was best
        return packed, (*notes, Note("training_no_gain", {"method": "tensorgpt"})), course.curve
    return table.stored(), notes, course.curve


def compress(bundle: Bundle, context: Context, params: TensorGptParams) -> Edit:
    """Store the token embedding, and with it a head that shares it and reads what is stored.

    Raises BadParam for errors weighted by a head's states if no head reads the table, and what `train`
    raises.
    """
    embedding = bundle.module.get_input_embeddings()
    table = embedding.weight.detach().float()
    shared = bundle.geometry.tied and params.head == "cores"
    modes, ranks, values = shape_of(table.shape[1], params)
    if values >= table.shape[1]:
        return Edit(
            notes=(
                Note("rank_saves_nothing", {"rank": params.rank, "values": values, "width": table.shape[1]}),
            )
        )
    packed: TensorTrain | LowRank
    if params.kind == "svd":
        packed = weighted_factors(bundle, table, svd_rank(table.shape, values), shared, context, params)
    else:
        packed = tensor_trains(table, modes, ranks, context)
    notes: tuple[Note, ...] = ()
    series = {}
    if params.train_tokens:
        packed, notes, series["training"] = taught(bundle, packed, shared, context, params)
    path = next(name for name, module in bundle.module.named_modules() if module is embedding)
    figures = {path: {"relative_error": relative_error(table, packed)}}
    if bundle.geometry.tied and not shared:
        notes += (Note("head_kept", {"bytes": 2 * table.numel()}),)
        return Edit(table=packed, head=Dense.encode(table), figures=figures, notes=notes, series=series)
    return Edit(table=packed, figures=figures, notes=notes, series=series)


def weighted_factors(
    bundle: Bundle, table: Tensor, rank: int, shared: bool, context: Context, params: TensorGptParams
) -> LowRank:
    """The SVD of the table with its errors weighted as params.weighted says. Raises BadParam."""
    rows = columns = None
    if params.weighted in ("states", "both") and not shared:
        raise BadParam(
            f"weighted = {params.weighted!r} weighs errors by the states that the head multiplies, and no "
            "head reads the stored table here; choose frequency, or head = cores in a model whose head "
            "shares the table",
            name="weighted",
            got=params.weighted,
            allowed="nothing, frequency",
        )
    if params.weighted in ("frequency", "both"):
        rows = frequencies(_read(context), len(table))
    if params.weighted in ("states", "both"):
        columns = damped(second_moments(bundle, _read(context), context))
    return factors(table, rank, rows, columns)


def _read(context: Context) -> Tensor:
    assert context.windows is not None, "`reads` asks for them"
    return context.windows


def reads(params: TensorGptParams) -> bool:
    """Whether it reads a text."""
    return params.train_tokens > 0 or (params.kind == "svd" and params.weighted != "nothing")


def control(params: TensorGptParams) -> tuple[str, dict] | None:
    """The same training of an SVD of the table in no more bytes; None without a training, or for the SVD."""
    if not params.train_tokens or params.kind == "svd":
        return None
    return "tensorgpt", params.json() | {"kind": "svd"}


def cost(shape: tuple[int, int], params: TensorGptParams, tokens: int) -> Cost:
    """A linear [out, in] stays as it is; a text is read through it.

    A training step is the teacher's forward pass, the model's own, and the gradient of its inputs.
    """
    out, n = shape
    read = tokens if params.kind == "svd" and params.weighted in ("states", "both") else 0
    return Cost(bytes=2 * out * n, flops=(2.0 * read + 6.0 * params.train_tokens) * out * n)


def table_cost(shape: tuple[int, int], params: TensorGptParams, tied: bool) -> Cost | None:
    """The cost of a table [vocabulary, width], with a head that shares it.

    None if the table stays as it is. A training holds the numbers in float32 with their gradients, two
    moments and the best state.
    """
    vocabulary, width = shape
    modes, ranks, values = shape_of(width, params)
    if values >= width:
        return None
    if params.kind == "svd":
        size = 2 * svd_rank(shape, values) * (vocabulary + width)
        flops = 4.0 * vocabulary * width**2 + 20.0 * width**3
        peak = 8 * 5 * width**2 + 4 * vocabulary * width
    else:
        sides = [a * m for a, m in zip(ranks, modes, strict=False)]
        size = 2 * vocabulary * values
        flops = vocabulary * sum(4.0 * width * s + 100.0 * s**3 for s in sides[:-1])
        peak = 4 * vocabulary * width + 4 * 8 * TOKENS_PER_CHUNK * math.prod(modes)
    shared = tied and params.head == "cores"
    if params.train_tokens:
        flops += (6.0 if shared else 4.0) * params.train_tokens * vocabulary * width
        peak += 5 * 2 * size + (8 * vocabulary * width if shared else 0)
    dense = 2 * vocabulary * width if tied and not shared else 0
    return Cost(bytes=size + dense, flops=flops, peak_bytes=peak + 2 * dense)


METHOD = TrainedTableMethod(
    name="tensorgpt",
    title="TensorGPT",
    family="low_rank",
    paper="https://arxiv.org/abs/2307.00526",
    params=TensorGptParams,
    compress=compress,
    cost=cost,
    table_cost=table_cost,
    reads=reads,
    control=control,
    compresses=True,
    after=frozenset(FORMATS) - {"tensor_train"},  # formats of linears, which stay as they are
    identity={"rank": 32},
    tiny={"rank": 2},
    # the papers train nothing: the recovery of LLM-Pruner and SVD-LLM, two passes over 50,000 instructions
    full={"train_tokens": 25_600_000, "train_minutes": BUDGET_MINUTES},
    essay=__doc__,
)
