"""Hostile model folders and tampered artifacts, each loaded in a process of its own: 25 s, 9 GB, "y" on
standard input.

Right is: refused with a code that the page has words for, or loaded with the numbers that plain transformers
gives for the same folder; nothing on standard output, no code of the folder run. An artifact that was touched
is refused, or gives exactly what it gave.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from tests import hostile
from tests.soak import stage
from tests.soak.campaign import Campaign, told

SECONDS, BYTES = 25 * stage.PATIENCE, 9e9
BENT, TAMPERED = 60, 40  # folders beside those of tests/hostile.py, and artifacts
NUMBERS = (
    0,
    -1,
    1,
    3,
    1e9,
    10**18,
    2**63,
    0.5,
    -0.5,
    1e308,
    1e-320,
    True,
    False,
    None,
    "12",
    "",
    "NaN",
    [],
    [4],
    {},
    [2, 2],
    {"a": 1},
)
MARK = 'import pathlib; pathlib.Path({!r}).write_text("ran")\n'


class Loader:
    """A process of tests.soak.loader."""

    def __init__(self, home: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.loader"],
            cwd=stage.ROOT,
            env=stage.environment(home),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def load(self, kind: str, folder: Path | str) -> dict:
        self.process.stdin.write(
            json.dumps({"kind": kind, "folder": str(folder), "seconds": SECONDS, "bytes": BYTES}) + "\n"
        )
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(10)


def run(campaign: Campaign) -> None:
    """First that good folders load; then the hostile ones."""
    ledger, loader = campaign.ledger, Loader(campaign.home())
    try:
        good = Path(campaign.model("good"))
        artifact = _artifact(campaign, good)
        whole = {"model": loader.load("model", good), "artifact": loader.load("artifact", artifact)}
        for kind, found in whole.items():
            if not ledger.check(bool(found.get("loaded")), f"a good {kind} doesn't load: {found}"):
                return
        cases = list(hostile.CASES.items())
        for i in campaign.each(campaign.times(len(cases), 5)):
            name, case = cases[i]
            folder = case.build(campaign.scratch / f"listed-{i}")
            found = loader.load("model", folder)
            if case.code is None:
                own = loader.load("model", campaign.model(f"good-{case.family}", family=case.family))
                ledger.check(
                    "loaded" in found and _close(found["logits"], own["logits"]), f"{name}: {_shown(found)}"
                )
            else:
                _judge(ledger, name, folder, found, case.code, loader)
        for i in campaign.each(campaign.times(BENT, 5)):
            family = campaign.random.choice(("llama", "llama", "qwen3", "gpt2", "opt", "gpt_neox"))
            own = campaign.model(f"good-{family}", family=family)
            folder = _copy(Path(own), campaign.scratch / f"bent-{i}")
            name = campaign.random.choice((_config, _config, _header, _bytes, _index, _code))(
                campaign.random, folder
            )
            _judge(ledger, f"{family}: {name}", folder, loader.load("model", folder), None, loader, own)
            shutil.rmtree(folder)
        for i in campaign.each(campaign.times(TAMPERED, 5)):
            folder = _copy(artifact, campaign.scratch / f"tampered-{i}")
            name = campaign.random.choice(
                (_flip, _flip, _manifest, _manifest, _config, _cut, _away, _header)
            )(campaign.random, folder)
            _judge_artifact(ledger, name, loader.load("artifact", folder), whole["artifact"], folder)
            shutil.rmtree(folder)
    finally:
        loader.close()


def _shown(found: dict) -> dict:
    return {k: v for k, v in found.items() if k not in ("logits", "tokens")}


def _artifact(campaign: Campaign, good: Path) -> Path:
    """The good model in 4 bits, saved; made in another process, so that this one starts no threads."""
    place = campaign.scratch / "artifact"
    code = (
        "import sys; from compression import artifact, calibrate, get, models; b = "
        "models.load(sys.argv[1]); m = get('rtn'); "
        "calibrate.compress(b, ((m, m.params.parse({'bits': 4, 'group_size': 16})),), None, table_bits=8); "
        "artifact.save(b, sys.argv[2], {'recipe': [['rtn', {}]], 'label': 'a test'})"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(good), str(place)],
        cwd=stage.ROOT,
        check=True,
        timeout=300,
        env=stage.environment(campaign.home()),
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    return place


def _copy(folder: Path, place: Path) -> Path:
    shutil.copytree(folder, place)
    return place


def _judge(
    ledger, name: str, folder: Path, found: dict, expected: str | None, loader: Loader, own: str = ""
) -> None:
    """own: the folder before it was bent, for what plain transformers refuses although no forward pass reads
    it."""
    shown = f"{name}: {_shown(found)}"
    if any(file.name.endswith(("ran", hostile.MARK)) for file in folder.rglob("*")):
        return ledger.count("wrong", f"code of the folder ran: {shown}")
    if found.get("hung"):
        return ledger.count("hung", shown)
    if found.get("said"):
        return ledger.count("wrong", f"something stands on stdout: {shown}")
    if "refused" in found:
        right = found["ours"] and told(found["refused"])
        if right and expected and found["refused"] != expected:
            ledger.note(f"{name}: {found['refused']} where tests/hostile.py says {expected}")
        return ledger.judge(right, shown)
    if "died" in found:
        return ledger.count("lost", f"the process that loads died: {shown}")
    if expected:
        return ledger.count("wrong", f"loaded, where {expected} is due: {shown}")
    plain = loader.load("oracle", folder)
    if "error" in plain:
        plain = loader.load("model", own) | {"error": plain["error"]}
    right = plain.get("loaded") and _close(found["logits"], plain["logits"])
    return ledger.judge(
        bool(right),
        f"loaded, where plain transformers says otherwise ({plain.get('error', 'other numbers')}): {shown}",
    )


def _judge_artifact(ledger, name: str, found: dict, whole: dict, folder: Path) -> None:
    shown = f"artifact, {name}: {_shown(found)}"
    if found.get("hung"):
        ledger.count("hung", shown)
    elif "died" in found:
        ledger.count("lost", f"the process that loads died: {shown}")
    elif "refused" in found:
        ledger.check(found["ours"] and told(found["refused"]), shown)
    else:
        ledger.check(
            found["logits"] == whole["logits"] and found["tokens"] == whole["tokens"],
            f"loaded with other numbers: {shown}",
        )


def _close(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(
        math.isclose(x, y, rel_tol=1e-3, abs_tol=1e-3) or (x != x and y != y)
        for x, y in zip(a, b, strict=True)
    )


# --- ways to bend a folder; each says what it has done ---


def _config(chance: random.Random, folder: Path) -> str:
    file = folder / chance.choice(
        [f for f in ("config.json", "config.json", "tokenizer_config.json") if (folder / f).is_file()]
    )
    values = json.loads(file.read_text("utf-8"))
    key = chance.choice(
        [
            *values,
            "rope_scaling",
            "quantization_config",
            "layer_types",
            "auto_map",
            "sliding_window",
            "head_dim",
        ]
    )
    if chance.random() < 0.15 and key in values:
        del values[key]
        file.write_text(json.dumps(values), "utf-8")
        return f"{file.name} without {key}"
    values[key] = chance.choice(NUMBERS)
    file.write_text(json.dumps(values), "utf-8")
    return f"{file.name}: {key} = {values[key]!r}"


def _weights(chance: random.Random, folder: Path) -> tuple[Path, dict, bytes]:
    """A file of weights, its header and its data."""
    file = chance.choice(sorted(folder.glob("*.safetensors")))
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return file, json.loads(content[8 : 8 + size]), content[8 + size :]


def _header(chance: random.Random, folder: Path) -> str:
    file, header, data = _weights(chance, folder)
    name = chance.choice([k for k in header if k != "__metadata__"])
    how = chance.choice(("dtype", "shape", "offsets", "renamed", "gone", "twice"))
    if how == "dtype":
        header[name]["dtype"] = chance.choice(("I32", "F8_E4M3", "BF16", "X", 7, None, "F64"))
    elif how == "shape":
        header[name]["shape"] = chance.choice(
            ([], [0], [-1], [10**18], [1, *header[name]["shape"]], [*header[name]["shape"][::-1], 1])
        )
    elif how == "offsets":
        header[name]["data_offsets"] = chance.choice(
            (
                [0, 0],
                [0, 10**18],
                [-5, 5],
                [8, 4],
                header[chance.choice([k for k in header if k != "__metadata__"])]["data_offsets"],
            )
        )
    elif how == "renamed":
        header["base_model.model." + name] = header.pop(name)
    elif how == "gone":
        del header[name]
    else:
        header["model." + name] = dict(header[name])
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return f"header of {file.name}, {name}: {how} {header.get(name)}"


def _bytes(chance: random.Random, folder: Path) -> str:
    file = chance.choice(sorted(folder.glob("*.safetensors")))
    content = file.read_bytes()
    how = chance.choice(("cut", "empty", "pointer", "page", "longer", "header length"))
    file.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "empty": b"",
            "longer": content + b"\0" * 64,
            "page": b"<!DOCTYPE html><html></html>",
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
            "header length": struct.pack("<Q", 2**62) + content[8:],
        }[how]
    )
    return f"{file.name}: {how}"


def _index(chance: random.Random, folder: Path) -> str:
    """An index that says something of the one file or of another."""
    _, header, _ = _weights(chance, folder)
    names = [k for k in header if k != "__metadata__"]
    other = chance.choice(
        (
            "../model.safetensors",
            "/etc/passwd",
            "missing.safetensors",
            "pytorch_model.bin",
            "sub/model.safetensors",
            7,
            "",
            None,
        )
    )
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, other)}), "utf-8"
    )
    shutil.copytree(folder, folder / "sub", dirs_exist_ok=True, ignore=shutil.ignore_patterns("sub"))
    if chance.random() < 0.5:
        (folder / "model.safetensors").rename(folder / "other.safetensors")
    return f"index names {other!r}"


def _code(chance: random.Random, folder: Path) -> str:
    """Python beside the model that leaves a mark when it runs."""
    file = folder / chance.choice(("config.json", "tokenizer_config.json"))
    values = json.loads(file.read_text("utf-8"))
    for name in ("modeling_own", "tokenization_own", "configuration_own"):
        (folder / f"{name}.py").write_text(MARK.format(str(folder / "ran")) + "class Own: pass\n", "utf-8")
    values["auto_map"] = {
        "AutoConfig": "configuration_own.Own",
        "AutoModelForCausalLM": "modeling_own.Own",
        "AutoTokenizer": ["tokenization_own.Own", None],
    }
    kind = chance.choice(("own", values.get("model_type"), None))
    if file.name == "config.json":
        values["model_type"] = kind
    else:
        values["tokenizer_class"] = "Own"
    file.write_text(json.dumps(values), "utf-8")
    return f"{file.name} with code, model_type {kind!r}"


def _flip(chance: random.Random, folder: Path) -> str:
    file = chance.choice([f for f in sorted(folder.iterdir()) if f.is_file() and f.stat().st_size])
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    content[place] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return f"{file.name}: a bit of byte {place} flipped"


def _manifest(chance: random.Random, folder: Path) -> str:
    """A number, a name or a part of the manifest is something else."""
    from tests.soak.fuzz import places

    file = folder / "compression.json"
    manifest = json.loads(file.read_text("utf-8"))
    *way, last = chance.choice(list(places(manifest)))
    parent = manifest
    for key in way:
        parent = parent[key]
    before, parent[last] = parent[last], chance.choice((*NUMBERS, "../../x", "a" * 5000))
    file.write_text(json.dumps(manifest), "utf-8")
    return f"manifest {'.'.join(map(str, (*way, last)))}: {str(before)[:40]} -> {str(parent[last])[:40]!r}"


def _cut(chance: random.Random, folder: Path) -> str:
    file = chance.choice([f for f in sorted(folder.iterdir()) if f.is_file() and f.stat().st_size > 8])
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return f"{file.name} cut in half"


def _away(chance: random.Random, folder: Path) -> str:
    file = chance.choice(sorted(f for f in folder.iterdir() if f.is_file()))
    file.unlink()
    return f"{file.name} is missing"
