"""The survey as data: four families, eight groups, 22 systems, with paper, year, method and lesson.

Source: "A Survey on Model Compression for Large Language Models" (Zhu et al., 2023), whose taxonomy this
project follows. Years are those of a paper's first version.
"""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.benches import gates


@dataclass(frozen=True)
class System:
    """One system of the survey.

    method: our method's name. best: the stored recipe, in words, that shows it first.
    """

    name: str
    title: str
    year: int
    method: str
    best: str


def _system(name: str, title: str, year: int, best: str, method: str = "") -> System:
    return System(name, title, year, method or name, best)


FAMILIES: dict[str, dict[str, tuple[System, ...]]] = {
    "pruning": {
        "unstructured": (
            _system("sparsegpt", "SparseGPT", 2023, "sparsegpt --sparsity 0.5"),
            _system("wanda", "Wanda", 2023, "wanda --sparsity 0.5"),
            _system("lora_prune", "LoRAPrune", 2023, "lora_prune --removed 0.25 --train_minutes 120"),
        ),
        "structured": (
            _system("llm_pruner", "LLM-Pruner", 2023, "llm_pruner --removed 0.25 --importance element1"),
        ),
    },
    "distillation": {
        "white_box": (
            _system("minillm", "MiniLLM", 2023, f"minillm {gates.LARGER}"),
            _system("gkd", "GKD", 2023, f"gkd {gates.LARGER}"),
        ),
        "black_box": (
            _system(
                "icl_distillation",
                "In-context learning distillation",
                2022,
                f"icl_distillation {gates.LARGER}",
            ),
            _system("mt_cot", "MT-CoT", 2022, f"mt_cot {gates.LARGER}"),
            _system("lion", "Lion", 2023, f"lion {gates.LARGER}"),
        ),
    },
    "quantization": {
        "in_training": (_system("llm_qat", "LLM-QAT", 2023, gates.EVEN_QAT),),
        "fine_tuning": (
            _system("peqa", "PEQA", 2023, f"peqa --bits 3 {gates.TRAINED}"),
            _system("qlora", "QLoRA", 2023, gates.QLORA),
        ),
        "after_training": (
            _system("lut_gemm", "LUT-GEMM", 2022, "gptq --bits 4 + lut_gemm"),
            _system("llm_int8", "LLM.int8()", 2022, "llm_int8"),
            _system("zeroquant", "ZeroQuant", 2022, "zeroquant --bits 8"),
            _system("gptq", "GPTQ", 2022, "gptq --bits 4"),
            _system("awq", "AWQ", 2023, "awq --bits 4 --group_size 64"),
            _system("owq", "OWQ", 2023, "owq --bits 4"),
            _system("spqr", "SpQR", 2023, "spqr --bits 4"),
            _system("smoothquant", "SmoothQuant", 2022, "smoothquant"),
        ),
    },
    "low_rank": {
        "factorization": (
            _system("lora", "LoRA", 2021, gates.LORA),
            _system("tensorgpt", "TensorGPT", 2023, "tensorgpt"),
        )
    },
}
SYSTEMS = {s.name: s for groups in FAMILIES.values() for systems in groups.values() for s in systems}
