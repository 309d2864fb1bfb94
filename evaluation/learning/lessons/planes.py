"""LUT-GEMM: rounded weights as sums of planes of plus and minus, and sums of inputs that are looked up.

The browser rounds real weights by compression/quantization/rtn.py, and multiplies them with real inputs as
compression/quantization/lut_gemm.py writes them. Perplexities are those of stored results.
"""

from __future__ import annotations

import torch

from compression.quantization.lut_gemm import planes_of
from compression.quantization.rtn import fit
from evaluation.learning.lesson import Lesson, Real, attempt, claim

PATH = "model.layers.10.mlp.gate_proj"
ROWS, TOKEN, GROUP, BITS = (0, 400, 800, 1200), 100, 64, 3
PLAIN, AS_PLANES = "gptq --bits 4", "gptq --bits 4 + lut_gemm"


def make(real: Real) -> dict:
    """64 weights of one row, and what they meet at one token."""
    x = real.inputs(PATH)[TOKEN, :GROUP]
    first, *others = (_group(real.weight(PATH)[row, :GROUP], x, row) for row in ROWS)
    plane = real.result(AS_PLANES)
    return first | {
        "facts": first["facts"]
        | {
            "group": GROUP,
            "planes": BITS,
            "multiplied": BITS + 1,
            "rounded": real.perplexity(PLAIN),
            "as_planes": plane.metrics["perplexity"],
        },
        "inputs": x,
        "draws": others,
        "question": {
            "kind": "number",
            "lo": 0,
            "hi": GROUP,
            "step": 1,
            "start": GROUP,
            "answer": BITS + 1,
            "counted": True,
        },
        "tries": [
            attempt([("gptq", {"bits": 4}), ("lut_gemm", {})], run=real.id(AS_PLANES), event="shown"),
            attempt([("gptq", {"bits": 4})], run=real.id(PLAIN), event="shown"),
        ],
    }


def _group(weight: torch.Tensor, x: torch.Tensor, row: int) -> dict:
    """A row's group of weights [n], and its product with x [n] both ways."""
    plain, looked_up = _both(weight, x)
    return {"facts": {"row": row, "product": plain, "looked_up": looked_up}, "weights": weight}


def _both(weight: torch.Tensor, x: torch.Tensor) -> tuple[float, float]:
    """The product of one group's rounded weights [n] with x [n]: weight by weight, and plane by plane."""
    grid = fit(weight[None], BITS, -1, False)
    codes = grid.round(weight[None])
    signs = 2.0 * planes_of(codes[0], BITS).double() - 1
    scale, zero = grid.scale.double().item(), grid.zero_points().double().item()
    planes = sum(scale * 2.0 ** (k - 1) * float(signs[k] @ x.double()) for k in range(BITS))
    offset = scale * ((2**BITS - 1) / 2 - zero) * float(x.double().sum())
    return float(grid.decode(codes)[0].double() @ x.double()), planes + offset


def check(data: dict) -> None:
    """Planes give the same product and the same model."""
    facts = data["facts"]
    claim(
        abs(facts["product"] - facts["looked_up"]) < 1e-3 * abs(facts["product"]), "planes give another sum"
    )
    claim(abs(facts["rounded"] / facts["as_planes"] - 1) < 1e-3, "planes change the model")


LESSON = Lesson("planes", ("lut_gemm",), make, check)
