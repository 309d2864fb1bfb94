"""What the papers spend on training, as parameters of our methods: the `full` budget, for a graphics card.

A method's own defaults are its short budget: minutes on a processor, enough to see what the method does and
not what it can do. The full one has the authors' tokens, step sizes, ranks and lengths as far as they are
known and our bounds allow; where the authors trained with data that we can't bring along, their number of
tokens is taken from the calibration text. A step takes 1,024 tokens, so that there are more and smaller ones
than theirs. Zero-shot methods have no entry: their budget is the preset.
"""

from __future__ import annotations

from collections.abc import Mapping

MINUTES = 10_000.0  # a week: tokens end these trainings
FULL: Mapping[str, Mapping] = {
    # section 4 and the published scripts: 1,875 steps of 16 conversations of about 528 tokens
    "qlora": {"rank": 64, "lora_alpha": 16.0, "learning_rate": 2e-4, "train_tokens": 15_840_000},
    # one pass over 96,000 texts of 2,048 tokens that the model writes itself
    "llm_qat": {"own_texts": 96_000, "own_tokens": 2_048, "learning_rate": 2e-5, "train_tokens": 196_608_000},
    # there is no code of the authors: 15 passes over the 2.4 million tokens of WikiText-2; the step size, a
    # share of each scale, is ours
    "peqa": {"learning_rate": 1e-4, "train_tokens": 36_000_000},
    # up to 100 steps of 32 x 128 tokens a block; ours take the calibration windows
    "zeroquant": {"distill_steps": 100},
    # the recovery of LLM-Pruner and SVD-LLM: two passes over 50,000 instructions of at most 256 tokens
    "lora": {"rank": 8, "lora_alpha": 16.0, "learning_rate": 1e-4, "train_tokens": 25_600_000},
    # two passes over 20,000 pieces of 512 tokens, masks chosen anew every ten steps
    "lora_prune": {"rank": 8, "learning_rate": 1e-4, "mask_every": 10, "train_tokens": 20_480_000},
    # 5,000 steps of 16 texts of 512 tokens, each used four times; the plain text's loss counts whole
    "minillm": {
        "prompt_tokens": 256,
        "response_tokens": 256,
        "learning_rate": 5e-6,
        "inner_epochs": 4,
        "text_weight": 1.0,
        "warm_up": 0.2,
        "train_tokens": 40_960_000,
    },
    # the paper's 40,000 steps, every batch the student's own; the step size is ours, theirs being Adafactor's
    "gkd": {
        "prompt_tokens": 256,
        "response_tokens": 128,
        "on_policy": 1.0,
        "learning_rate": 1e-5,
        "warm_up": 0.2,
        "train_tokens": 40_960_000,
    },
    # ours, as far as our bounds allow: many demonstrations, the teacher's chances from 16 answers to each
    # question
    "icl_distillation": {
        "demonstrations": 14,
        "asks": 16,
        "questions": 10_000,
        "judged": 500,
        "learning_rate": 1e-5,
        "train_tokens": 10_240_000,
    },
    # up to 10,000 steps, as in Distilling step-by-step
    "mt_cot": {
        "questions": 10_000,
        "judged": 500,
        "explanation_tokens": 256,
        "learning_rate": 5e-5,
        "train_tokens": 10_240_000,
    },
    # three rounds, the teacher inventing and judging; theirs begins with 52,000 instructions and adds 6,000 a
    # round
    "lion": {
        "questions": 1_000,
        "judged": 100,
        "lion_rounds": 3,
        "generated": 1_000,
        "referee": "teacher",
        "inventor": "teacher",
        "learning_rate": 2e-5,
        "train_tokens": 10_240_000,
    },
}


def full(name: str) -> dict:
    """Parameters of the full budget of the method of that name; empty where its budget is the preset."""
    entry = dict(FULL.get(name, {}))
    return entry | ({"train_minutes": MINUTES} if "train_tokens" in entry else {})
