"""Declares the columns of the table of architectures. Each file beside this one is a row: one architecture.

Loading, folding, the estimate, the decode step, export and structured pruning read these columns; no other
code knows an architecture by its name. For example, the column `norms` says which norm's output enters which
linears, so that SmoothQuant and AWQ know where a factor on these inputs can go.

No torch here: the page reads configs too, and draws itself before torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compression.bundle import Geometry, LayerGeometry

REQUIRED = object()  # stands for a missing default: a value must be given

# upper bounds for a config's numbers: above every published model, and far below what would fill a machine
LAYERS = 1_024
WIDTH = 65_536
WIDE = 1_048_576
HEADS = 4_096
WORDS = 4_194_304
POSITIONS = 100_000_000
MASKED = 16_384  # positions, for architectures whose blocks hold a mask of that number squared

ACTIVATIONS = (
    "silu",
    "swish",
    "relu",
    "relu2",
    "relu6",
    "gelu",
    "gelu_new",
    "gelu_fast",
    "gelu_python",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "gelu_accurate",
    "gelu_10",
    "quick_gelu",
    "tanh",
    "sigmoid",
    "mish",
    "laplace",
    "leaky_relu",
    "hardswish",
    "linear",
    "sqrtsoftplus",
)
KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Field:
    """One field of a config. kind: int, float, bool, word, ids, numbers, kinds. lo, hi: inclusive bounds."""

    kind: str
    default: Any = REQUIRED
    lo: float = 0
    hi: float = 0
    choices: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # other names of the field in files
    empty: bool = False  # null is allowed and means something
    forward: bool = True  # changes what the model computes


def size(hi: int, default: Any = REQUIRED, **more) -> Field:
    """A positive whole number."""
    return Field("int", default, 1, hi, **more)


def flag(default: bool, **more) -> Field:
    """True or false."""
    return Field("bool", default, **more)


def trained(default: float) -> Field:
    """A share that only training uses, such as a dropout."""
    return Field("float", default, 0.0, 1.0, forward=False)


def epsilon(default: float) -> Field:
    """The number that a norm adds to the variance."""
    return Field("float", default, 1e-12, 0.1)


def token(default: Any, **more) -> Field:
    """A token's number, or several."""
    return Field("ids", default, empty=True, forward=False, **more)


def activation(default: str) -> Field:
    """The feed-forward's activation, by its name in transformers."""
    return Field("word", default, choices=ACTIVATIONS)


@dataclass(frozen=True)
class Norm:
    """A class of norms.

    path: module and class name. rms: it divides by the root mean square and has no bias; else it subtracts
    the mean too. epsilon: the attribute that holds its epsilon. added: a norm multiplies by added + its
    weight; Gemma adds 1.
    """

    path: str
    rms: bool
    epsilon: str
    added: float = 0.0


LAYER_NORM = Norm("torch.nn.modules.normalization.LayerNorm", rms=False, epsilon="eps")


@dataclass(frozen=True)
class Rotary:
    """Rotary positions.

    path: the module that gives cosines and sines. theta, share: the top-level names in files of any age for
    the base of the angles, and for the rotated share of a head's channels.
    """

    path: str
    theta: str = "rope_theta"
    share: str = "partial_rotary_factor"
    default_share: float = 1.0
    whole: bool = True  # every channel is rotated, and a config with another share is refused


@dataclass(frozen=True)
class Sizes:
    """The config's name for each size; "" if the architecture has no such field."""

    hidden: str = "hidden_size"
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    feed_forward: str = "intermediate_size"  # null: 4 * hidden
    positions: str = "max_position_embeddings"
    kv_heads: str = ""  # none: as many as heads
    head_size: str = ""  # none: hidden / heads
    embedding: str = ""  # the width of the token embedding, if it may differ from hidden
    free_heads: bool = False  # hidden needn't be a multiple of heads if head_size is given


