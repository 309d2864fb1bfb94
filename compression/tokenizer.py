"""Loads a tokenizer from the plain files of a folder, without running code of that folder.

No other file loads tokenizers. Each file that could be read is checked first: it must be a plain file of a
sane size, and hold JSON if its name says so. Afterwards the vocabulary is checked: every token must have a
row in the model's table.
"""

from __future__ import annotations

import fnmatch
import importlib.util

from compression.base import ModelUnavailable
from compression.folder import Folder, shown

CONFIG = "tokenizer_config.json"
LIMITS = {  # pattern of a name -> the most bytes that are read; the first pattern that fits counts
    CONFIG: 20_000_000,
    "special_tokens_map.json": 1_000_000,
    "added_tokens.json": 20_000_000,
    "chat_template*": 1_000_000,
    "vocab*": 50_000_000,
    "merges.txt": 50_000_000,
    "tokenizer*": 100_000_000,
    "*.model": 100_000_000,
    "spiece*": 100_000_000,
    "*.tiktoken": 50_000_000,
    "processor_config.json": 1_000_000,
    "preprocessor_config.json": 1_000_000,
}
TEMPLATES = "additional_chat_templates"  # a folder
ANY_OF = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # files that the library reads without packages
# pattern of a name -> the package that reads it
PACKAGES = {"*.model": "sentencepiece", "*.tiktoken": "tiktoken"}


def load(folder: Folder, family: str, vocabulary: int):
    """The tokenizer of a model's folder. Raises ModelUnavailable.

    family: the model's type. vocabulary: the number of rows of its table.
    """
    names = check(folder)
    from transformers import AutoTokenizer
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        config = CONFIG_MAPPING[family]()
        tokenizer = AutoTokenizer.from_pretrained(
            folder.path, config=config, local_files_only=True, trust_remote_code=False
        )
        model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
        if getattr(model, "dropout", None):
            model.dropout = None  # for training: a text would be cut otherwise each time
        tokenizer("a few words")  # a setting of a wrong type shows only when the tokenizer is used
        if not isinstance(tokenizer.chat_template, str | dict | None):
            raise TypeError(f"the chat template is a {type(tokenizer.chat_template).__name__}")
        tokenizer.chat_template = tokenizer.chat_template or None  # an empty one is none
    # the library raises many kinds of errors; those of its Rust part are not even Exceptions
    except BaseException as why:
        if isinstance(why, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        raise _unreadable(folder, names, why) from None
    return checked(folder, tokenizer, vocabulary)


def files(folder: Folder) -> list[str]:
    """The names of what the library may read for a tokenizer, templates in their own folder left out."""
    return [n for n in folder.names() if _limit(n) and not (folder.path / n).is_dir()]


def check(folder: Folder) -> list[str]:
    """The names of the tokenizer's files, each of which has been checked. Raises ModelUnavailable."""
    names = files(folder)
    for name in names:
        content = folder.read(name, _limit(name))
        if name.endswith(".json") and folder.parse(name, content, finite=True).get("auto_map"):
            raise folder.error(
                "needs_code",
                f"has a tokenizer that is defined by program code of its own (auto_map in {name}), and no "
                "code from a model's folder is ever run; choose a model that needs none",
                file=name,
            )
    if folder.has(TEMPLATES):
        inner = Folder(folder.path / TEMPLATES, folder.name)
        for template in inner.names() if inner.path.is_dir() else ():
            inner.read(template, LIMITS["chat_template*"])
    if not any(all(n in names for n in files) for files in ANY_OF) and not any(_package(n) for n in names):
        raise folder.error(
            "no_tokenizer",
            "has no tokenizer (tokenizer.json, or vocab.json with merges.txt), so no text can be read; "
            "put the tokenizer's files there",
        )
    return names


def checked(folder: Folder, tokenizer, vocabulary: int):
    """The tokenizer unchanged, if every token of it has a row in a table of `vocabulary` rows.

    So must every number that it puts before or after a text, whatever its vocabulary says.
    """
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    numbers = {*tokens, *tokenizer("a")["input_ids"]}
    beyond = sorted((n, tokens.get(n, str(n))) for n in numbers if not 0 <= n < vocabulary)
    if beyond:
        number, token = beyond[0]
        raise folder.error(
            "tokenizer_beyond",
            f"has a tokenizer with {len(beyond)} tokens beyond the model's {vocabulary} "
            f"({shown(token, 30)!r} is number {number}); it belongs to another model",
            token=shown(token, 30),
            number=number,
            count=len(beyond),
            vocabulary=vocabulary,
        )
    return tokenizer


def _limit(name: str) -> int:
    return next((limit for pattern, limit in LIMITS.items() if fnmatch.fnmatchcase(name, pattern)), 0)


def _package(name: str) -> str:
    return next((package for pattern, package in PACKAGES.items() if fnmatch.fnmatchcase(name, pattern)), "")


def _unreadable(folder: Folder, names: list[str], why: BaseException) -> ModelUnavailable:
    packages = [p for n in names if (p := _package(n))]
    if packages and not any(all(n in names for n in files) for files in ANY_OF):
        needed = [p for p in dict.fromkeys(packages) if importlib.util.find_spec(p) is None]
        if needed:
            return folder.error(
                "tokenizer_needs",
                f"has a tokenizer that needs the Python package {needed[0]}; run: pip install "
                f"{' '.join(needed)}",
                package=" ".join(needed),
            )
    return folder.error(
        "bad_tokenizer",
        f"has a tokenizer that can't be read: {shown(why, 200)}. Fetch its files again.",
        why=shown(why, 200),
    )
