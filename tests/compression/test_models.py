"""Loading: what is refused, in which words and how fast; what the offline model is."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch

from compression import arch, models
from compression import hub as hubs
from compression.base import ModelUnavailable, UnsupportedModel
from compression.catalogue import CATALOGUE, OFFLINE_MODEL
from tests import tiny

PROMISED = {
    "smollm2-135m",
    "smollm2-135m-instruct",
    "smollm2-360m",
    "smollm2-360m-instruct",
    "qwen2.5-0.5b",
    "qwen2.5-0.5b-instruct",
    "qwen3-0.6b",
    "opt-125m",
    "opt-350m",
    "gpt2",
    "pythia-70m",
    "pythia-160m",
    "pythia-410m",
    "tinyllama-1.1b-chat-v1.0",
    "llama-3.2-1b-instruct",
    OFFLINE_MODEL,
}


def counted(geometry) -> int:
    """Every parameter of a model of these sizes, counted from what its architecture's code builds."""
    shapes = [shape for _, _, shape in arch.linear_shapes(geometry)]
    layers, hidden, name = geometry.layers, geometry.hidden, geometry.architecture
    total = sum(out * n for out, n in shapes) + geometry.table_parameters * (1 if geometry.tied else 2)
    norms = hidden * (2 * len(layers) + 1)
    if name in ("llama", "qwen2", "qwen3"):
        total += norms
    if name == "qwen2":  # biases of q, k and v
        total += sum((g.heads + 2 * g.kv_heads) * g.head_size for g in layers)
    if name == "qwen3":  # a norm for the queries' heads and one for the keys'
        total += sum(2 * g.head_size for g in layers)
    if name in ("opt", "gpt2", "gpt_neox"):  # norms with a bias, and a bias for every linear
        total += 2 * norms + sum(out for out, _ in shapes)
    if name in ("opt", "gpt2"):  # positions; OPT has two more
        total += (geometry.positions + (2 if name == "opt" else 0)) * hidden
    if geometry.embedding:  # OPT-350M projects in and out, and has no last norm
        total += 2 * hidden * geometry.embedding - 2 * hidden
    return total


def test_the_catalogue_holds_the_promised_models():
    """Sizes are right to the last parameter: the counts are those that the hub shows."""
    assert set(CATALOGUE) >= PROMISED
    for entry in CATALOGUE.values():
        assert entry.name == entry.hub_id.split("/")[-1].lower() or entry.package
        assert counted(entry.geometry) == entry.parameters, entry.name
        assert entry.licence and entry.series
    assert {n for n, e in CATALOGUE.items() if e.gated} == {n for n in CATALOGUE if n.startswith("llama-")}
    titles = [entry.title for entry in CATALOGUE.values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    "name, code",
    [
        ("nosuchmodel", "unknown_model"),
        ("gpt2", "hub_unreachable"),
        ("someone/some-model", "hub_unreachable"),
        ("/nowhere/at-all", "unknown_model"),
        ("", "unknown_model"),
    ],
)
def test_what_cannot_be_had_is_told_at_once(name, code, monkeypatch):
    """Nothing is waited for, and no line is opened."""
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **more: waits.append(where))
    with pytest.raises(ModelUnavailable) as error:
        models.load(name)
    assert error.value.code == code, str(error.value)
    assert waits == []


def test_pickled_weights_are_not_opened(tmp_path):
    shutil.copy(Path(tiny.folder("llama")) / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ModelUnavailable) as error:
        models.load(str(tmp_path))
    assert error.value.code == "no_safetensors"


def test_paths_are_refused_on_a_public_page():
    with pytest.raises(ModelUnavailable) as error:
        models.load(tiny.folder("llama"), allow_paths=False)
    assert error.value.code == "path_refused"


def test_a_local_folder_loads_ready_to_use():
    bundle = tiny.bundle("qwen2")
    assert not bundle.module.training and not any(p.requires_grad for p in bundle.module.parameters())
    assert next(bundle.module.parameters()).dtype == torch.float32
    assert len(bundle.source["weights_hash"]) >= 32
    assert bundle.geometry.architecture == "qwen2" and len(bundle.geometry.layers) == 2


def test_a_size_is_known_before_the_download(monkeypatch):
    """No room on the disk is told before a byte is fetched."""
    monkeypatch.setattr(hubs.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1_000_000})())
    with pytest.raises(ModelUnavailable, match=r"2\.0 GB.*free") as error:
        hubs._check_room("someone/big", 2_000_000_000)
    assert error.value.code == "no_room" and error.value.facts["need_bytes"] == 2_000_000_000


