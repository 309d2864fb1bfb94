"""Runs whole decoder layers in one call (step.c), with a key-value cache.

`Model` describes a decoder to step.c, `Decoder` holds it ready to run, and a `Session` holds the key-value
cache of some texts.

    decoder = Decoder(model)
    session = decoder.session(sequences=1, positions=200)
    logits = session.run(ids)            # ids int64 [1, t]: a prompt, then one token after the other
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from kernels import cpu
from kernels.cpu.plans import Plan

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
CHUNK = 256  # tokens of a prompt that are run together


@dataclass(frozen=True)
class Linear:
    """y = (x * input_scale) W^T + bias."""

    plan: Plan | None = None
    bias: Tensor | None = None  # float32 [out]
    input_scale: Tensor | None = None  # float32 [in]


@dataclass(frozen=True)
class Norm:
    """RMS or layer norm, as the model says. Without a weight there is no norm."""

    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Layer:
    """One decoder block."""

    attention: Norm
    feed_forward: Norm
    q_norm: Norm
    k_norm: Norm
    linears: dict[str, Linear]  # by role; gate may be missing
    heads: int
    kv_heads: int
    head_size: int


@dataclass(frozen=True)
class Model:
    """A decoder as step.c runs it."""

    layers: tuple[Layer, ...]
    embedding: Plan
    head: Linear
    final: Norm
    hidden: int
    vocabulary: int
    limit: int  # longest context
    scaling: float  # of q k^T
    eps: float
    rms: bool
    activation: str  # one of ACTIVATIONS
    parallel: bool = False  # attention and feed-forward both read the block's input
    post_norm: bool = False
    project_in: Linear = Linear()
    project_out: Linear = Linear()
    cosine: Tensor | None = None  # float32 [limit, rotary / 2]
    sine: Tensor | None = None
    positions: Tensor | None = None  # float32 [rows, hidden], learned
    offset: int = 0  # first row of `positions`
    embedding_scale: float = 1.0  # factor on the embedding's rows
    cache_bits: int = 16  # 8 or 4: the key-value cache holds codes; 16: float32

    def plans(self) -> list[Plan]:
        """Every matrix; one that is used twice is listed once."""
        linears = [x for layer in self.layers for x in layer.linears.values()]
        found = [
            self.embedding,
            *(x.plan for x in (*linears, self.head, self.project_in, self.project_out) if x.plan),
        ]
        return list({id(p): p for p in found}.values())

    def vectors(self) -> list[Tensor]:
        """Norms, biases, scales and positions."""
        norms = [
            self.final,
            *(
                n
                for layer in self.layers
                for n in (layer.attention, layer.feed_forward, layer.q_norm, layer.k_norm)
            ),
        ]
        linears = [x for layer in self.layers for x in layer.linears.values()]
        found = [t for n in norms for t in (n.weight, n.bias)] + [
            t for x in linears for t in (x.bias, x.input_scale)
        ]
        return [t for t in (*found, self.cosine, self.sine, self.positions) if t is not None]


class _Linear(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("w", "bias", "input_scale")]


class _Norm(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias")]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Norm) for name in ("attention", "feed_forward", "q_norm", "k_norm")),
        *((role, _Linear) for role in ROLES),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "head_size", "width")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "hidden", "capacity", "rotary", "offset")),
        *((name, ctypes.c_int32) for name in ("rms", "parallel", "post_norm", "activation", "cache_bits")),
        *((name, ctypes.c_float) for name in ("eps", "scaling", "embedding_scale")),
        *((name, _Linear) for name in ("embedding", "project_in", "project_out", "head")),
        ("final", _Norm),
        *((name, ctypes.c_void_p) for name in ("positions", "cosine", "sine", "layer")),
    ]


class _Request(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("ids", "sequence", "position")),
        ("tokens", ctypes.c_int64),
        ("wanted", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("logits", ctypes.c_void_p),
    ]


def _pointers(part, structure):
    """A Linear or Norm as its C structure."""
    values = [getattr(part, f.name) for f in fields(part)]
    return structure(
        *(None if v is None else v.address if isinstance(v, Plan) else v.data_ptr() for v in values)
    )


class Decoder:
    """A model ready to run. Weights are shared by all its sessions."""

    def __init__(self, model: Model):
        self.model = model

    @property
    def bytes(self) -> int:
        """Memory of the weights as they are multiplied, norms and positions included."""
        return sum(p.bytes for p in self.model.plans()) + sum(
            t.numel() * t.element_size() for t in self.model.vectors()
        )

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that a step of one token reads: all but the embedding's other rows."""
        model = self.model
        return sum(p.bytes for p in model.plans() if p is not model.embedding or p is model.head.plan)

    def session(self, sequences: int, positions: int) -> Session:
        """Room for `sequences` texts of at most `positions` tokens each."""
        return Session(self.model, sequences, positions)


