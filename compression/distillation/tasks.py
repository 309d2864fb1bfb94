"""Tasks that a program makes and checks. The black-box methods teach and judge with them, without a data set.

There are three kinds. Namings: the words of two classes get label words that are drawn anew for every task,
so that only the demonstrations tell which label belongs to which class. Reasoning questions: parity, letter
counts and comparisons in two steps, each with its steps written out. Instructions: short jobs on lists of
words or numbers, from easy to hard. Every question has its right answer, and `right` checks a text against
it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random

CLASSES: Mapping[str, tuple[str, ...]] = {
    "animals": (
        "dog",
        "cat",
        "horse",
        "cow",
        "sheep",
        "tiger",
        "rabbit",
        "mouse",
        "lion",
        "wolf",
        "goat",
        "deer",
    ),
    "fruits": (
        "apple",
        "banana",
        "orange",
        "grape",
        "lemon",
        "peach",
        "cherry",
        "mango",
        "plum",
        "melon",
        "pear",
        "berry",
    ),
    "colours": (
        "red",
        "blue",
        "green",
        "yellow",
        "purple",
        "black",
        "white",
        "brown",
        "pink",
        "grey",
        "violet",
        "silver",
    ),
    "countries": (
        "France",
        "China",
        "Brazil",
        "Egypt",
        "India",
        "Japan",
        "Spain",
        "Canada",
        "Italy",
        "Kenya",
        "Peru",
        "Norway",
    ),
    "tools": (
        "hammer",
        "saw",
        "drill",
        "wrench",
        "knife",
        "axe",
        "shovel",
        "ladder",
        "brush",
        "chisel",
        "rope",
        "needle",
    ),
    "clothes": (
        "shirt",
        "coat",
        "hat",
        "shoe",
        "sock",
        "dress",
        "glove",
        "scarf",
        "jacket",
        "skirt",
        "belt",
        "boot",
    ),
    "bodies": (
        "hand",
        "foot",
        "arm",
        "leg",
        "head",
        "nose",
        "ear",
        "knee",
        "mouth",
        "finger",
        "elbow",
        "neck",
    ),
    "weather": (
        "rain",
        "snow",
        "wind",
        "storm",
        "fog",
        "hail",
        "cloud",
        "thunder",
        "frost",
        "breeze",
        "sleet",
        "drought",
    ),
    "jobs": (
        "doctor",
        "teacher",
        "farmer",
        "baker",
        "pilot",
        "nurse",
        "lawyer",
        "judge",
        "painter",
        "driver",
        "sailor",
        "cook",
    ),
    "furniture": (
        "table",
        "chair",
        "bed",
        "desk",
        "sofa",
        "shelf",
        "bench",
        "lamp",
        "couch",
        "drawer",
        "stool",
        "cabinet",
    ),
}
UNSEEN = ("jobs", "furniture", "weather", "bodies")  # classes that no training task of Meta-ICT uses
LABELS = (
    "one",
    "two",
    "up",
    "down",
    "left",
    "right",
    "day",
    "night",
    "north",
    "south",
    "yes",
    "no",
    "in",
    "out",
    "true",
    "false",
)
HEADER = "Label the last word.\n"  # the first line of a prompt with demonstrations


@dataclass(frozen=True)
class Naming:
    """A task of random labels: the words of two classes, and the label of each."""

    words: tuple[tuple[str, ...], tuple[str, ...]]
    labels: tuple[str, str]

    def label(self, word: str) -> str:
        """The label of a word of this task."""
        return self.labels[word in self.words[1]]

    @property
    def all_words(self) -> tuple[str, ...]:
        return self.words[0] + self.words[1]


@dataclass(frozen=True)
class Shown:
    """A query with the demonstrations before it."""

    demonstrations: tuple[tuple[str, str], ...]  # (word, label)
    query: str
    answer: str
    labels: tuple[str, str]

    @property
    def demonstrated(self) -> str:
        """The text of the demonstrations."""
        return "".join(f"{word} -> {label}\n" for word, label in self.demonstrations)

    @property
    def prompt(self) -> str:
        """P_k(x) = [x_1, y_1, ..., x_k, y_k, x]."""
        return f"{HEADER}{self.demonstrated}{self.query} ->"


def naming(
    classes: Mapping[str, Sequence[str]], names: Sequence[str], labels: Sequence[str], random: Random
) -> Naming:
    """Two of the classes `names` with two of `labels`, both drawn at random."""
    first, second = random.sample(list(names), 2)
    label, other = random.sample(list(labels), 2)
    return Naming((tuple(classes[first]), tuple(classes[second])), (label, other))


def show(task: Naming, k: int, words: Sequence[str], query: str, random: Random) -> Shown:
    """`query` after k demonstrations, which are drawn from `words` without the query.

    Both labels have the same number of demonstrations (one has one more if k is odd).
    """
    sides = [[w for w in words if w != query and task.label(w) == label] for label in task.labels]
    random.shuffle(sides)
    chosen = random.sample(sides[0], k - k // 2) + random.sample(sides[1], k // 2)
    random.shuffle(chosen)
    return Shown(tuple((w, task.label(w)) for w in chosen), query, task.label(query), task.labels)


def label_in(text: str, labels: Collection[str]) -> str | None:
    """The label that a text names first; None if it names none."""
    return next((w for w in re.findall(r"\w+", text) if w in labels), None)


@dataclass(frozen=True)
class Question:
    """A question with its right answer. worked: the steps to the answer, if there are any."""

    kind: str
    level: int
    text: str
    answer: str
    worked: str = ""


MARK = "Answer:"  # what stands between an explanation and the answer


def answer_in(text: str) -> str:
    """The answer in a text: what follows its last `MARK`, or all of it. It is read, never evaluated."""
    return text.rsplit(MARK, 1)[-1].strip()


def bare(text: str) -> str:
    """Words and numbers of a text in lower case, with one space between."""
    return " ".join(re.findall(r"-?\d+|[a-z]+", text.lower()))


def right(question: Question, text: str) -> bool:
    """Whether a text's answer is exactly right; capitals and punctuation don't matter."""
    return bare(answer_in(text)) == bare(question.answer)


def parity(random: Random, level: int) -> Question:
    """Is the number of a digit even or odd, among 3, 5 or 7 digits of two kinds.

    The digit that is asked about is drawn too, so that there are thousands of such questions and not 168.
    """
    asked, other = random.sample(range(10), 2)
    digits = [random.choice((asked, other)) for _ in range(2 * level + 1)]
    names, odd, steps = ("even", "odd"), 0, []
    for digit in digits:
        odd ^= digit == asked
        steps.append(f"{digit} {names[odd]}")
    return Question(
        "parity",
        level,
        f"Is the number of {asked}s even or odd? {' '.join(map(str, digits))}",
        names[odd],
        ", ".join(steps) + ".",
    )


def letter_count(random: Random, level: int) -> Question:
    """How often a letter stands in a word of 3, 5 or 7 letters."""
    letters = [random.choice("abcde") for _ in range(2 * level + 1)]
    asked, count, steps = random.choice(letters), 0, []
    for letter in letters:
        count += letter == asked
        steps.append(f"{letter} {count}")
    return Question(
        "letter count",
        level,
        f"How many {asked} are in {' '.join(letters)}?",
        str(count),
        ", ".join(steps) + ".",
    )


def comparison(random: Random, level: int) -> Question:
    """Who is the oldest of three, from one age and two differences of up to 10 or 99 years."""
    top, ages = 10 ** min(level, 2), [0, 0, 0]
    while len(set(ages)) < 3 or min(ages) < 1:
        ages = [random.randint(1, 2 * top - 1) for _ in range(3)]
    names = random.sample(("Ann", "Bob", "Carl", "Dora", "Eve", "Finn"), 3)
    text, work = f"{names[0]} is {ages[0]}.", f"{names[0]} is {ages[0]}"
    for one, other in ((0, 1), (1, 2)):
        gap = ages[other] - ages[one]
        text += f" {names[other]} is {abs(gap)} years {'older' if gap > 0 else 'younger'} than {names[one]}."
        work += f", {names[other]} is {ages[one]} {'+' if gap > 0 else '-'} {abs(gap)} = {ages[other]}"
    oldest = names[ages.index(max(ages))]
    return Question("comparison", level, f"{text} Who is the oldest?", oldest, f"{work}.")


REASONING = (parity, letter_count, comparison)

NOUNS = tuple(word for words in CLASSES.values() for word in words if word.islower())


def _words(random: Random, level: int) -> list[str]:
    return random.sample(NOUNS, level + 2)


def _numbers(random: Random, level: int) -> list[int]:
    return random.sample(range(1, 10 ** min(level + 1, 3)), level + 2)


def sort_words(random: Random, level: int) -> Question:
    words = _words(random, level)
    return Question("sort", level, f"Sort by alphabet: {', '.join(words)}", ", ".join(sorted(words)))


def reverse_list(random: Random, level: int) -> Question:
    words = _words(random, level)
    return Question("reverse", level, f"Reverse the order: {', '.join(words)}", ", ".join(reversed(words)))


def largest(random: Random, level: int) -> Question:
    numbers = _numbers(random, level)
    return Question("largest", level, f"Largest number: {', '.join(map(str, numbers))}", str(max(numbers)))


def addition(random: Random, level: int) -> Question:
    numbers = _numbers(random, level)[: level + 1]
    return Question("total", level, f"Add up: {' + '.join(map(str, numbers))}", str(sum(numbers)))


def first_letters(random: Random, level: int) -> Question:
    words = _words(random, level)
    return Question(
        "initials", level, f"First letters of: {', '.join(words)}", ", ".join(w[0] for w in words)
    )


def last_word(random: Random, level: int) -> Question:
    words = _words(random, level)
    return Question("last", level, f"Last word of: {', '.join(words)}", words[-1])


def odd_one_out(random: Random, level: int) -> Question:
    many, one = random.sample([name for name in CLASSES if name != "countries"], 2)
    words = [*random.sample(CLASSES[many], level + 1), random.choice(CLASSES[one])]
    answer = words[-1]
    random.shuffle(words)
    return Question("odd one out", level, f"Which word doesn't belong: {', '.join(words)}", answer)


def shortest(random: Random, level: int) -> Question:
    words = _words(random, level)
    while sum(len(w) == min(map(len, words)) for w in words) > 1:
        words = _words(random, level)
    return Question("shortest", level, f"Shortest word: {', '.join(words)}", min(words, key=len))


INSTRUCTIONS = (sort_words, reverse_list, largest, addition, first_letters, last_word, odd_one_out, shortest)
LEVELS = (1, 2, 3)

Maker = Callable[[Random, int], Question]


def draw(
    makers: Sequence[Maker],
    count: int,
    random: Random,
    levels: Sequence[int] = LEVELS,
    without: Collection[str] = (),
) -> list[Question]:
    """`count` different questions, makers and levels in turn, none with a text in `without`.

    There are fewer if the makers have no more.
    """
    out: list[Question] = []
    seen, tries = set(without), 0
    while len(out) < count and tries < 50 * count + 100:
        question = makers[tries % len(makers)](random, levels[tries // len(makers) % len(levels)])
        tries += 1
        if question.text not in seen:
            seen.add(question.text)
            out.append(question)
    return out


@dataclass(frozen=True)
class Apart:
    """Questions to learn from and questions to judge by, none in both."""

    taught: list[Question]
    judged: list[Question]
    scarce: tuple[tuple[str, int, int], ...]  # (kind, questions asked for, questions that there are)


def apart(
    makers: Sequence[Maker], taught: int, judged: int, random: Random, levels: Sequence[int] = LEVELS
) -> Apart:
    """Two sets of different questions, each with as many of every maker, in random order.

    What a maker has is drawn once and then dealt out, so neither set can take a whole kind from the other. If
    a maker has fewer than both sets ask for, the judged questions get theirs, up to half of them, and the
    training has fewer of that kind (`scarce`).
    """
    learnt: list[Question] = []
    aside: list[Question] = []
    scarce = []
    for place, maker in enumerate(makers):
        own, other = (n // len(makers) + (place < n % len(makers)) for n in (taught, judged))
        found = draw([maker], own + other, random, levels)
        random.shuffle(found)
        if len(found) < own + other:
            scarce.append((maker(random, levels[0]).kind, own + other, len(found)))
            other = min(other, len(found) // 2)
        aside += found[:other]
        learnt += found[other:]
    for questions in (learnt, aside):
        random.shuffle(questions)
    return Apart(learnt, aside, tuple(scarce))


def overlap(a: str, b: str) -> float:
    """ROUGE-L F1 of two texts: twice their longest common subsequence of words over the words of both.

    0 for an empty text.
    """
    first, second = bare(a).split(), bare(b).split()
    if not first or not second or not (Counter(first) & Counter(second)):
        return 0.0
    row = [0] * (len(second) + 1)
    for x in first:
        before = 0
        for j, y in enumerate(second, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(first) + len(second))
