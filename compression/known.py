"""Says whether the decode step knows a model. The step runs models whose parts and settings are listed here.

The step is written for the code of six families. A part of another class may compute something else, and so
may a model with a setting that came with a later version of that code. So a model with a part or a setting
that isn't listed here is refused, and runs through transformers' own loop.
"""

from __future__ import annotations

import dataclasses

from torch import nn
from transformers import PreTrainedConfig

from compression import arch

ACTIVATIONS = {  # class of the activation -> the step's name for it (kernels/cpu/step.py)
    "torch.nn.modules.activation.SiLU": "silu",
    "transformers.activations.SiLUActivation": "silu",
    "torch.nn.modules.activation.ReLU": "relu",
    "transformers.activations.GELUActivation": "gelu",
    "transformers.activations.NewGELUActivation": "gelu_tanh",
    "transformers.activations.FastGELUActivation": "gelu_tanh",
    "transformers.activations.GELUTanh": "gelu_tanh",
    "transformers.activations.AccurateGELUActivation": "gelu_tanh",
}
ANYWHERE = {
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.dropout.Dropout",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.sparse.Embedding",
    "compression.arch.Joined",
    *ACTIVATIONS,
}
# kinds of rotary angles that don't depend on the text's length
STEADY = ("default", "linear", "yarn", "llama3", "proportional")
GENERAL = frozenset(field.name for field in dataclasses.fields(PreTrainedConfig))  # fields of every config


def refusal(module: nn.Module) -> str:
    """The first part or setting of the model that the step doesn't know, in words; "" if it knows all."""
    row, config, blocks = arch.of(module), module.config, arch.blocks(module)
    classes = ANYWHERE | row.classes | {row.norm.path}
    settings = row.fields.keys() | row.idle | GENERAL | ({"rope_parameters"} if row.rotary else set())
    for name, part in module.named_modules():
        path = arch.class_path(part)
        # formats aren't checked here: each says itself whether a C kernel takes it
        if path not in classes and not path.startswith("compression.packed."):
            return f"{name or 'the model'} is of the class {type(part).__name__}, which the step doesn't know"
        if "forward" in vars(part):
            return f"{name or 'the model'} computes by a function of its own"
        if getattr(part, "max_norm", None) is not None:
            return f"{name} bounds the norm of what it looks up"
    for field in dataclasses.fields(config):
        if field.name not in settings and getattr(config, field.name, None) != _default(field):
            return f"the config's {field.name} = {getattr(config, field.name)!r}, which the step doesn't know"
    if not getattr(config, "is_causal", True):
        return "attention isn't causal"
    if config.num_hidden_layers != len(blocks):
        return f"{len(blocks)} blocks, of which the model runs {config.num_hidden_layers}"
    sliding = [
        name for name, part in module.named_modules() if getattr(part, "sliding_window", None) is not None
    ]
    if sliding or ("layer_types" in row.fields and set(config.layer_types) != {"full_attention"}):
        return "some layers look at a sliding window only"
    for what, values in _of_all_blocks(module).items():
        if len(values) > 1:
            return f"layers differ in {what}: {', '.join(sorted(map(str, values)))}"
    return ""


def _default(field: dataclasses.Field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _of_all_blocks(module: nn.Module) -> dict[str, set]:
    """Settings that the step keeps once for all layers -> the values that the model's layers have."""
    blocks = arch.blocks(module)
    return {
        "the scale of their attention": {arch.attention(module, block).scaling for block in blocks},
        "the epsilon of their norms": {epsilon(module, norm) for norm in arch.all_norms(module)},
        "their activation": {
            ACTIVATIONS[arch.class_path(part)]
            for block in blocks
            for part in block.modules()
            if arch.class_path(part) in ACTIVATIONS
        },
        "whether attention and feed-forward stand side by side": {
            parallel(module, block) for block in blocks
        },
        "whether norms come first": {_flag(block, arch.of(module).norm_first, True) for block in blocks},
    }


def parallel(module: nn.Module, block: nn.Module) -> bool:
    """Whether a block's attention and feed-forward read the same input."""
    return _flag(block, arch.of(module).parallel, False)


def _flag(block: nn.Module, name: str, otherwise: bool) -> bool:
    """The value of a config's flag as the block holds it, since the block runs by its own value."""
    return bool(getattr(block, name)) if name else otherwise


def epsilon(module: nn.Module, norm: nn.Module) -> float:
    """The number that a norm adds to the variance."""
    return getattr(norm, arch.of(module).norm.epsilon)


def activation(module: nn.Module) -> str:
    """The step's name for the activation of all blocks."""
    return next(
        ACTIVATIONS[arch.class_path(part)]
        for part in arch.blocks(module)[0].modules()
        if arch.class_path(part) in ACTIVATIONS
    )
