"""The sum in the browser is that of compression/bundle.py and of a table of training's bytes."""

from __future__ import annotations

import pytest

from compression.catalogue import CATALOGUE, OF_PAPERS

pytestmark = pytest.mark.browser
MODELS = {name: CATALOGUE[name].geometry for name in ("llama-3.1-8b", "qwen3-0.6b", "opt-125m")}
GPT, LLAMA = (OF_PAPERS[name][2] for name in ("gpt-175b", "llama-65b"))
MODELS |= {"gpt": GPT, "llama": LLAMA}


@pytest.mark.parametrize("name", MODELS)
def test_weights_keys_and_values(lesson, name):
    geometry, parameters = MODELS[name], 1_000_000_000
    model = {"parameters": parameters, "cache": geometry.kv_cache_bytes_per_token(16)}
    for bits, context, batch in ((16, 2048, 1), (3, 100, 7)):
        got = lesson("sum", "sum", model, {"bits": bits, "context": context, "batch": batch})
        assert got == {
            "weights": parameters * bits / 8,
            "cache": sum(2 * 2 * g.kv_heads * g.head_size for g in geometry.layers) * context * batch,
            "gradients": 0,
            "adam": 0,
        }


@pytest.mark.parametrize("bits, each", [(32, (4, 4, 8)), (16, (2, 2, 12))])
def test_training_takes_16_bytes_a_parameter(lesson, bits, each):
    """Rajbhandari et al. 2019, 1910.02054, section 3.1: weights and gradients in 16 bits, and K = 12 for Adam."""
    got = lesson("sum", "sum", {"parameters": 10}, {"bits": bits, "train": True})
    assert (got["weights"], got["gradients"], got["adam"]) == tuple(10 * b for b in each)
    assert sum(got.values()) == 160


@pytest.mark.parametrize("n", [1, 2, 5, 33, 700, 2000])
@pytest.mark.parametrize("width", [330, 780])
def test_the_boxes_fit(lesson, n, width):
    got = lesson("sum", "grid", n, width, 120)
    columns, side = got["columns"], got["side"]
    assert columns * side <= width + 1e-6 and -(-n // columns) * side <= 120 + 1e-6


def test_the_papers_shapes_have_the_papers_parameters():
    """A block of GPT-3 has 12 d^2 weights; one of LLaMA 4 d^2 + 3 d f."""
    gpt = 12 * 12288**2 * 96 + 12288 * (50257 + 2048)
    llama = (4 * 8192**2 + 3 * 8192 * 22016) * 80 + 2 * 8192 * 32000
    assert gpt == pytest.approx(175e9, rel=0.005) and llama == pytest.approx(65.2e9, rel=0.005)
    assert GPT.layers[0].feed_forward == 4 * GPT.hidden and LLAMA.layers[0].feed_forward == 22016
