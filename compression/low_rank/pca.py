"""PCA of the outputs: keep the directions in which a layer's outputs vary, and their mean exactly.

Over a text the outputs of a layer form a cloud. Its principal components (Pearson 1901; Hotelling 1933) are
the directions in which the cloud is widest. The r widest span the plane that loses least when the outputs are
projected onto it. Since y = W x is linear, the projection is done on the weight, once. SVD-LLM doesn't centre
the cloud, so it spends a direction on the mean, though a mean is a constant. Here the mean is subtracted
first and given back as a bias.

With mu the mean and C the covariance of the inputs, U_r are the eigenvectors of W C W^T for the largest
eigenvalues,

    W' = U_r (U_r^T W),    b' = b + (W - W') mu,

and the squared error over N tokens is N times the sum of the eigenvalues left out: for every rank at most
SVD-LLM's. Yu and Wu 2023, "Compressing Transformers: Features Are Low-Rank, but Weights Are Not!", AAAI,
compress layers by the principal components of their features in this way.

In a single layer its error is never above SVD-LLM's on the same inputs. In a whole model the choice of the
inputs matters more. The bias holds their mean, and in the compressed model the layers before give another
mean than in the original. So by default the inputs are those that the compressed layers before give
(`inputs` compressed). With the original's activations (`inputs` original) SmolLM2-135M with 20 % removed has
a perplexity of 148 on 32,768 tokens of WikiText-2, where SVD-LLM has 88. A trial with the compressed model's
means gave 115.

Deviations: the same share of every matrix is removed, where Yu and Wu choose a rank for each layer, and
nothing is trained afterwards. The bias is computed for the factors as they are stored, so it also makes up
for their rounding in the mean. PCA of the weight's own rows is not offered: it knows no inputs, and is SVD
with one more direction.

Cost: that of SVD-LLM, and a bias of 16 bits an output where the layer had none. Like SVD-LLM it needs at
least 8 tokens for every input.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from compression.base import Cost, Edit, LinearMethod, Params, Site, Stats, Stream
from compression.low_rank.rank import cost as factors_cost
from compression.low_rank.rank import inputs_param, removed_param
from compression.low_rank.svd_llm import SvdLlmParams
from compression.low_rank.svd_llm import compress as svd_llm


@dataclass(frozen=True)
class PcaParams(Params):
    """How much is removed, and which inputs count."""

    removed: float = removed_param()
    inputs: str = inputs_param("compressed")


def stream(params: PcaParams) -> Stream:
    """Which model the inputs come from."""
    return "compressed" if params.inputs == "compressed" else "original"


def centred(stats: Stats) -> Stats:
    """The statistics of x - mean: the Gram matrix [in, in] becomes N times the covariance, in float64."""
    mean = stats.mean.double()
    return dataclasses.replace(stats, gram=stats.gram.double() - stats.tokens * mean.outer(mean))


def compress(site: Site, stats: Stats, params: PcaParams) -> Edit:
    """Factorise the weight [out, in] of one linear for the inputs in `stats`, and correct its bias."""
    if params.removed == 0:
        return Edit()
    moved = centred(stats)
    edit = svd_llm(site, moved, SvdLlmParams(params.removed))
    weight = site.weight.double()
    lost = weight - edit.linears[site.path].dequantize().double()
    bias = lost @ stats.mean.double()
    if site.bias is not None:
        bias += site.bias.detach().double()
    energy = ((weight @ stats.gram.double()) * weight).sum().clamp_min(1e-30)
    error = float((((lost @ moved.gram) * lost).sum() / energy).clamp_min(0))
    figures = {site.path: {**edit.figures[site.path], "output_error": error}}
    return dataclasses.replace(edit, tensors={f"{site.path}.bias": bias.float()}, figures=figures)


def cost(shape: tuple[int, int], params: PcaParams, tokens: int) -> Cost:
    """The cost of SVD-LLM, and a bias."""
    plain = factors_cost(shape, params, tokens)
    return dataclasses.replace(plain, bytes=plain.bytes + 2 * shape[0]) if params.removed else plain


METHOD = LinearMethod(
    name="pca",
    title="Output PCA",
    family="low_rank",
    paper="https://doi.org/10.1609/aaai.v37i9.26304",
    params=PcaParams,
    compress=compress,
    cost=cost,
    stores="low_rank",
    stats=frozenset({"gram", "mean"}),
    stream=stream,
    after=frozenset({"dense"}),
    identity={"removed": 0.0},
    essay=__doc__,
)
