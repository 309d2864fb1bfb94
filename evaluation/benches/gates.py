"""Declares what is measured for the README, in blocks of comparable recipes.

A block holds recipes that may be compared. Its first recipe is the control of the others: it has the same
bits (or keeps the same share), the same groups, activations and budget, and lacks the method's idea. A recipe
with another control names it. `python -m evaluation measure gates` measures the recipes; `python -m
evaluation tables` writes a table of each block.
"""

from __future__ import annotations

from dataclasses import dataclass

# the short budget of the gates that train; it ends by tokens, not by minutes
TRAINED = "--train_tokens 16384 --train_minutes 120"
QAT = "--train_tokens 8192 --train_minutes 120"
# a fresh student predicts badly at first: half of its training warms it up
DISTILLED = "--kept 0.65 --train_tokens 49152 --train_minutes 120"
LARGER = DISTILLED.replace("--kept 0.65", "--kept 0.85")
SUPERVISED = "gkd --objective supervised --jsd_beta 0.0"
CHANCE = "llm_pruner --removed 0.25 --importance random"
BY_GRADIENT = "llm_pruner --removed 0.25 --importance element1"
ANY_BLOCKS = "shortgpt --removed 0.2 --order random"
LORA, QLORA = f"lora {TRAINED}", f"qlora {TRAINED}"
SKEWED_QAT, EVEN_QAT = (f"llm_qat --bits 4 --kv_bits 4 {grid}{QAT}" for grid in ("--symmetric false ", ""))
# recipes that are measured with several seeds
SEEDS = {CHANCE: range(5), ANY_BLOCKS: range(3)} | {
    taught: range(3) for taught in (LORA, QLORA, SKEWED_QAT, EVEN_QAT)
}


@dataclass(frozen=True)
class Block:
    """A table of recipes that may be compared.

    title: the table's title. about: what all rows share, and what a reader must know. rows: recipe -> its
    control; "" if it has none. measure: the quantity that the methods optimise (compression/judged.py), shown
    beside perplexity; "" if they optimise perplexity itself.
    """

    title: str
    about: str
    rows: dict[str, str]
    measure: str = ""


def block(title: str, about: str, *rows: str | tuple[str, str], measure: str = "") -> Block:
    """A block: the first recipe is the control of the others; (recipe, control) names another control."""
    recipes = [row if isinstance(row, str) else row[0] for row in rows]
    controls = {row[0]: row[1] for row in rows if isinstance(row, tuple)}
    first = "" if isinstance(rows[0], tuple) else recipes[0]
    usual = {recipe: "" if recipe == first else first for recipe in recipes}
    return Block(title, about, usual | controls, measure)


