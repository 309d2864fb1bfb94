"""A teacher that only answers in words: what black-box distillation sees of a model.

`ask` is all there is: strings in, strings out; no logits, no hidden states, no tokenizer. Answers are kept by what was asked
and of whom, so that a question is paid for once, and a training can be replayed without the teacher from the transcript that is
saved beside the student.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from compression.bundle import Bundle
from compression.models import home


class TextTeacher:
    """Answers prompts. Counts what it was asked: `calls` of the model, `tokens` it wrote, `hits` found in the store."""

    def __init__(self, bundle: Bundle, store: Path | None = None):
        """store: the file of kept answers; default: one for these weights under the program's home."""
        self._bundle = bundle
        self.name = bundle.source.get("weights_hash") or bundle.name
        self._file = store or home() / "teachers" / f"{hashlib.sha256(self.name.encode()).hexdigest()[:20]}.jsonl"
        self._known = {row["key"]: row for row in map(json.loads, self._lines())}
        self._told: dict[str, dict] = {}
        self.calls = self.tokens = self.hits = 0

    def _lines(self) -> list[str]:
        return self._file.read_text("utf-8").splitlines() if self._file.is_file() else []

    def ask(
        self, prompt: str, count: int = 1, temperature: float = 0.0, new_tokens: int = 64, seed: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[str]:  # fmt: skip
        """`count` answers of at most `new_tokens` tokens. temperature 0: the likeliest. Raises Cancelled."""
        asked = {"prompt": prompt, "count": count, "temperature": temperature, "new_tokens": new_tokens, "seed": seed}
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]
        if key in self._known:
            self.hits += 1
        else:
            row = {"key": key, "teacher": self.name} | asked | {"texts": self._answer(**asked, cancelled=cancelled)}
            self._known[key] = row
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._told[key] = self._known[key]
        return list(self._known[key]["texts"])

    def transcript(self) -> bytes:
        """What this teacher was asked and what it answered, one JSON a line, in the order of the questions."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._told.values()).encode()

    def _answer(self, prompt, count, temperature, new_tokens, seed, cancelled) -> list[str]:
        import torch

        from compression import sample
        from compression.base import Cancelled

        ids = sample.chat_ids(self._bundle, [{"role": "user", "content": prompt}])
        stops, steps = sample.stop_ids(self._bundle), []
        ended = torch.zeros(count, dtype=torch.bool)
        for token in sample.generate(self._bundle, ids.expand(count, -1), new_tokens, temperature, seed):
            if cancelled():
                raise Cancelled("stopped while the teacher answers")
            steps.append(token)
            ended |= torch.tensor([int(t) in stops for t in token])
            if bool(ended.all()):
                break
        self.calls, out = self.calls + 1, []
        for row in torch.stack(steps, 1).tolist() if steps else [[]] * count:
            said = row[: next((i for i, t in enumerate(row) if t in stops), len(row))]
            self.tokens += len(said)
            out.append(self._bundle.tokenizer.decode(said, skip_special_tokens=True).strip())
        return out
