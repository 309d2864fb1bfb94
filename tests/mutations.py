"""How much `make quick` sees: each of these faults is put into a copy of the program, and the quick tests run.

    make mutations                     all of them (about an hour on two cores)
    python -m tests.mutations 3 17     some of them by number

A row is (file, its text, what stands there instead, the test file that sees it; "" where none of the quick
tests does). The named file runs alone, which takes seconds. tests/test_tiers.py holds that every text still
stands once in its file, that the rows reach every folder, and that at least forty are seen.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COPIED = ("app.py", "pyproject.toml", "compression", "kernels", "evaluation", "assets", "tests")

MUTATIONS = (
    # --- compression: shared mathematics ---
    ("compression/grids.py", "store_scale((high - low) / (2**bits - 1))", "store_scale((high - low) / 2**bits)", "compression/quantization/test_gptq.py"),
    ("compression/grids.py", "return store_scale(2 * largest", "return store_scale(largest", ""),
    ("compression/second_order.py", "div_(factor[c, c])", "mul_(factor[c, c])", "compression/quantization/test_gptq.py"),
    ("compression/second_order.py", "0.0) + used * scale)", "0.0) + 1.1 * used * scale)", "compression/quantization/test_gptq.py"),
    ("compression/divergences.py", "beta * _kl(p, m) + (1 - beta) * _kl(q, m)", "beta * _kl(q, m) + (1 - beta) * _kl(p, m)", "compression/test_divergences.py"),
    ("compression/row_losses.py", "return lost if weights is None else lost * weights[rows]", "return lost", "compression/test_row_losses.py"),
    ("compression/structure.py", "head * sizes.kv_heads // sizes.heads", "head % sizes.kv_heads", "compression/test_structure.py"),
    # --- compression: models ---
    ("compression/arch.py", "torch.stack(by_head, -2)", "torch.stack(by_head, -3)", "compression/test_arch.py"),
    ("compression/arch.py", ".repeat_interleave(width // made, 0).flatten()", ".repeat(width // made, 1).flatten()", "compression/quantization/test_folding.py"),
    ("compression/arch.py", "source.weight.detach().float() + added", "source.weight.detach().float()", "compression/architectures/test_new_architecture.py"),
    ("compression/architectures/gpt_neox.py", 'default_share=0.25', 'default_share=0.5', ""),
    ("compression/architectures/opt.py", 'norm_first="do_layer_norm_before"', 'norm_first=""', ""),
    ("compression/configs.py", "if heads % kv_heads:", "if kv_heads > heads:", "compression/test_checkpoint.py"),
    ("compression/checkpoint.py", "    if unexpected:\n", "    if False:\n", "compression/test_checkpoint.py"),
    ("compression/inputs.py", "self.sums[name] += new", "self.sums[name] = new", "compression/test_calibrate.py"),
    ("compression/kv_cache.py", "x.detach().float() / torch.where(scale == 0, 1, scale).float()).round()", "x.detach().float() / torch.where(scale == 0, 1, scale).float()).floor()", "compression/test_kv_cache.py"),
    ("compression/sample.py", "logits.float().cpu() / temperature", "logits.float().cpu() * temperature", "compression/test_sample.py"),
    ("compression/texts.py", "available = len(ids) // window", "available = len(ids) // window - 1", "compression/test_texts.py"),
    # --- compression: formats ---
    ("compression/packed/grid.py", "(torch.round(weight.float() / scale) + zero)", "(torch.floor(weight.float() / scale) + zero)", "compression/test_methods.py"),
    ("compression/packed/codebook.py", "(0, 0.0625, 8, 12, 4, 6, 2, 3)", "(0, 0.0625, 8, 12, 4, 6, 3, 2)", "compression/quantization/test_nf4.py"),
    ("compression/packed/activations.py", "top = 2 ** (self.bits - 1) - 1", "top = 2 ** (self.bits - 1)", "compression/packed/test_packed.py"),
    # --- compression: methods ---
    ("compression/quantization/gptq.py", "torch.argsort(gram.diagonal(), descending=True, stable=True)", "torch.argsort(gram.diagonal(), stable=True)", "compression/quantization/test_gptq.py"),
    ("compression/quantization/awq.py", "clamp_min(1e-5) / (2**bits - 1)", "clamp_min(1e-5) / 2**bits", "compression/quantization/test_awq.py"),
    ("compression/quantization/hqq.py", "(codes - (w - kept) / s).mean(1)", "(codes - w / s).mean(1)", "compression/quantization/test_hqq.py"),
    ("compression/quantization/llm_int8.py", "keepdim=True) / 127, None)", "keepdim=True) / 128, None)", "compression/quantization/test_llm_int8.py"),
    ("compression/quantization/owq.py", "params.extra_bits / (16 - params.bits)", "params.extra_bits / 16", "compression/quantization/test_owq.py"),
    ("compression/quantization/spqr.py", "/ diagonal).square()", "/ diagonal).abs()", "compression/quantization/test_spqr.py"),
    ("compression/quantization/smoothquant.py", "/ largest.pow(1 - alpha)", "/ largest.pow(alpha)", "compression/quantization/test_smoothquant.py"),
    ("compression/quantization/zeroquant.py", "store_scale(2 * most(weight.abs()) / 2**bits)", "store_scale(2 * most(weight.abs()) / (2**bits - 1))", "compression/quantization/test_zeroquant.py"),
    ("compression/quantization/lut_gemm.py", "grid.scale.float() * 2.0 ** (k - 1)", "grid.scale.float() * 2.0**k", "compression/quantization/test_lut_gemm.py"),
    ("compression/quantization/llm_qat.py", "/ (2 ** (bits - 1) - 1)), None", "/ 2 ** (bits - 1)), None", "compression/quantization/test_llm_qat.py"),
    ("compression/pruning/patterns.py", "stats.sum_sq.sqrt()", "stats.sum_sq", "compression/test_methods.py"),
    ("compression/pruning/owl.py", "2 * spread / width", "spread / width", "compression/pruning/test_owl.py"),
    ("compression/pruning/permutation.py", "(loose - limit[:, g : g + 1]).relu_()", "loose.clone()", "compression/pruning/test_permutation.py"),
    ("compression/pruning/patterns.py", "torch.argsort(score, dim=1, stable=True)", "torch.argsort(-score, dim=1, stable=True)", "compression/pruning/test_sparsegpt.py"),
    ("compression/pruning/shortgpt.py", "* weight).abs()", "* weight)", "compression/pruning/test_shortgpt.py"),
    ("compression/pruning/structured.py", "rest[: count - len(scores)]", "rest[:count]", "compression/pruning/test_llm_pruner.py"),
    ("compression/pruning/llm_pruner.py", "g * weight - 0.5 * f", "g * weight - f", ""),
    ("compression/pruning/lora_prune.py", "0.0), 1.0)) ** 3)", "0.0), 1.0)) ** 2)", "compression/pruning/test_lora_prune.py"),
    ("compression/low_rank/rank.py", "int((1 - removed) * out * n / (out + n))", "int((1 - removed) * out * n / (out + n) / 2)", "compression/test_methods.py"),
    ("compression/low_rank/asvd.py", "mean_abs.double() ** alpha", "mean_abs.double() ** (1 - alpha)", "compression/low_rank/test_asvd.py"),
    ("compression/low_rank/svd_llm.py", "1 / losses.double().log()", "losses.double().log()", "compression/low_rank/test_svd_llm.py"),
    ("compression/low_rank/search.py", "key=size) - 1", "key=size)", "compression/low_rank/test_search.py"),
    ("compression/low_rank/tensorgpt.py", "range(1, math.isqrt(width) + 1)", "range(1, math.isqrt(width))", "compression/low_rank/test_tensorgpt.py"),
    ("compression/distillation/minillm.py", "to_go / (terms - 1).clamp(min=1)", "to_go / terms.clamp(min=1)", "compression/distillation/test_minillm.py"),
    ("compression/distillation/gkd.py", "(1 - params.share) * text + params.share * own", "params.share * text + (1 - params.share) * own", ""),
    ("compression/distillation/students.py", "round(i * (total - 1) / (kept - 1))", "round(i * total / kept)", "compression/distillation/test_distillation.py"),
    ("compression/distillation/lion.py", "s[0] - s[1] >= LEAD", "s[1] - s[0] >= LEAD", "compression/distillation/test_lion.py"),
    # --- kernels ---
    ("kernels/bits.py", "    return -(-n // 8) * bits\n", "    return n // 8 * bits\n", "kernels/test_bits.py"),
    ("kernels/grids.py", "10.0 ** (i - 6)", "10.0 ** (i - 7)", "compression/quantization/test_nf4.py"),
    ("kernels/grouped_int.py", "return scale * (codes.float() - zero)", "return scale * codes.float() - zero", "compression/packed/test_packed.py"),
    ("kernels/cpu/step.c", "1 / sqrtf(s2 / n + eps)", "1 / sqrtf(s2 / n)", "compression/test_engine.py"),
    ("kernels/cpu/token.c", "moved_half(r.raw[g], k)", "moved_half(r.raw[g], 1 - k)", "kernels/cpu/test_cpu.py"),
    ("kernels/gpu/grouped_int.py", "(dot - z[None, :, :] * total[:, None, :])", "(dot + z[None, :, :] * total[:, None, :])", ""),
    # --- evaluation ---
    ("evaluation/verdict.py", "math.sqrt(count / (count - 1) * math.fsum", "math.sqrt(math.fsum", "evaluation/test_verdict.py"),
    ("evaluation/limits.py", "NO_LIMIT = 1 << 60", "NO_LIMIT = 1 << 70", ""),
    ("evaluation/records.py", "if version > VERSION:", "if version > VERSION + 1:", "evaluation/test_records.py"),
    ("evaluation/measuring/perplexity.py", "/ math.sqrt(len(values)) if", "if", "evaluation/measuring/test_likelihood.py"),
    ("evaluation/measuring/divergence.py", "log_p.exp_().mul_(difference)", "log_p.mul_(difference)", "evaluation/measuring/test_likelihood.py"),
    ("evaluation/running/clock.py", "max(0.0, planned - spent) + later", "max(0.0, planned - spent)", "evaluation/running/test_clock.py"),
    ("evaluation/choosing/planner.py", "fits=needed <= need.memory_bytes", "fits=file_bytes <= need.memory_bytes", "evaluation/choosing/test_planner.py"),
    ("evaluation/page/pareto.py", "(better(x, p, a) or better(y, q, b))", "(better(x, p, a) and better(y, q, b))", "page/test_front.py"),
    ("evaluation/page/questions/running.py", 'out | {"fits": False} | self._unreachable', 'out | self._unreachable', "page/test_front.py"),
    ("evaluation/page/front.py", "[row.get(key) for key in asked] == wanted", "[row.get(key) for key in asked] != wanted", "page/test_front.py"),
    ("evaluation/page/words.py", "abs(ratio - 1) <= 2 * stderr", "abs(ratio - 1) <= stderr", "page/test_words.py"),
    ("evaluation/page/classes.py", "may = lesson in found.shown or self._leads(found, key)", "may = True", "page/test_classes.py"),
    ("evaluation/page/classes.py", "now + DAY", "now + 2 * DAY", "page/test_classes.py"),
    ("evaluation/learning/lesson.py", "if not holds:", "if holds is None:", "evaluation/learning/test_course.py"),
    ("evaluation/learning/course.py", 'place.get(system.name, "")', 'place.get(system.method[::-1], "")', "evaluation/learning/test_course.py"),
    ("evaluation/learning/lessons/rounding.py", 'facts["bits3"] > 3 * facts["original"]', 'facts["bits3"] > -3 * facts["original"]', ""),
    ("evaluation/page/requests.py", "abs(value) <= WHOLE", "abs(value) <= 2 * WHOLE", "page/test_requests.py"),
    ("app.py", "max(30, round(", "max(3, round(", ""),
    ("assets/scripts/runs.js", "(down ? -1 : 1)", "(down ? 1 : -1)", ""),
)  # fmt: skip


def seen(number: int, folder: Path) -> bool:
    """Whether the quick tests fail over a fault. folder: a copy of the program, changed for as long."""
    name, old, new, test = MUTATIONS[number]
    file = folder / name
    text = file.read_text("utf-8")
    file.write_text(text.replace(old, new), "utf-8")
    # test_tiers.py asks for the unchanged text, so it would see every fault
    tests = [f"tests/{test}"] if test else ["tests", "--ignore=tests/test_tiers.py"]
    try:
        return _quick(tests, folder) == 1
    finally:
        file.write_text(text, "utf-8")


def _quick(tests: list[str], folder: Path) -> int:
    """Exit code of the quick tests in a copy of the program.

    They run in a child of this process, which has loaded the libraries and nothing of the program: loading
    takes longer than most of the tests.
    """
    child = os.fork()
    if not child:
        code = 3
        try:
            os.chdir(folder)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            sys.path.insert(0, str(folder))
            for loaded in [n for n in sys.modules if n.partition(".")[0] == "tests"]:
                del sys.modules[loaded]
            os.environ["PYTHONPATH"] = str(folder)  # of processes that the tests begin
            code = int(pytest.main(["--quick", "-x", "-q", *tests]))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(numbers: list[int]) -> int:
    """Try the faults; exit code 1 if one is seen, or not, otherwise than its row says."""
    # transformers would take our `kernels` for a package of that name
    sys.path[:] = [p for p in sys.path if p not in ("", str(ROOT))]
    import transformers.models.llama.modeling_llama  # noqa: F401

    assert not {"kernels", "compression", "evaluation"} & sys.modules.keys()
    odd, found_in_all = 0, 0
    with tempfile.TemporaryDirectory() as place:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, Path(place) / name)
        for number in numbers or range(len(MUTATIONS)):
            name, old, new, test = MUTATIONS[number]
            found = seen(number, Path(place))
            odd, found_in_all = odd + (found != bool(test)), found_in_all + found
            print(
                f"{number:2} {'seen' if found else 'NOT SEEN'}  {name}: {old.strip()!r}  {test}", flush=True
            )
    print(f"{found_in_all} of {len(numbers or MUTATIONS)} seen")
    return int(odd > 0)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # as tests/conftest.py has it, before transformers reads it
    sys.exit(main([int(n) for n in sys.argv[1:]]))
