"""The points of the first screen: the stored runs that the page opens with and the README's picture shows.

Every system is there at least once, with its trained and its repaired forms. All are measured as the gates
are: WikiText-2, 32,768 tokens, windows of 512, the word table in 16 bits. That is also how a new run of the
page is measured, so that it stands beside them. `python -m evaluation measure gates` measures what is
missing. `python -m evaluation tables` writes the names of those that are stored, in this order, into
assets/points.json, which the page reads.

    POINTS    recipe in words, as gates.py writes them
"""

from __future__ import annotations

from evaluation.benches.gates import DISTILLED, EVEN_QAT, LARGER, LORA, QLORA, TRAINED

# what LoRAPrune takes by default; LLM-Pruner + LoRA stands beside it at the same budget
EQUAL = "--train_tokens 65536 --train_minutes 120"

POINTS = (
    "none",
    # quantization
    "rtn --bits 8",
    "rtn --bits 4",
    "rtn --bits 3",
    "gptq --bits 4",
    "gptq --bits 3",
    "awq --bits 4 --group_size 64",
    "awq --bits 3 --group_size 64",
    "owq --bits 4",
    "owq --bits 3",
    "spqr --bits 4",
    "spqr --bits 3",
    "hqq --bits 4",
    "nf4 --double true",
    "gptq --bits 4 + lut_gemm",
    "lut_gemm --bits 3",
    "llm_int8",
    "smoothquant",
    "zeroquant --bits 8",
    "zeroquant --bits 4",
    EVEN_QAT,
    f"peqa --bits 3 {TRAINED}",
    QLORA,
    # pruning
    "magnitude --sparsity 0.5",
    "wanda --sparsity 0.5",
    "wanda --sparsity 0.5 + gptq --bits 4",
    f"wanda --sparsity 0.5 + lora {TRAINED}",
    "sparsegpt --sparsity 0.5",
    "sparsegpt --sparsity 0.5 --quantize true",
    "sparsegpt --pattern 2:4",
    f"sparsegpt --pattern 2:4 + lora {TRAINED}",
    "llm_pruner --removed 0.25 --importance element1",
    f"llm_pruner --removed 0.25 + lora {EQUAL}",
    "lora_prune --removed 0.25 --train_minutes 120",
    "shortgpt --removed 0.2",
    f"shortgpt --removed 0.2 + lora {TRAINED}",
    # low rank
    LORA,
    "svd --removed 0.2",
    "asvd --removed 0.2",
    "svd_llm --removed 0.1",
    "svd_llm --removed 0.2",
    f"svd_llm --removed 0.1 + lora {TRAINED}",
    f"svd_llm --removed 0.2 + lora {TRAINED}",
    "pca --removed 0.2 --inputs original",
    "nmf --removed 0.2",
    "tensorgpt",
    # distillation
    f"gkd {DISTILLED}",
    f"gkd {LARGER}",
    f"minillm {LARGER}",
    f"icl_distillation {LARGER}",
    f"mt_cot {LARGER}",
    f"lion {LARGER}",
)
