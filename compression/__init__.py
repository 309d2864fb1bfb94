"""Compression methods, the formats that they store, and the models that they work on.

`NAMES` lists every method; `get(name)` imports its file when it is asked for. A method's file is
`compression/<family>/<name>.py`. It ends with the method's declaration, `METHOD`, one of the records in
base.py.

Python 3.14 has a standard package of the same name, and gzip, bz2 and lzma import from it. So this package
extends its search path with the standard one's, instead of hiding it.
"""

import difflib
import importlib
import sys
import threading
from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)

# Held while a thread of the app imports something that needs torch. If two threads import the same packages
# for the first time at once, one can see them half loaded ("cannot import name ... from transformers").
importing = threading.RLock()

FAMILIES = ("quantization", "pruning", "low_rank", "distillation")

NAMES = {
    "none": "compression.none",
    "rtn": "compression.quantization.rtn",
    "gptq": "compression.quantization.gptq",
    "nf4": "compression.quantization.nf4",
    "hqq": "compression.quantization.hqq",
    "llm_int8": "compression.quantization.llm_int8",
    "lut_gemm": "compression.quantization.lut_gemm",
    "awq": "compression.quantization.awq",
    "smoothquant": "compression.quantization.smoothquant",
    "zeroquant": "compression.quantization.zeroquant",
    "owq": "compression.quantization.owq",
    "spqr": "compression.quantization.spqr",
    "llm_qat": "compression.quantization.llm_qat",
    "peqa": "compression.quantization.peqa",
    "qlora": "compression.quantization.qlora",
    "magnitude": "compression.pruning.magnitude",
    "wanda": "compression.pruning.wanda",
    "sparsegpt": "compression.pruning.sparsegpt",
    "llm_pruner": "compression.pruning.llm_pruner",
    "lora_prune": "compression.pruning.lora_prune",
    "shortgpt": "compression.pruning.shortgpt",
    "svd": "compression.low_rank.svd",
    "asvd": "compression.low_rank.asvd",
    "svd_llm": "compression.low_rank.svd_llm",
    "pca": "compression.low_rank.pca",
    "nmf": "compression.low_rank.nmf",
    "lora": "compression.low_rank.lora",
    "tensorgpt": "compression.low_rank.tensorgpt",
    "minillm": "compression.distillation.minillm",
    "gkd": "compression.distillation.gkd",
    "icl_distillation": "compression.distillation.icl_distillation",
    "mt_cot": "compression.distillation.mt_cot",
    "lion": "compression.distillation.lion",
}


def get(name: str):
    """The Method of that name. Raises BadParam with the nearest names if there is none."""
    if name not in NAMES:
        from compression.base import BadParam

        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        allowed = ", ".join(NAMES)
        raise BadParam(
            f"unknown method {name!r}; allowed: {allowed}.{hint}",
            code="unknown_method",
            name=name,
            allowed=allowed,
            near=near[0] if near else "",
        )
    with importing:
        return importlib.import_module(NAMES[name]).METHOD


def loaded(*names: str) -> bool:
    """Whether these methods are imported, so that `get` takes no time."""
    return all(hasattr(sys.modules.get(NAMES[name]), "METHOD") for name in names)
