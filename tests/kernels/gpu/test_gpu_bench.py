"""What the bench times on a card, through the interpreter: it is verified by the references first."""

from __future__ import annotations

from kernels import bench_gpu
from tests.kernels.gpu.on_card import DEVICE, product


@product
def test_product_of_every_variant_that_the_bench_times():
    """Each row was verified by its reference first; what others' kernels can't do is told."""

    def clock(work):
        return (work(), 1e-3)[1]

    table = bench_gpu.rows(
        list(bench_gpu.OPS), {"read": 1e9, "exact": 1e9}, clock, DEVICE, ((40, 128),), (1, 20)
    )
    ours = [row for row in table if row["op"] != "others"]
    assert {row["op"] for row in ours} == set(bench_gpu.OPS) and not [row for row in ours if "failed" in row]
    assert len([row for row in ours if row["share_of_limit"]]) == len(ours) - 1, (
        "int8 has no limit in float16 operations"
    )
    assert all(row.keys() & {"failed", "microseconds"} for row in table) and len(table) > len(ours)