@pytest.mark.model
def test_the_offline_model_says_that_it_was_rounded(offline_model):
    bundle = models.load(offline_model)
    assert bundle.source["rounded"] == "Q4_1" and 97e6 < bundle.source["publisher_bytes"] < 99e6
    assert bundle.source["chat"] and len(bundle.geometry.layers) == 30
    from compression.sample import chat_ids, generate, stop_ids

    ids = chat_ids(bundle, [{"role": "user", "content": "What is the capital of France?"}])
    tokens = [int(t) for t in generate(bundle, ids, 12)]
    assert "Paris" in bundle.tokenizer.decode(tokens) and stop_ids(bundle) & set(tokens)


@pytest.mark.model
def test_its_weights_are_the_publishers(offline_model):
    """Dequantised once: the same tensors that transformers reads from the package's own file."""
    from transformers import AutoModelForCausalLM

    gguf = models._package_file(CATALOGUE[offline_model], print)[0]
    expected = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    found = models.load(offline_model).module.state_dict()
    for name, tensor in expected.state_dict().items():
        if "rotary" not in name:
            assert torch.equal(found[name], tensor), name


# --- the hub, played by a stand-in: what is asked before a byte of weights is fetched ---


class Hub:
    """Answers as huggingface_hub.HfApi does for one repository."""

    def __init__(self, place, files, *, gated=False, family="llama", missing=False, pulls=()):
        self.place, self.files, self.gated, self.family, self.missing, self.pulls = (
            place,
            files,
            gated,
            family,
            missing,
            pulls,
        )
        self.revisions = []

    def model_info(self, repo, revision="main", files_metadata=False, timeout=None):
        from types import SimpleNamespace

        if self.missing:
            import httpx
            from huggingface_hub.errors import RepositoryNotFoundError

            request = httpx.Request("GET", "https://hub.invalid")
            raise RepositoryNotFoundError("404", response=httpx.Response(404, request=request))
        self.revisions.append(revision)
        files = [*self.files, "model.safetensors"] if revision.startswith("refs/pr/") else self.files
        return SimpleNamespace(
            gated=self.gated, sha=revision, siblings=[SimpleNamespace(rfilename=f, size=1000) for f in files]
        )

    def auth_check(self, repo):
        import httpx
        from huggingface_hub.errors import GatedRepoError

        raise GatedRepoError(
            "403", response=httpx.Response(403, request=httpx.Request("GET", "https://hub.invalid"))
        )

    def get_repo_discussions(self, repo, discussion_type=None):
        return self.pulls

    def hf_hub_download(self, repo, file, revision=None):
        path = self.place / file
        config = json.loads((Path(tiny.folder("llama")) / "config.json").read_text())
        path.write_text(json.dumps(config | {"model_type": self.family}))
        return str(path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Put a stand-in in the hub's place; returns what would be downloaded, or the error's code."""
    import huggingface_hub
    from huggingface_hub import constants

    def ask(*files, **traits):
        fetched = {}
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(tmp_path, files, **traits))
        monkeypatch.setattr(
            hubs,
            "_download",
            lambda repo, sha, names, emit: fetched.update(sha=sha, files=set(names)) or tmp_path,
        )
        try:
            hubs.fetch("someone/a-model", lambda e: None)
        except (ModelUnavailable, UnsupportedModel) as error:
            assert not fetched, "nothing is fetched for a model that can't be used"
            return error.code
        return fetched

    return ask


def test_only_what_is_needed_is_fetched(hub):
    files = (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "LICENSE",
        "pytorch_model.bin",
        "modeling_custom.py",
        "onnx/model.onnx",
    )
    assert hub(*files)["files"] == {"config.json", "model.safetensors", "tokenizer.json", "LICENSE"}


def test_refusals_come_before_the_download(hub):
    assert hub("config.json", "model.safetensors", gated="manual") == "gated_model"
    assert hub("config.json", missing=True) == "unknown_model"
    assert hub("config.json", "pytorch_model.bin") == "no_safetensors"
    assert hub("config.json", "model.safetensors", family="bert") == "unsupported_model"


def test_the_hubs_own_conversion_is_taken_where_there_is_no_other(hub):
    from types import SimpleNamespace

    pull = SimpleNamespace(
        author="SFconvertbot", title="Adding `safetensors` variant of this model", num=7, status="open"
    )
    found = hub("config.json", "pytorch_model.bin", pulls=(pull,))
    assert (
        found["sha"] == "refs/pr/7"
        and "model.safetensors" in found["files"]
        and "pytorch_model.bin" not in found["files"]
    )
    stranger = SimpleNamespace(**{**vars(pull), "author": "somebody"})
    assert hub("config.json", "pytorch_model.bin", pulls=(stranger,)) == "no_safetensors"
