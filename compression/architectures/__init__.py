"""The table of architectures: one file for each, whose columns declare.py explains.

A new architecture needs its file, its line here, and a small configuration in tests/tiny.py. Every test of
architectures then runs it.
"""

from __future__ import annotations

from compression.architectures.declare import Architecture
from compression.architectures.gpt2 import GPT2
from compression.architectures.gpt_neox import GPT_NEOX
from compression.architectures.llama import LLAMA
from compression.architectures.opt import OPT
from compression.architectures.qwen2 import QWEN2
from compression.architectures.qwen3 import QWEN3

ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in (LLAMA, QWEN2, QWEN3, OPT, GPT2, GPT_NEOX)}
