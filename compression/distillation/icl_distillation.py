"""In-context learning distillation: a small student learns to read demonstrations as its teacher does.

A large model can label a word after a few labelled examples in its prompt; a small one hardly looks at them.
Here every lesson is such a prompt, P_k(x) = [x1, y1, ..., xk, yk, x], and the student learns the label that
comes next. A task has words of two classes, and each class gets a label word that is drawn anew for every
task. So only the demonstrations tell which label is meant. Meta-ICT learns from many tasks and is judged on
classes that it never met. Multitask-ICT learns the few examples of the very tasks that it is judged on: k
examples are shown and another one is asked. At the end it lets several draws of demonstrations vote.

Huang et al. 2022, "In-context Learning Distillation: Transferring Few-shot Learning Ability of Pre-trained
Language Models", arXiv 2212.10670. Two objectives are learnt together, each a mean over its own places:

    L = L_ICL + b L_LM,   each of them a CE(right token) + (1 - a) KL(p || q)

L_ICL is taken at the label after the demonstrations, L_LM (language modelling) at the demonstrations' own
tokens. p is the teacher's distribution over the next token and q the student's, a is `gold_share` and b
`read_weight`. With b = 0 only L_ICL remains.

Deviations. If the teacher's distribution isn't available, `labels` = texts uses the teacher's texts instead.
The teacher is asked `asks` times, and the shares of the labels that it names stand for its probabilities (if
it is asked once, it gives its likeliest answer). Prompts whose answer names no label are dropped, and L_LM
then has no teacher. Another model as the student needs the teacher's tokenizer unless `labels` = texts. a
stays the same throughout the training. k is 4 where the paper shows 16, and tasks are generated, not taken
from data sets. The student is here the teacher with fewer layers. It first reads plain text for a share of
the budget until it writes readable text (`warm_up`, with a step size of its own).

What is measured: the gain from demonstrations, which is the share of right labels with k demonstrations minus
the share with none. It is measured before and after, on 200 queries of tasks like those trained on and 200 of
other tasks. The same gain is measured in the loss of the right label against the other label. Guessing gives
50 percent of the labels, and a gain of 0 points. Student and control answer the same queries, so they are
compared query by query; queries of one task count as one. Below about a billion parameters demonstrations
often do little, for the teacher too, whose own share of right labels is reported. The control starts from the
same warmed-up student and learns both objectives by as many tokens, without the teacher (a = 1). With
`teaching` = oracle a program gives the right labels. The control would learn the same, so there is none.

Layers: the run's text goes through the model once, and the layers that turn its hidden states least go
(block influence, Men et al. 2024, arXiv 2403.03853). `layers` has two other choices: a run of neighbours, and
evenly spaced ones.

What was measured: in the tests a model of two layers, taught by another's texts on four words of each of two
classes, gains 47 to 66 points, and nothing on words that it never met. Taught by the distribution, it gains
48 points (one seed; its teacher's own gain is 47). In another test a student learns a given distribution by
6,000 tokens, and comes four times as close to it as its control. A pretrained model was not measured yet.

Cost: the teacher reads every lesson once, or answers each prompt with a few tokens. A training step costs
three forward passes of the student, whose weights are all trained. The warm-up is paid once, the lessons
twice, for student and control.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from torch import Tensor

from compression.base import BUDGET_MINUTES, Context, Cost, Edit, Note, StudentMethod, param
from compression.bundle import Bundle
from compression.distillation import soft_labels, students, tasks
from compression.distillation.black_box import (
    READ,
    TRANSCRIPT,
    BlackBoxParams,
    Lesson,
    Step,
    cost,
    costs,
    interview,
    off,
    percent,
    row,
    teach,
    teacher_notes,
    text_tokens,
    twin,
    warm_up,
)
from compression.distillation.students import measures, reshaped
from compression.distillation.tasks import Naming, Shown
from compression.judged import Judged, questions_id
from compression.recorder import Recorder
from compression.teacher import OracleTeacher
from compression.training import Budget

ANSWER_TOKENS = 8  # of the teacher's label
TARGETS = 4  # tasks of Multitask-ICT
DEMONSTRATION_TOKENS = 5  # of one demonstration in a prompt
LOOKED_AT = 200  # prompts on which the right labels of a teacher that shows its distribution are counted


@dataclass(frozen=True)
class IclParams(BlackBoxParams):
    """The tasks, the prompts, and the loss."""

    setting: str = param(
        "meta",
        "Learn from other tasks (meta), or from the few examples of the judged tasks (multitask).",
        choices=("meta", "multitask"),
        label="choice",
    )
    demonstrations: int = param(4, "Labelled examples in a prompt.", lo=2, hi=14, step=2)
    labels: str = param(
        "distribution",
        "What the teacher shows: its whole distribution, which takes the same tokenizer, or its texts alone.",
        choices=("distribution", "texts"),
        label="choice",
        when={"teaching": "teacher"},
    )
    gold_share: float = param(
        0.5,
        "Share of the right label in the loss; the rest is the teacher's.",
        lo=0.0,
        hi=1.0,
        step=0.05,
        level="advanced",
        when={"teaching": "teacher"},
    )
    read_weight: float = param(
        1.0,
        "Weight of the language-modelling loss, on the demonstrations' own tokens; 0: only the label counts.",
        lo=0.0,
        hi=4.0,
        level="advanced",
    )
    asks: int = param(
        1,
        "How often the teacher is asked the same; more than once it answers by chance.",
        lo=1,
        hi=32,
        step=1,
        level="advanced",
        when={"teaching": "teacher", "labels": "texts"},
    )
    votes: int = param(
        5,
        "Draws of demonstrations that vote on a label when the student is judged.",
        lo=1,
        hi=25,
        step=2,
        level="advanced",
        when={"setting": "multitask"},
    )

    @property
    def judging(self) -> int:
        draws = self.votes if self.setting == "multitask" else 1
        shown = READ + DEMONSTRATION_TOKENS * self.demonstrations
        return 2 * self.judged * 2 * (draws * shown + READ)  # both kinds of tasks, both labels

    @property
    def controlled(self) -> bool:
        """A program that knows the answers gives the right labels, which is what the control has."""
        return self.teaching == "teacher"

    @property
    def shows(self) -> bool:
        """Whether the teacher shows its distribution. A program that knows the answers has none."""
        return self.teaching == "teacher" and self.labels == "distribution"


@dataclass(frozen=True)
class World:
    """What tasks are made of: the words of each class, the label words, and the classes for unseen tasks."""

    classes: Mapping[str, Sequence[str]]
    unseen: tuple[str, ...]
    labels: tuple[str, ...]
    # True: the last third of each class's words is only used to judge. False: training uses all words
    apart: bool = True

    def naming(self, unseen: bool, random: Random) -> Naming:
        """A fresh task of the training classes, or of the unseen ones."""
        return tasks.naming(
            self.classes, [c for c in self.classes if (c in self.unseen) is unseen], self.labels, random
        )


WORLD = World(tasks.CLASSES, tasks.UNSEEN, tasks.LABELS)


@dataclass(frozen=True)
class Case:
    """A query that is judged: after several draws of demonstrations, and after none.

    task: the number of its task; queries of one task belong together.
    """

    shown: tuple[Shown, ...]
    bare: Shown
    task: int


@dataclass(frozen=True)
class Reading:
    """How a model uses demonstrations.

    For each case it says whether the label is right (1 or 0) with demonstrations and without. It also has the
    mean loss of the right label with demonstrations and without.
    """

    right: tuple[float, ...]
    right_bare: tuple[float, ...]
    loss: float
    loss_bare: float

    @property
    def gains(self) -> tuple[float, ...]:
        """How many right labels the demonstrations bring, for each case: 1, 0 or -1."""
        return tuple(a - b for a, b in zip(self.right, self.right_bare, strict=True))

    @property
    def loss_gain(self) -> float:
        """Nats of loss that the demonstrations save."""
        return self.loss_bare - self.loss


@dataclass(frozen=True)
class Plan:
    """The prompts to learn from, and the cases to judge by: like the trained tasks, and unlike them."""

    prompts: tuple[Shown, ...]
    alike: tuple[Case, ...]
    others: tuple[Case, ...]


def halves(task: Naming, apart: bool) -> tuple[list[str], list[str]]:
    """(words to learn from and to demonstrate, words that are only used to judge).

    The second are the last third of each class. If not apart, both are all words.
    """
    if not apart:
        return list(task.all_words), list(task.all_words)
    kept = [w for side in task.words for w in side[: -(-2 * len(side) // 3)]]
    return kept, [w for w in task.all_words if w not in kept]


def plan(params: IclParams, world: World, seed: int) -> Plan:
    """Prompts and cases. A query is never among its demonstrations, and no judged word is learnt from."""
    random, multi = Random(seed), params.setting == "multitask"
    targets = [world.naming(True, random) for _ in range(TARGETS)]

    def draw(fixed: bool, unseen: bool, number: int) -> Naming:
        return targets[number % TARGETS] if fixed else world.naming(unseen, random)

    def prompt(number: int) -> Shown:
        task = draw(multi, False, number)
        words = halves(task, world.apart)[0]
        return tasks.show(task, params.demonstrations, words, random.choice(words), random)

    def case(fixed: bool, unseen: bool, number: int) -> Case:
        task = draw(fixed, unseen, number)
        words, judged = halves(task, world.apart)
        query = random.choice(judged)
        shown = (
            tasks.show(task, params.demonstrations, words, query, random)
            for _ in range(params.votes if multi else 1)
        )
        bare = tasks.show(task, 0, words, query, random)
        return Case(tuple(shown), bare, number % TARGETS if fixed else number)

    prompts = tuple(prompt(i) for i in range(params.questions))
    alike = tuple(case(multi, False, i) for i in range(params.judged))
    return Plan(prompts, alike, tuple(case(False, not multi, i) for i in range(params.judged)))


def vote(labels: Sequence[str]) -> str:
    """The most frequent label; of equally frequent ones the first."""
    return Counter(labels).most_common(1)[0][0]


def read(bundle: Bundle, cases: Sequence[Case], recorder: Recorder) -> Reading:
    """Judge a model on cases.

    Its answer is the one of two labels that it finds likelier; several draws vote. The loss is that of the
    right label between the two, in nats: ln 2 if the model can't tell. It doesn't depend on the model's habit
    of answering with a label at all.
    """

    prompts = [s for case in cases for s in (*case.shown, case.bare)]
    found = iter(
        costs(
            bundle, [row(bundle.tokenizer, s.prompt, label) for s in prompts for label in s.labels], recorder
        )
    )

    def look(shown: Shown) -> tuple[str, float]:
        pair = next(found), next(found)
        gold = shown.labels.index(shown.answer)
        return shown.labels[pair[1] < pair[0]], math.log1p(math.exp(min(pair[gold] - pair[1 - gold], 700.0)))

    looks = [([look(s) for s in case.shown], look(case.bare)) for case in cases]
    seen, without = [one for one, _ in looks], [bare for _, bare in looks]
    answers = [case.bare.answer for case in cases]
    return Reading(
        right=tuple(
            float(vote([label for label, _ in one]) == a) for one, a in zip(seen, answers, strict=True)
        ),
        right_bare=tuple(float(label == a) for (label, _), a in zip(without, answers, strict=True)),
        loss=sum(c for one in seen for _, c in one) / sum(map(len, seen)),
        loss_bare=sum(c for _, c in without) / len(cases),
    )


def likelier(teacher: Bundle, tokenizer, prompts: Sequence[Shown], recorder: Recorder) -> dict[str, float]:
    """{"texts", "right"}: how many prompts were looked at (the first `LOOKED_AT`), and on how many percent of
    them the teacher finds the right label likelier than the other."""
    some = prompts[:LOOKED_AT]
    pairs = [row(tokenizer, s.prompt, label) for s in some for label in s.labels]
    found = costs(teacher, pairs, recorder)
    hits = sum(s.labels[found[2 * i + 1] < found[2 * i]] == s.answer for i, s in enumerate(some))
    return {"texts": len(some), "right": percent(hits, len(some))}


def lessons(
    tokenizer, prompts: Sequence[Shown], answers: Sequence[Sequence[str]] | None, params: IclParams
) -> list[Lesson]:
    """One lesson for each prompt: its right label, and the labels that the teacher's texts name.

    Those labels count by their shares. answers None: right labels alone. A prompt is dropped if its answers
    name no label.
    """
    out: list[Lesson] = []
    for number, shown in enumerate(prompts):
        weights = {shown.answer: 1.0}
        if answers is not None:
            named = [label for text in answers[number] if (label := tasks.label_in(text, shown.labels))]
            if not named:
                continue
            weights = {label: (1 - params.gold_share) * n / len(named) for label, n in Counter(named).items()}
            weights[shown.answer] = weights.get(shown.answer, 0.0) + params.gold_share
        learnt = shown.demonstrated if params.read_weight else ""
        out.append(
            (tuple(row(tokenizer, shown.prompt, label, w, learnt) for label, w in weights.items() if w),)
        )
    return out


def distil(bundle: Bundle, context: Context, params: IclParams, world: World) -> Edit:
    """Train the student on prompts with demonstrations, and say how much the demonstrations help it."""
    chosen = plan(params, world, context.seed)
    known = OracleTeacher({s.prompt: s.answer for s in chosen.prompts}.__getitem__)
    asked = None if params.shows else interview(context, bundle, params, known)
    answers, right, used = None, 0, len(chosen.prompts)
    warmed = warm_up(bundle, context, params)
    if asked is not None:
        temperature = 1.0 if params.asks > 1 else 0.0
        answers = asked.ask(
            [s.prompt for s in chosen.prompts], params.asks, temperature, ANSWER_TOKENS, context.seed
        )
        named = [
            [tasks.label_in(t, s.labels) for t in texts]
            for s, texts in zip(chosen.prompts, answers, strict=True)
        ]
        right = sum(
            vote([str(n) for n in labels]) == s.answer
            for s, labels in zip(chosen.prompts, named, strict=True)
        )
        used = sum(any(labels) for labels in named)

    def judge(student: Bundle) -> tuple[Reading, Reading]:
        return read(student, chosen.alike, context.recorder), read(student, chosen.others, context.recorder)

    def shown(student: Bundle, batch: Step) -> Tensor:
        return soft_labels.loss(student, context.teacher, batch, params.gold_share)

    def trained(student: Bundle, answers, budget: Budget, score=None, quiet: bool = False):
        taught = lessons(student.tokenizer, chosen.prompts, answers, params)
        return teach(
            student,
            taught,
            (1.0,),
            warmed.context,
            budget,
            params.learning_rate,
            learnt=params.read_weight,
            quiet=quiet,
            score=score,
        )

    before = judge(bundle)
    control = twin(bundle) if params.compares else None
    course = trained(bundle, answers, warmed.left, shown if params.shows else None)
    after = judge(bundle)
    beside = None
    if control is not None and course.tokens:
        trained(control, None, Budget(course.tokens, float("inf")), quiet=True)
        beside = judge(control)
    notes = warmed.notes_with(course, "icl_distillation")
    if params.shows:
        notes += (
            Note(
                "teacher_shows", likelier(context.teacher, bundle.tokenizer, chosen.prompts, context.recorder)
            ),
        )
    else:
        notes += teacher_notes(params, asked, right=right, used=used, texts=len(chosen.prompts))
    notes += (
        Note(
            "labels_learnt",
            {
                "before": 100 * statistics.fmean(before[0].right),
                "after": 100 * statistics.fmean(after[0].right),
                "questions": len(chosen.alike),
            },
        ),
        Note(
            "demonstrations_loss",
            {
                "k": params.demonstrations,
                "alike_before": before[0].loss_gain,
                "alike": after[0].loss_gain,
                "others_before": before[1].loss_gain,
                "others": after[1].loss_gain,
            },
        ),
    )
    judged = tuple(
        Judged(
            f"demonstration_gain_{tasks_of}",
            questions_id([[*(s.prompt for s in case.shown), case.bare.prompt] for case in cases]),
            before[i].gains,
            after[i].gains,
            beside[i].gains if beside else (),
            tuple(case.task for case in cases),
            chance=0.0,
        )
        for i, (tasks_of, cases) in enumerate((("alike", chosen.alike), ("others", chosen.others)))
    )
    return Edit(
        bundle=bundle,
        notes=notes,
        series=warmed.series | {"training": course.curve},
        judged=judged,
        files={TRANSCRIPT: asked.transcript()} if asked else {},
    )


def compress(bundle: Bundle, context: Context, params: IclParams) -> Edit:
    """The student after its training; unchanged if there are no tokens to train on."""
    return distil(bundle, context, params, WORLD) if params.train_tokens else Edit(bundle=bundle)


def make(teacher: Bundle, context: Context, params: IclParams) -> Edit:
    """StudentMethod.student: with the teacher's tokenizer if it learns the teacher's distribution."""
    return students.make(teacher, context, params, same_tokenizer=params.shows)


def cost_of(shape: tuple[int, int], params: IclParams, tokens: int, role: str = "up") -> Cost:
    """The black-box cost; a teacher that shows its distribution reads every lesson once."""
    return cost(shape, params, tokens, role, shown=params.shows)


METHOD = StudentMethod(
    name="icl_distillation",
    title="In-context learning distillation",
    family="distillation",
    paper="https://arxiv.org/abs/2212.10670",
    params=IclParams,
    compress=compress,
    cost=cost_of,
    text_tokens=text_tokens,
    trains_table=True,
    reshaped=reshaped,
    student=make,
    measures=measures,
    teacher=lambda params: "model" if params.shows else "text",
    control=off("icl_distillation"),
    compresses=True,
    identity={"kept": 1.0, "train_tokens": 0},
    tiny={
        "kept": 0.5,
        "teaching": "oracle",
        "questions": 16,
        "judged": 8,
        "compare": False,
        "train_tokens": 768,
        "warm_up": 0.25,
        "learning_rate": 1e-3,
    },
    # our own choice, as far as our bounds allow: many demonstrations
    full={
        "demonstrations": 14,
        "questions": 10_000,
        "judged": 500,
        "warm_up": 0.2,
        "warm_up_rate": 2e-4,
        "learning_rate": 1e-5,
        "train_tokens": 10_240_000,
        "train_minutes": BUDGET_MINUTES,
    },
    essay=__doc__,
)