def _cache(places: int, head_size: int, bits: int) -> dict[str, Tensor]:
    """Keys and values of `places` positions, for all heads and sequences.

    They are float32, or codes and their scales.
    """
    if bits == 16:
        size = places * (-(-head_size // 16) * 16)
        return {"keys": torch.zeros(size), "values": torch.zeros(size)}
    entries = -(-head_size // 16) * 16 if bits == 8 else -(-head_size // 32) * 32
    codes, scales = ("keys", "values"), ("key_scales", "value_scales")
    found = {name: torch.zeros(places * entries * bits // 8, dtype=torch.uint8) for name in codes}
    return found | {name: torch.zeros(places, dtype=torch.float16) for name in scales}


class Session:
    """A key-value cache, and how many positions of it each sequence has filled.

    It holds float32, or codes of `Model.cache_bits` with float16 scales.
    """

    def __init__(self, model: Model, sequences: int, positions: int):
        self.model, self.sequences, self.limit = model, sequences, min(positions, model.limit)
        self.length = 0
        capacity = -(-self.limit // 16) * 16
        self._caches: list[dict[str, Tensor]] = []  # of each layer, as step.c lays them out
        layers = (_Layer * len(model.layers))()
        for c, layer in zip(layers, model.layers, strict=True):
            for name in ("attention", "feed_forward", "q_norm", "k_norm"):
                setattr(c, name, _pointers(getattr(layer, name), _Norm))
            for role in ROLES:
                setattr(c, role, _pointers(layer.linears.get(role, Linear()), _Linear))
            c.heads, c.kv_heads, c.head_size = layer.heads, layer.kv_heads, layer.head_size
            c.width = layer.linears["up"].plan.shape[0]
            made = _cache(sequences * layer.kv_heads * capacity, layer.head_size, model.cache_bits)
            for name, tensor in made.items():
                setattr(c, name, tensor.data_ptr())
            self._caches.append(made)
        self._layers = layers
        m = model
        self._model = _Model(
            layers=len(layers),
            hidden=m.hidden,
            capacity=capacity,
            rotary=0 if m.cosine is None else 2 * m.cosine.shape[1],
            offset=m.offset,
            rms=m.rms,
            parallel=m.parallel,
            post_norm=m.post_norm,
            activation=ACTIVATIONS.index(m.activation),
            cache_bits=m.cache_bits,
            eps=m.eps,
            scaling=m.scaling,
            embedding_scale=m.embedding_scale,
            embedding=_pointers(Linear(m.embedding), _Linear),
            project_in=_pointers(m.project_in, _Linear),
            project_out=_pointers(m.project_out, _Linear),
            head=_pointers(m.head, _Linear),
            final=_pointers(m.final, _Norm),
            **{
                name: None if getattr(m, name) is None else getattr(m, name).data_ptr()
                for name in ("positions", "cosine", "sine")
            },
            layer=ctypes.addressof(layers),
        )

    @property
    def bytes(self) -> int:
        """Bytes of the cache."""
        return sum(t.numel() * t.element_size() for layer in self._caches for t in layer.values())

    def run(self, ids: Tensor, threads: int | None = None) -> Tensor:
        """Append ids [sequences, t] to the texts; returns the logits of each sequence's last token.

        The logits are float32 [sequences, vocabulary]. Raises ValueError if the session is full, or if an id
        is not in the vocabulary.
        """
        count, t = ids.shape
        if count != self.sequences or t < 1:
            raise ValueError(f"ids of shape {count} x {t}; this session takes {self.sequences} x 1 or more")
        if self.length + t > self.limit:
            raise ValueError(f"{self.length} + {t} tokens; this session holds {self.limit}")
        rows = ids.tolist()  # handling tensors of a few numbers costs more than handling the numbers
        lowest, highest = min(map(min, rows)), max(map(max, rows))
        if not (lowest >= 0 and highest < self.model.embedding.shape[0]):
            raise ValueError(
                f"token ids {lowest} to {highest}; the vocabulary has {self.model.embedding.shape[0]}"
            )
        step = max(1, CHUNK // count)
        for start in range(0, t, step):
            logits = self._chunk(
                [row[start : start + step] for row in rows],
                start + step >= t,
                threads or torch.get_num_threads(),
            )
        return logits

    def _chunk(self, rows: list[list[int]], last: bool, threads: int) -> Tensor:
        count, t = len(rows), len(rows[0])
        numbers, places = ctypes.c_int64 * (count * t), ctypes.c_int32 * (count * t)
        tokens = numbers(*(token for row in rows for token in row))
        sequence = places(*(i for i in range(count) for _ in range(t)))
        position = places(*(self.length + i for _ in rows for i in range(t)))
        wanted = (ctypes.c_int64 * count)(*range(t - 1, count * t, t))
        logits = torch.empty(count if last else 0, self.model.vocabulary)
        lists = [ctypes.addressof(numbers) for numbers in (tokens, sequence, position, wanted)]
        request = _Request(*lists[:3], count * t, lists[3], len(logits), logits.data_ptr())
        if cpu.wait().step(ctypes.addressof(self._model), ctypes.addressof(request), threads):
            raise MemoryError("out of memory in a decode step")
        self.length += t
        return logits
