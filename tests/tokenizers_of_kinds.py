"""Small tokenizers of every kind: bytes, letters with bytes for the rest, pieces of words; and what each adds
to a text."""

from __future__ import annotations

import functools
import re

from tests import tiny

KINDS = ("bytes", "bytes with merges", "byte fallback", "word pieces", "unigram")
SAMPLE = ["\u6a21\u578b\u58d3\u7e2e\u5f8c\u9084\u80fd\u8aaa\u8a71 naive cafe words and words"] * 3


@functools.cache
def make(kind: str):
    """The fast tokenizer of that kind."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "bytes":
        return tiny.tokenizer()
    if kind == "bytes with merges":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer, backend.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        backend.train_from_iterator(
            SAMPLE, trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
        )
    elif kind == "byte fallback":
        pieces = {"<unk>": 0} | {f"<0x{i:02X}>": i + 1 for i in range(256)}
        pieces |= {
            piece: 257 + i for i, piece in enumerate(sorted({*"\u2581naivecf.\u6a21\u578b", "\u2581n", "na"}))
        }
        backend = Tokenizer(
            models.BPE(
                vocab=pieces,
                merges=[("\u2581", "n"), ("n", "a")],
                byte_fallback=True,
                unk_token="<unk>",
                fuse_unk=True,
            )
        )
        backend.normalizer = normalizers.Replace(" ", "\u2581")
        parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(parts)
    elif kind == "word pieces":
        letters = sorted(set(SAMPLE[0]) - {" "})
        pieces = {
            p: i for i, p in enumerate(["[UNK]", *letters, *("##" + x for x in letters), "ca", "##fe", "."])
        }
        backend = Tokenizer(models.WordPiece(vocab=pieces, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    else:
        pieces = [
            ("<unk>", 0.0),
            ("\u2581", -3.0),
            *((x, -4.0) for x in sorted(set(SAMPLE[0]) - {" "})),
            ("ca", -5.0),
        ]
        backend = Tokenizer(models.Unigram(vocab=pieces, unk_id=0))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        backend.decoder = decoders.Metaspace(prepend_scheme="never")
    unknown = {"word pieces": "[UNK]", "bytes with merges": None}.get(kind, "<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **({"unk_token": unknown} if unknown else {}))


def bytes_of(kind: str, tokenizer, text: str) -> list[float]:
    """The bytes of each token, found from the text by the kind's own rule."""
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
    if kind.startswith("bytes"):
        return [len(piece) for piece in pieces]
    if kind == "byte fallback":
        return [1 if re.fullmatch("<0x..>", p) else len(p.replace("\u2581", " ").encode()) for p in pieces]
    ends = [
        end
        for _, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ]
    return [len(text[a:b].encode()) for a, b in zip([0, *ends], ends, strict=False)]


def adding(what: str):
    """The byte tokenizer that adds a "start" (256), an "end" (257), "both" or nothing to a text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.tokenizer()
    form = {"": "$A", "start": "<s> $A", "end": "$A </s>", "both": "<s> $A </s>"}[what]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=form, special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    return tokenizer


class Letters:
    """As much of a tokenizer written in Python as windows need: a letter a token."""

    is_fast, all_special_tokens, added_tokens_decoder, unk_token_id = False, [], {}, None

    def __call__(self, text, **more):
        ids = [ord(x) for x in text]
        return {"input_ids": ids, "special_tokens_mask": [0] * len(ids)}

    def batch_decode(self, rows, **more):
        assert more["clean_up_tokenization_spaces"] is False
        return ["".join(map(chr, row)) for row in rows]

    def get_vocab(self):
        return {chr(i): i for i in range(128)}