WITHIN = (
    "The control is trained in the same run, from the same warmed-up student and with as many tokens. "
    "Only the method's idea is missing."
)
BLOCKS = (
    block("The original and 8 bits", "Weights only, exact activations.", "none", "rtn --bits 8"),
    block(
        "4 bits, groups of 64",
        "Exact activations. The codebooks of NF4 and FP4 have no zero point and take 0.06 bits "
        "less; HQQ's 16-bit zero points take 0.19 more.",
        "rtn --bits 4",
        "rtn --bits 4 --tuning mse",
        "gptq --bits 4",
        ("gptq --bits 4 --tuning mse", "gptq --bits 4"),
        "awq --bits 4 --group_size 64",
        ("nf4 --table fp4", ""),
        ("nf4", "nf4 --table fp4"),
        ("nf4 --double true", "nf4"),
        ("hqq --bits 4 --iterations 0", ""),
        ("hqq --bits 4 --round_zero false --iterations 0", ""),
        ("hqq --bits 4", "hqq --bits 4 --iterations 0"),
    ),
    block(
        "3 bits, groups of 64",
        "Exact activations. HQQ's 16-bit zero points take 0.20 bits more.",
        "rtn --bits 3",
        "rtn --bits 3 --tuning mse",
        "gptq --bits 3",
        ("gptq --bits 3 --tuning mse", "gptq --bits 3"),
        "awq --bits 3 --group_size 64",
        "hqq --bits 3",
    ),
    block(
        "4 bits, groups of 128",
        "Exact activations. AWQ judges its scales by the error behind each matrix, or, as its authors' code "
        "does, behind the whole attention or feed-forward (`loss at` module).",
        "rtn --bits 4 --group_size 128",
        "awq --bits 4",
        ("awq --bits 4 --loss_at module", "awq --bits 4"),
    ),
    block(
        "3 bits, groups of 128",
        "Exact activations.",
        "rtn --bits 3 --group_size 128",
        "gptq --bits 3 --group_size 128",
        "awq --bits 3",
    ),
    block(
        "4 bits, a scale a row",
        "Exact activations. OWQ has two parts: the search of each row's range (`tuning` mse) and the weak "
        "columns in 16 bits, 0.01 bits a weight. GPTQ with the same search is the control of the weak "
        "columns; OWQ without the search stands beside GPTQ without it.",
        "rtn --bits 4 --group_size -1",
        "rtn --bits 4 --group_size -1 --tuning mse",
        "gptq --bits 4 --group_size -1",
        ("gptq --bits 4 --group_size -1 --tuning mse", "gptq --bits 4 --group_size -1"),
        ("owq --bits 4 --tuning minmax", "gptq --bits 4 --group_size -1"),
        ("owq --bits 4", "gptq --bits 4 --group_size -1 --tuning mse"),
    ),
    block(
        "3 bits, a scale a row",
        "The same at 3 bits.",
        "rtn --bits 3 --group_size -1",
        "rtn --bits 3 --group_size -1 --tuning mse",
        "gptq --bits 3 --group_size -1",
        ("gptq --bits 3 --group_size -1 --tuning mse", "gptq --bits 3 --group_size -1"),
        ("owq --bits 3 --tuning minmax", "gptq --bits 3 --group_size -1"),
        ("owq --bits 3", "gptq --bits 3 --group_size -1 --tuning mse"),
    ),
    block(
        "SpQR",
        "Exact activations, groups of 16, scales of 3 bits. `level search` is ours, not the "
        "paper's; the outliers are the paper's idea.",
        "spqr --bits 3 --outliers 0",
        "spqr --bits 3",
        ("spqr --bits 3 --level_search false", "spqr --bits 3"),
        ("spqr --bits 3 --tau 0.2", "spqr --bits 3"),
        ("spqr --bits 4", ""),
    ),
    block(
        "LUT-GEMM's format",
        "Exact activations. Planes of plus and minus one: fitted to the weights in groups of 128 (binary "
        "coding), or GPTQ's integers as they are. Each plane has a 16-bit scale a group, so that the same "
        "bits are larger here than as integers: a fit of 3 planes takes 3.50 bits a weight, as much as HQQ's "
        "3 bits in groups of 64.",
        ("gptq --bits 4 + lut_gemm", "gptq --bits 4"),
        ("lut_gemm --bits 4", "rtn --bits 4 --group_size 128"),
        ("lut_gemm --bits 3", "rtn --bits 3 --group_size 128"),
        ("lut_gemm --bits 3 --fit greedy", "lut_gemm --bits 3"),
        ("rtn --bits 2 --group_size 128", ""),
        ("lut_gemm --bits 2", "rtn --bits 2 --group_size 128"),
    ),
    block(
        "8-bit weights and 8-bit activations, token by token",
        "The first row rounds both and does nothing else.",
        "smoothquant --smooth false",
        "smoothquant",
        ("smoothquant --search true", "smoothquant"),
        ("smoothquant --attention true", "smoothquant"),
        ("llm_int8 --threshold 0 --zero_point false", ""),
        ("llm_int8 --zero_point false", "llm_int8 --threshold 0 --zero_point false"),
        ("llm_int8 --zero_point false --decomposition column", "llm_int8 --zero_point false"),
        (
            "llm_int8 --zero_point false --decomposition column --outlier_weights 16",
            "llm_int8 --zero_point false --decomposition column",
        ),
        ("llm_int8 --threshold 0", ""),
        ("llm_int8", "llm_int8 --threshold 0"),
        ("llm_int8 --threshold 2", "llm_int8 --threshold 0"),
        ("zeroquant --bits 8", ""),
        ("zeroquant --bits 8 --distill_steps 100", "zeroquant --bits 8"),
    ),
    block(
        "8-bit weights and 8-bit activations, one fixed scale a matrix (SmoothQuant's O3 with a "
        "scale a row of the weights)",
        "The scale is found on the calibration text. What enters the gated feed-forward's second "
        "matrix has rare very loud values.",
        "smoothquant --activations tensor --smooth false",
        "smoothquant --activations tensor",
        ("smoothquant --activations tensor --percentile 99.99", "smoothquant --activations tensor"),
    ),
    block(
        "SmoothQuant's O1, O2 and O3",
        "8-bit weights, one scale a matrix. O1 rounds activations token by token, O2 by one scale that each "
        "input is measured for, O3 by one fixed scale. Each is beside the same rounding without smoothing.",
        *(
            (
                f"smoothquant --weights tensor{level}{off}",
                f"smoothquant --weights tensor{level} --smooth false" if not off else "",
            )
            for level in ("", " --activations dynamic_tensor", " --activations tensor")
            for off in (" --smooth false", "")
        ),
    ),
    block(
        "Keys and values of past tokens in few bits",
        "The weights stay as they are. A scale a token and head, or, as KIVI has it, a scale a "
        "channel and 32 tokens for the keys.",
        "none",
        "none --cache_bits 8",
        "none --cache_bits 4",
        ("none --cache_bits 4 --cache_keys channel", "none --cache_bits 4"),
        ("none --cache_bits 2 --cache_keys channel", "none --cache_bits 4 --cache_keys channel"),
    ),
    block(
        "ZeroQuant, 4 bits in the feed-forward, 8 in attention",
        "64 groups a matrix, symmetric, 8-bit activations token by token. Distillation: 100 steps a block.",
        "zeroquant --bits 4",
        "zeroquant --bits 4 --symmetric false",
        "zeroquant --bits 4 --qkv_inputs exact",
        "zeroquant --bits 4 --distill_steps 100",
    ),
    block(
        "Half of the weights removed",
        "The kept half in 16 bits, any place.",
        "magnitude --sparsity 0.5",
        "wanda --sparsity 0.5",
        ("sparsegpt --sparsity 0.5", "wanda --sparsity 0.5"),
        ("sparsegpt --sparsity 0.5 --quantize true", ""),
    ),
    block(
        "Six tenths of the weights removed, the same everywhere or less where outliers are",
        "The kept weights in 16 bits, any place. OWL's mean over the blocks is the same share.",
        ("wanda --sparsity 0.6", ""),
        ("wanda --sparsity 0.6 --allocation owl", "wanda --sparsity 0.6"),
        ("sparsegpt --sparsity 0.6", "wanda --sparsity 0.6"),
        ("sparsegpt --sparsity 0.6 --allocation owl", "sparsegpt --sparsity 0.6"),
    ),
    block("4 of 8 removed", "The kept half in 16 bits.", "wanda --pattern 4:8", "sparsegpt --pattern 4:8"),
    block(
        "2 of 4 removed",
        "The kept half in 16 bits. `permute` reorders the feed-forward's and the values' channels first.",
        "wanda --pattern 2:4",
        "sparsegpt --pattern 2:4",
        ("wanda --pattern 2:4 --permute true", "wanda --pattern 2:4"),
        ("sparsegpt --pattern 2:4 --permute true", "sparsegpt --pattern 2:4"),
    ),
    block(
        "Heads and channels removed, a quarter",
        "The control is chance, drawn five times; its pairs are the draws. Without repair.",
        CHANCE,
        *(
            f"llm_pruner --removed 0.25 --importance {form}"
            for form in ("element1", "vector", "element2", "mixed", "l2")
        ),
        *(
            (f"{BY_GRADIENT} --{more}", BY_GRADIENT)
            for more in ("ranking global", "prune_steps 5", "heads groups")
        ),
        ("llm_pruner --removed 0.2 --granularity channel", ""),
    ),
    block(
        "Whole blocks removed, a fifth",
        "6 of the 30 blocks. The control is chance, drawn three times; its pairs are the draws. Others go by "
        "what they do to the hidden states (ShortGPT's influence, the angle, a run of neighbours) or by the "
        "loss's gradient (Shortened LLaMA). Without repair, and with LoRA after.",
        ANY_BLOCKS,
        "shortgpt --removed 0.2",
        "shortgpt --removed 0.2 --order angular",
        "shortgpt --removed 0.2 --order contiguous",
        "shortgpt --removed 0.2 --order taylor",
        (f"shortgpt --removed 0.2 + lora {TRAINED}", "shortgpt --removed 0.2"),
    ),
    block(
        "Thin factors, a fifth of the weights removed",
        "The same share of every matrix, unless a search or the losses divide it.",
        "svd --removed 0.2",
        "asvd --removed 0.2 --allocation uniform",
        ("asvd --removed 0.2", "asvd --removed 0.2 --allocation uniform"),
        ("svd_llm --removed 0.2", "asvd --removed 0.2 --allocation uniform"),
        ("svd_llm --removed 0.2 --update true", "svd_llm --removed 0.2"),
        ("svd_llm --removed 0.2 --inputs compressed", "svd_llm --removed 0.2"),
        ("svd_llm --removed 0.2 --allocation loss", "svd_llm --removed 0.2"),
        ("svd_llm --removed 0.2 --allocation search", "svd_llm --removed 0.2"),
        ("pca --removed 0.2 --inputs original", "svd_llm --removed 0.2"),
        ("pca --removed 0.2", "pca --removed 0.2 --inputs original"),
        ("nmf --removed 0.2", "svd --removed 0.2"),
    ),
    block(
        "The word table of the input alone, at half of its size",
        "A token's vector as a chain of two cores with 6 threads (2.00 times smaller), or an SVD of the "
        "whole table in no more bytes. The head keeps the dense table that it shared before, so that the "
        "file grows: the rows show what a model whose head is its own would pay. Trained rows learn from the "
        "original on WikiText-2's validation part.",
        "tensorgpt --kind svd",
        "tensorgpt",
        "tensorgpt --kind svd --weighted frequency",
        (f"tensorgpt {TRAINED}", "tensorgpt"),
        (f"tensorgpt --kind svd {TRAINED}", "tensorgpt --kind svd"),
    ),
    block(
        "The word table with the head that shares it",
        "Linears stay as they are. The head reads what is stored too, and nothing is trained. The SVD's "
        "errors are weighted by how often a token occurs in the calibration text, by the states that the "
        "head multiplies, or by both.",
        ("tensorgpt --rank 4 --modes factors --head cores", ""),
        *((f"tensorgpt{rank} --head cores", "") for rank in (" --rank 4", "", " --rank 11")),
        ("tensorgpt --kind svd --head cores", "tensorgpt --head cores"),
        *(
            (f"tensorgpt --kind svd --weighted {what} --head cores", "tensorgpt --kind svd --head cores")
            for what in ("frequency", "states", "both")
        ),
    ),
    block(
        "Trained, or cut while training",
        "The text is WikiText-2's validation part, so that a training also learns the text: the first row is "
        "the original trained. LoRAPrune takes 65,536 tokens, four times what the others take.",
        (LORA, "none"),
        (f"wanda --sparsity 0.5 + lora {TRAINED}", "wanda --sparsity 0.5"),
        (f"llm_pruner --removed 0.25 + lora {TRAINED}", "llm_pruner --removed 0.25 --importance element1"),
        ("lora_prune --removed 0.25 --train_minutes 120", "llm_pruner --removed 0.25 --importance element1"),
        (QLORA, LORA),
        (f"peqa --bits 3 --round false {TRAINED}", "none"),
        ("peqa --bits 3 --train_tokens 0", ""),
        (f"peqa --bits 3 {TRAINED}", "peqa --bits 3 --train_tokens 0"),
        (f"gptq --bits 3 --group_size -1 + peqa {TRAINED}", "gptq --bits 3 --group_size -1"),
    ),
    block(
        "Heads and channels removed, a quarter, before or while an adapter is trained",
        "16,384 tokens of training each. LLM-Pruner cuts first; LoRAPrune cuts while it trains, by its "
        "adapter's gradients or, as their control, by size alone.",
        (f"llm_pruner --removed 0.25 + lora {TRAINED}", "llm_pruner --removed 0.25 --importance element1"),
        *(
            (f"lora_prune --removed 0.25 {guide}{TRAINED}", f"llm_pruner --removed 0.25 + lora {TRAINED}")
            for guide in ("", "--guide magnitude ")
        ),
    ),
    block(
        "LLM-QAT: weights 4 bits a row, activations 8, cache 4",
        "The rows without training are plain rounding with the same activations and cache: on the paper's "
        "symmetric grid, and with a zero point a row, which is the better control.",
        "llm_qat --bits 4 --kv_bits 4 --symmetric false --train_tokens 0",
        SKEWED_QAT,
        "llm_qat --bits 4 --kv_bits 4 --train_tokens 0",
        EVEN_QAT,
    ),
    block(
        "Students of 20 of the 30 layers, 49,152 tokens",
        "The text's students learn from the text with their teacher (forward KL), the others from their own "
        "samples: by the same divergence (0.0), by GKD's between the two, or as MiniLLM does. All are judged "
        "by the reverse KL to the teacher on 200 samples of their own, in nats a token, pair by pair. Layers "
        "are chosen by their influence on the text, or, as the control of that, evenly spaced.",
        (f"{SUPERVISED} --layers even {DISTILLED}", ""),
        (f"{SUPERVISED} {DISTILLED}", f"{SUPERVISED} --layers even {DISTILLED}"),
        (f"gkd --layers even {DISTILLED}", ""),
        (f"gkd --jsd_beta 0.0 {DISTILLED}", f"{SUPERVISED} {DISTILLED}"),
        (f"gkd {DISTILLED}", f"gkd --jsd_beta 0.0 {DISTILLED}"),
        (f"minillm {DISTILLED}", f"{SUPERVISED} {DISTILLED}"),
        measure="own_reverse_kl",
    ),
    block(
        "Students of 26 of the 30 layers that learn from their own samples, 49,152 tokens",
        "Judged as the students of 20 layers are. The supervised control was measured with 20 layers only.",
        (f"gkd {LARGER}", ""),
        (f"minillm {LARGER}", ""),
        measure="own_reverse_kl",
    ),
    *(
        block(title, f"{judged} {WITHIN}", (f"{method} {LARGER}", ""), measure=measure)
        for method, measure, title, judged in (
            (
                "icl_distillation",
                "demonstration_gain_alike",
                "A student of 26 of the 30 layers that learns to read demonstrations, 49,152 tokens",
                "Judged by the gain from demonstrations, on tasks like those of its training.",
            ),
            (
                "mt_cot",
                "explained_right",
                "A student of 26 of the 30 layers that learns explanations too, 49,152 tokens",
                "Judged by the right answers when an explanation is asked for.",
            ),
            (
                "lion",
                "teacher_agreement",
                "A student of 26 of the 30 layers that gets more of what it can't do, 49,152 tokens",
                "Judged by the overlap (ROUGE-L) with its teacher's answers to instructions kept aside. "
                "A teacher of this size does none of these jobs right.",
            ),
        )
    ),
)


def recipes() -> tuple[str, ...]:
    """Every recipe of the blocks, each once, in their order."""
    return tuple(dict.fromkeys(recipe for found in BLOCKS for recipe in found.rows))
