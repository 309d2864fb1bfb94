"""What a student learns: a teacher with two hills, a student with one, and two measures of their distance.

The teacher is the offline model: its probabilities of the next digit after a real beginning. The browser
computes forward and reverse KL by the formulas of compression/divergences.py. Two stored students show the
effect at full size. One learned the text beside its teacher by forward KL. The other learned half of the time
from its own text.
"""

from __future__ import annotations

from evaluation.benches import overview
from evaluation.benches.gates import DISTILLED, SUPERVISED
from evaluation.learning.lesson import Lesson, Real, attempt, claim
from evaluation.measuring import judging

DIGITS = 10
BEGINNINGS = {
    "two": "The answer is either 2 or 7. The answer is ",
    "war": "The war began in 191",
    "born": "He was born in 19",
}
WRITTEN = 20  # words that a black box writes
ON_TEXT = f"{SUPERVISED} {DISTILLED}"
ON_OWN = f"gkd {DISTILLED}"
SET = {"kept": 0.65, "train_tokens": 49152, "train_minutes": 120}


def make(real: Real) -> dict:
    """The teacher's chances of the next digit, and the measured divergences of the two students."""
    text, own = (real.result(words) for words in (ON_TEXT, ON_OWN))
    told = {name: _divergences(result) for name, result in (("text", text), ("own", own))}
    teachers = [_teacher(real, name, beginning) for name, beginning in BEGINNINGS.items()]
    return {
        "facts": {
            "left": 100 - min(teacher.pop("share") for teacher in teachers),
            "original": real.perplexity("none"),
            "written": WRITTEN,
            "samples": len(judging.of(own)["own_reverse_kl"].after),
            "perplexity_text": text.metrics["perplexity"],
            "perplexity_own": own.metrics["perplexity"],
            "reverse_before": told["text"]["own_reverse_before"],
            "reverse_text": told["text"]["own_reverse_after"],
            "reverse_own": told["own"]["own_reverse_after"],
        },
        "teachers": teachers,
        "verdicts": [
            overview.beside([own], [text]).word,
            judging.beside("own_reverse_kl", [own], [text]).word,
        ],  # the student of its own sentences beside the text's, by perplexity and by its own measure
        "question": {"kind": "pick", "options": ["text_both", "own_both", "each"], "answer": 2},
        "tries": [
            attempt([("gkd", SET)], run=real.id(ON_OWN), event="shown"),
            attempt(
                [("gkd", SET | {"objective": "supervised", "jsd_beta": 0.0})],
                run=real.id(ON_TEXT),
                event="shown",
            ),
        ],
    }


def _divergences(result) -> dict:
    return next(dict(note["facts"]) for note in result.json()["notes"] if note["code"] == "divergences")


def _teacher(real: Real, name: str, beginning: str) -> dict:
    """Chances of the ten digits after a beginning, and how often a few written words have each of them."""
    import torch

    tokenizer = real.bundle.tokenizer
    digits = [tokenizer(str(k), add_special_tokens=False)["input_ids"][-1] for k in range(DIGITS)]
    ids = tokenizer(beginning, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        chances = real.bundle.module(ids).logits[0, -1].double().softmax(-1)[digits]
    drawn = torch.multinomial(chances, WRITTEN, True, generator=torch.Generator().manual_seed(0))
    return {
        "name": name,
        "beginning": beginning,
        "share": 100 * float(chances.sum()),
        "chances": chances / chances.sum(),
        "written": torch.bincount(drawn, minlength=DIGITS).tolist(),
    }


def check(data: dict) -> None:
    """Forward KL covers both hills, reverse KL picks one; each measured student wins by its own number."""
    facts, teacher = data["facts"], data["teachers"][0]["chances"]
    valley = max(teacher[4:7])
    claim(min(teacher[2], teacher[7]) > 4 * valley, "the teacher's two hills are gone")
    (covers, wide), (picks, narrow) = (best(teacher, which) for which in ("forward", "reverse"))
    claim(3 < covers < 6 and wide > 1.5, "forward KL no longer covers both hills")
    claim(abs(picks - 2) <= 0.5 and narrow < 0.8, "reverse KL no longer picks the hill at 2")
    claim(data["verdicts"] == ["worse", "better"], "the two students' differences aren't beyond the noise")
    claim(facts["left"] < 1, "the next word isn't surely a digit")
    claim(facts["perplexity_text"] < facts["perplexity_own"], "the text's student has no lower perplexity")
    claim(
        facts["reverse_own"] < facts["reverse_text"] < facts["reverse_before"],
        "own text no longer brings the lower reverse KL",
    )


def best(chances: list[float], which: str) -> tuple[float, float]:
    """(mean, width) of the hill that is nearest to the chances, on a grid."""
    import torch

    from compression.divergences import forward_kl, reverse_kl

    means, widths = torch.linspace(0, 9, 91).double(), torch.linspace(0.4, 5, 93).double()
    digits = torch.arange(DIGITS).double()
    hills = -((digits - means[:, None, None]) ** 2) / (2 * widths[None, :, None] ** 2)
    measure = {"forward": forward_kl, "reverse": reverse_kl}[which]
    lost = measure(torch.tensor(chances, dtype=torch.float64).log(), hills)
    i, j = divmod(int(lost.argmin()), len(widths))
    return float(means[i]), float(widths[j])


LESSON = Lesson("student", ("minillm", "gkd", "icl_distillation", "mt_cot", "lion"), make, check)
