"""`python -m kernels.gpu [--json] [--turns]`: compile every variant for each generation of cards, and print a
table. With --turns each variant is compiled for one generation only, the next variant for the next
generation. So each kernel, which has several variants, is still compiled for all generations.

A row is a kernel on a target: registers a thread, bytes spilled to memory, shared memory, and the tensor core
instruction that it uses. Triton brings NVIDIA's assembler and disassembler; no graphics card is needed.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from kernels.gpu import FILES, Variant

TARGETS = (80, 90, 120)  # Ampere (A100), Hopper (H100), Blackwell (RTX 50)
TENSOR_CORES = re.compile(r"\b(tcgen05\.mma|wgmma\.mma_async|mma\.sync)")


def variants() -> list[tuple[str, Variant]]:
    """(name, variant) of every file's VARIANTS."""
    found = []
    for file in FILES:
        for variant in importlib.import_module(f"kernels.gpu.{file}").VARIANTS:
            kernel, pointers, keywords = variant
            sizes = " ".join(
                f"{name}={value}" for name, value in keywords.items() if name in kernel.arg_names
            )
            found.append((f"{file}.{kernel.__name__} {next(iter(pointers.values()))} {sizes}", variant))
    return found


def compiled(variant: Variant, target: int):
    """The kernel compiled for compute capability `target`.

    Sizes that Triton specialises are taken as multiples of 16.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, pointers, keywords = variant
    types = {p.name: "*" + pointers[p.name] if p.name in pointers else "i32" for p in kernel.params}
    types |= {p.name: "constexpr" for p in kernel.params if p.is_constexpr}
    constants = {name: value for name, value in keywords.items() if name in types}
    options = {name: value for name, value in keywords.items() if name not in types}
    even = {
        (p.num,): [["tt.divisibility", 16]]
        for p in kernel.params
        if not p.is_constexpr and not p.do_not_specialize
    }
    return triton.compile(
        ASTSource(kernel, types, constants, even), target=GPUTarget("cuda", target, 32), options=options
    )


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread and spilled bytes a thread, as the disassembler reports them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        printed = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True)
    registers, stack, local = map(
        int, re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", printed.stdout + printed.stderr).groups()
    )
    return {"registers": registers, "spilled_bytes": stack + local}


def row(name: str, variant: Variant, target: int) -> dict:
    """One row of the table: a kernel on a target."""
    kernel = compiled(variant, target)
    cores = TENSOR_CORES.search(kernel.asm["ptx"])
    found = {"kernel": name, "target": f"sm_{target}"} | resources(kernel.asm["cubin"])
    return found | {"shared_bytes": kernel.metadata.shared, "tensor_cores": cores[1] if cores else "none"}


def pairs(turns: bool) -> list[tuple[str, Variant, int]]:
    """(name, variant, target) of everything that is compiled."""
    if not turns:
        return [(name, variant, target) for name, variant in variants() for target in TARGETS]
    kernels: dict[str, list[tuple[str, Variant]]] = {}
    for name, variant in variants():
        kernels.setdefault(name.partition(" ")[0], []).append((name, variant))
    return [
        (*same[i % len(same)], TARGETS[i % len(TARGETS)])
        for same in kernels.values()
        for i in range(max(len(same), len(TARGETS)))
    ]


def main(arguments: list[str]) -> None:
    """Print the table."""
    table = [row(*pair) for pair in pairs("--turns" in arguments)]
    if "--json" in arguments:
        print(json.dumps(table))
        return
    width = max(len(line["kernel"]) for line in table)
    head = dict(
        zip(table[0], ("kernel", "target", "registers", "spilled", "shared", "tensor cores"), strict=True)
    )
    for line in (head, *table):
        print(
            f"{line['kernel']:{width}}",
            *(f"{cell:>9}" for cell in list(line.values())[1:-1]),
            "",
            line["tensor_cores"],
        )


if __name__ == "__main__":
    main(sys.argv[1:])
