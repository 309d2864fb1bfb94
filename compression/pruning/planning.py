"""Plans the pruning of single weights before the first matrix: OWL's shares, and the reordering of channels.

Both look at the whole uncompressed model on the calibration text.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from compression.base import Context, Edit, Note, Plan, Planner, Stats
from compression.bundle import Bundle
from compression.inputs import observed
from compression.pruning import owl
from compression.pruning.patterns import PatternParams, kept_of, loud, lowest_in_groups
from compression.pruning.permutation import best_order, kept_sum, shared_lanes

Score = Callable[[Tensor, Stats], Tensor]  # (weight [out, in], its inputs) -> how much each weight matters


def planner(score: Score) -> Planner[PatternParams]:
    """The planner of a method that ranks weights by `score`. OWL always counts outliers by Wanda's score."""

    def find(bundle: Bundle, context: Context, params: PatternParams) -> Plan:
        return (
            reordered(bundle, context, params, score)
            if params.permute
            else by_outliers(bundle, context, params)
        )

    def wanted(params: PatternParams) -> bool:
        return params.permute or (params.allocation == "owl" and params.sparsity > 0)

    return Planner(find=find, tokens=lambda params, linears, tokens: float(tokens), wanted=wanted)


def by_outliers(bundle: Bundle, context: Context, params: PatternParams) -> Plan:
    """Each linear gets its block's share (owl.py)."""
    paths: dict[int, list[str]] = {}
    shares, weights = [], []
    for layer, groups, stats in observed(bundle, context.windows, frozenset({"sum_sq"}), _check(context)):
        scores = [loud(_weight(bundle, path), s) for g, s in zip(groups, stats, strict=True) for path, _ in g]
        paths[layer] = [path for group in groups for path, _ in group]
        shares.append(owl.outlier_share(scores, params.outlier_factor))
        weights.append(sum(score.numel() for score in scores))
    lost = owl.sparsities(
        torch.tensor(shares), torch.tensor(weights), params.sparsity, params.spread
    ).tolist()
    own = {
        path: dataclasses.replace(params, sparsity=share)
        for (_, names), share in zip(paths.items(), lost, strict=True)
        for path in names
    }
    low, high = min(lost), max(lost)
    facts = {"least": 100 * low, "most": 100 * high, "block": lost.index(low), "other": lost.index(high)}
    return Plan(params=own, edit=Edit(notes=(Note("shares_by_outliers", facts),)))


def reordered(bundle: Bundle, context: Context, params: PatternParams, score: Score) -> Plan:
    """The feed-forward's and the values' channels in an order with which the pattern keeps more.

    The edit moves the rows that make the channels and the columns that read them in the same way, so that the
    model computes the same. Raises UnsupportedLayer if a width isn't a whole number of groups.
    """
    kept, of = kept_of(params.pattern)
    tensors: dict[str, Tensor] = {}
    before: dict[str, float] = defaultdict(float)
    after: dict[str, float] = defaultdict(float)
    for layer, groups, stats in observed(bundle, context.windows, frozenset({"sum_sq"}), _check(context)):
        sizes = bundle.geometry.layers[layer]
        paths = {role: path for group in groups for path, role in group}
        inputs = {role: s for group, s in zip(groups, stats, strict=True) for _, role in group}

        def move(index: Tensor, reader: str, makers: tuple[str, ...], paths=paths) -> None:
            linear = bundle.module.get_submodule(paths[reader])
            tensors[f"{paths[reader]}.weight"] = linear.weight.detach()[:, index[1]]
            for role in makers:
                if role not in paths:
                    continue
                made = bundle.module.get_submodule(paths[role])
                tensors[f"{paths[role]}.weight"] = made.weight.detach()[index[0]]
                if made.bias is not None:
                    tensors[f"{paths[role]}.bias"] = made.bias.detach()[index[0]]

        scores = {role: score(_weight(bundle, paths[role]), inputs[role]) for role in ("o", "down")}
        for role in scores:
            lowest_in_groups(scores[role][:1], params.pattern, paths[role])
        order = best_order(scores["down"], kept, of)
        move((order, order), "down", ("gate", "up"))
        found = {"down": (scores["down"], order)}
        if sizes.head_size % of == 0:
            by_value = shared_lanes(scores["o"], sizes.kv_heads, sizes.head_size)
            within = torch.stack([best_order(own, kept, of) for own in by_value])  # [kv heads, head size]
            serves = sizes.heads // sizes.kv_heads
            starts = torch.arange(sizes.kv_heads, device=within.device)[:, None] * sizes.head_size
            made = (starts + within).flatten()
            each = within.repeat_interleave(serves, 0)
            starts = torch.arange(sizes.heads, device=within.device)[:, None] * sizes.head_size
            read = (starts + each).flatten()
            move((made, read), "o", ("v",))
            found["o"] = (scores["o"], read)
        for role, (own, index) in found.items():
            before[role] += kept_sum(own, kept, of)
            after[role] += kept_sum(own[:, index], kept, of)
    notes = tuple(
        Note("channels_reordered", {"role": role, "percent": 100 * (after[role] / before[role] - 1)})
        for role in after
    )
    if "o" not in after:
        notes += (Note("values_not_reordered", {"size": sizes.head_size, "pattern": params.pattern}),)
    return Plan(edit=Edit(tensors=tensors, notes=notes))


def _weight(bundle: Bundle, path: str) -> Tensor:
    return bundle.module.get_submodule(path).weight.detach().float()


def _check(context: Context) -> Callable[[], None]:
    return lambda: context.recorder.check("looking at the whole model")


PLANNER = planner(loud)
