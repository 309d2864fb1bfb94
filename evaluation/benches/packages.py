"""How public packages compress a model: the other side of each pair that peers.py compares.

Every function takes (model, calibration ids [n, window], settings) and returns the compressed model. It
imports its own package, which is installed in the peers' environment alone (peers.txt).
"""

from __future__ import annotations

from collections.abc import Callable


def unchanged(model, ids):
    return model


def llm_compressor(
    model,
    ids,
    *,
    bits: int,
    group_size: int = -1,
    symmetric: bool = False,
    gptq: bool = False,
    awq: bool = False,
    duo_scaling: bool = True,
    alpha: float | None = None,
    int8_inputs: bool = False,
):
    """Rounding, GPTQ, AWQ or SmoothQuant; settings that aren't named here stay at the package's defaults."""
    import torch
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    if not torch.accelerator.is_available():
        # its AWQ pins memory for a GPU, which fails if there is none
        torch.Tensor.pin_memory = lambda tensor: tensor
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group_size == -1 else "group",
        "group_size": None if group_size == -1 else group_size,
    }
    scheme = {"targets": ["Linear"], "weights": weights}
    if int8_inputs:
        scheme["input_activations"] = {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
    recipe = [] if alpha is None else [SmoothQuantModifier(smoothing_strength=alpha)]
    recipe += [AWQModifier(duo_scaling=duo_scaling)] if awq else []
    recipe.append(
        (GPTQModifier if gptq else QuantizationModifier)(
            config_groups={"group_0": scheme}, ignore=["lm_head"]
        )
    )
    return _one_shot(model, ids, recipe)


def llm_compressor_pruning(
    model,
    ids,
    *,
    sparsity: float = 0.5,
    pattern: str = "unstructured",
    update: bool = True,
    mask_block: int = 128,
    damping: float = 0.01,
):
    """SparseGPT, or Wanda if the remaining weights aren't updated.

    In "n:m" the package counts the weights that are removed of every m.
    """
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    kept, of = (0, 0) if pattern == "unstructured" else map(int, pattern.split(":"))
    settings = {"sparsity": sparsity, "mask_structure": f"{of - kept}:{of}", "ignore": ["re:.*lm_head"]}
    if update:
        return _one_shot(
            model, ids, [SparseGPTModifier(**settings, block_size=mask_block, dampening_frac=damping)]
        )
    return _one_shot(model, ids, [WandaPruningModifier(**settings)])


def _one_shot(model, ids, recipe: list):
    """The model after llm-compressor's steps, calibrated on ids [n, window]."""
    import torch
    from llmcompressor import oneshot

    batches = [
        {"input_ids": b, "attention_mask": torch.ones_like(b)}
        for b in ids.split(max(1, 2_048 // ids.shape[1]))
    ]
    oneshot(
        model=model,
        recipe=recipe,
        dataset=torch.utils.data.DataLoader(batches, batch_size=None),
        num_calibration_samples=len(batches),
    )
    return model


def bitsandbytes_4bit(model, ids, *, table: str, group_size: int = 64, double: bool = False):
    from bitsandbytes.nn import Linear4bit, Params4bit

    def convert(linear):
        new = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            quant_type=table,
            device="meta",
        )
        new.weight = Params4bit(
            linear.weight.data,
            requires_grad=False,
            quant_type=table,
            blocksize=group_size,
            compress_statistics=double,
            module=new,
        )
        new.bias = linear.bias
        return new.to("cpu")

    return _replaced(model, convert)


def bitsandbytes_8bit(model, ids, *, threshold: float):
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    def convert(linear):
        new = Linear8bitLt(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            has_fp16_weights=False,
            threshold=threshold,
            device="meta",
        )
        new.weight = Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
        new.bias = linear.bias
        return new.to("cpu")

    return _replaced(model, convert)


def hqq(model, ids, *, bits: int, group_size: int = 64):
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=bits, group_size=group_size, axis=1)
    return _replaced(
        model, lambda linear: HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")
    )


def _replaced(model, convert: Callable):
    """The model with every linear of the blocks converted."""
    from torch import nn

    from compression import arch

    for block in arch.blocks(model):
        for path, linear in [(p, m) for p, m in block.named_modules() if isinstance(m, nn.Linear)]:
            parent, _, name = path.rpartition(".")
            setattr(block.get_submodule(parent), name, convert(linear))
    return model