@dataclass(frozen=True)
class Fused:
    """One layer that gives q, k and v, of equal size.

    by_head: its rows are [head][q, k, v][head_size]; else [q | k | v].
    """

    path: str
    by_head: bool = False


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Paths in `groups`, `norms`, `head_norms`, `attention` and `fused` are relative to a block; the other paths
    start at the model.
    """

    name: str  # config.json's model_type, and transformers' folder
    # --- where its parts are ---
    backbone: str  # the module whose last hidden state feeds the head
    blocks: str
    embedding: str
    head: str
    final: str  # the norm before the head
    # ((path, role), ...) for each shared input, in data-flow order
    groups: tuple[tuple[tuple[str, str], ...], ...]
    # for each group, the norm whose output is exactly that group's input; None if there is none
    norms: tuple[str | None, ...]
    attention: str  # the module that multiplies queries and keys, and holds `scaling`
    classes: frozenset[str]  # the classes of its modules, norms and torch's own left out
    # --- what they compute ---
    norm: Norm
    fields: Mapping[str, Field]  # of its config; all other fields are refused or left out (configs.py)
    sizes: Sizes = Sizes()
    head_norms: tuple[str, str] | None = None  # norms over each head's queries and keys
    rotary: Rotary | None = None
    positions: str | None = None  # the table of learned positions
    # the embedding's attribute with the factor on its rows (Gemma: the root of the width); "": no factor
    embedding_scale: str = ""
    # the linear into the width after the embedding, and the one out of it before the head
    projections: tuple[str, str] | None = None
    activation: str = "hidden_act"  # the config's name for the feed-forward's activation
    # the config's flag for attention and feed-forward on the same input; "": one after the other
    parallel: str = ""
    # the config's flag for scores divided by the block's number, the first being 1; "": they never are
    by_depth: str = ""
    norm_first: str = ""  # the config's flag for norms before attention and feed-forward; "": always
    idle: frozenset[str] = frozenset()  # fields of transformers' class that change no forward pass
    # --- how it is stored ---
    fused: Fused | None = None
    transposed: bool = False  # its linears are `Conv1D`, stored [in, out]
    prefix: str = "model."  # missing from the names in a file that holds the backbone alone
    renamed: tuple[tuple[str, str], ...] = ()  # (the start of a name in files, the start that replaces it)
    # (pattern of a tensor's whole name, kind): tensors that follow from the config, although some published
    # files carry them. Kinds: "mask", which hides future tokens; "floor", the number that a mask writes;
    # "angles" of each position; "version" of the program that wrote the file.
    recomputed: tuple[tuple[str, str], ...] = ()
    # --- what must be updated when heads or channels are cut out of a block (structure.py) ---
    # (attribute of a module in the block, which size it holds: a key of structure.SIZES)
    attributes: tuple[tuple[str, str], ...] = ()

    def geometry(self, value: Callable[[str], Any]) -> Geometry:
        """The sizes that a config describes. value: a field's name -> its value, None if it has none."""
        names = self.sizes
        hidden, heads = value(names.hidden), value(names.heads)
        layer = LayerGeometry(
            heads=heads,
            kv_heads=value(names.kv_heads) or heads,
            head_size=value(names.head_size) or hidden // heads,
            feed_forward=value(names.feed_forward) or 4 * hidden,
        )
        embedding = value(names.embedding) or hidden
        return Geometry(
            self.name,
            hidden,
            value("vocab_size"),
            value(names.positions),
            bool(value("tie_word_embeddings")),
            (layer,) * value(names.layers),
            embedding if embedding != hidden else 0,
        )

    @property
    def roles(self) -> dict[str, str]:
        """Role of each linear of a block -> its path."""
        return {role: path for group in self.groups for path, role in group}


def own_classes(name: str, classes: str) -> frozenset[str]:
    """Full names of classes, given separated by blanks, in transformers' file for that architecture."""
    return frozenset(f"transformers.models.{name}.modeling_{name}.{own}" for own in classes.split())


COMMON = {
    "vocab_size": size(WORDS),
    "use_cache": flag(True, forward=False),
    "bos_token_id": token(None),
    "eos_token_id": token(None),
    "pad_token_id": token(None),
}
