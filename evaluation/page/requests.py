"""What the page may ask its server: one schema for each question, all in one table.

    ask = take("front", {"lang": "en", "model": "gpt2", "x": "file_bytes"})

Whatever a browser sends goes through `take` before anything reads it. `take` checks types, ranges and
lengths, allows no unknown names, and wants text that is Unicode and numbers that are finite. A wrong request
raises BadRequest, whose words the page shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from compression.architectures import ARCHITECTURES
from compression.base import CompressionError
from evaluation import labels
from evaluation.running.public import named_only
from evaluation.spec import RunSpec

WHOLE = 2**53 - 1  # the largest whole number that a browser writes exactly
STEPS = 6  # methods in a recipe
PROMPT_CHARACTERS = 16_000  # of all messages of a chat together
ANSWER_TOKENS = 512
MESSAGES = 32


class BadRequest(CompressionError):
    """A request that isn't a question of the page, or that has a value beyond its limits."""

    code = "bad_request"


Line = Annotated[str, StringConstraints(max_length=100)]  # ids, names of methods and axes
Name = Annotated[
    str, StringConstraints(max_length=1024, pattern=r"^[^\x00-\x1f]*$")
]  # of a model or a text, a folder's path included
Whole = Annotated[int, Field(ge=-WHOLE, le=WHOLE)]
Token = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{16,64}$")]


def _plain(value: Any) -> Any:
    """A parameter's value, unchanged. Its method's own declaration checks which values are allowed."""
    short = isinstance(value, str) and len(value) <= 1024 and value.isprintable()
    small = isinstance(value, int | float) and abs(value) <= WHOLE  # this makes it finite too
    if not (value is None or short or small):
        raise ValueError("a parameter is a short text, a number of usual size, true or false")
    return value


Value = Annotated[Any, AfterValidator(_plain)]
Step = Annotated[tuple[Line, Annotated[dict[Line, Value], Field(max_length=64)]], Field(strict=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class Ask(_Strict):
    """What every question has: the language of its answer."""

    lang: Literal["en", "zh-Hant"] = "en"
    _address: str = PrivateAttr("")

    @property
    def address(self) -> str:
        """Where the question came from, as the server sees it; a request can't set it."""
        return self._address


class Owned(Ask):
    """A question that may carry a visitor's token. The token itself is read nowhere else."""

    visitor: Token | None = None

    @property
    def owner(self) -> str:
        """A hash of the visitor's token; "" if none was given."""
        return hashlib.sha256(self.visitor.encode()).hexdigest()[:32] if self.visitor else ""


class Settings(_Strict):
    """How a run is measured. A missing value takes RunSpec's default.

    RunSpec also checks lower bounds and choices.
    """

    calibration: Name = "builtin"
    calibration_tokens: Annotated[int, Field(le=10_000_000)] = 8_192
    text: Name = "builtin"
    protocol: Line = "raw"
    window: Annotated[int, Field(le=131_072)] = 512
    tokens: Annotated[int, Field(le=100_000_000)] | None = 8_192
    seed: Annotated[int, Field(le=2**32 - 1)] = 0
    device: Line = "auto"
    activations: Line = "exact"
    table_bits: Whole = 8
    cache_bits: Whole = 16
    cache_keys: Line = "token"
    preset: Line = "quick"


class Choices(Settings):
    """A run as the knobs describe it."""

    model: Name
    recipe: Annotated[list[Step], Field(min_length=1, max_length=STEPS)]


class Front(Ask):
    """The figure of one model. budget: bytes. deploy: only what other programs load.

    protocol: a set of runs (pareto.comparison). "": that of the selected run, else of the settings, else the
    one with the most runs.
    """

    model: Name
    x: Line | None = None
    y: Line | None = None
    protocol: Annotated[str, StringConstraints(max_length=500)] = ""
    settings: Settings = Settings()
    budget: Annotated[float, Field(ge=0, le=1e15)] = 0
    selected: Line = ""
    deploy: bool = False


class OfRun(Ask):
    id: Line


class Recorded(OfRun):
    """The recorded answers of a run to a prompt; of others if this run or prompt has none."""

    prompt: Line = ""


class OfOwnRun(Owned):
    id: Line


class Naming(OfOwnRun):
    """The title and the note of an own run; empty ones remove them."""

    title: Annotated[
        str, StringConstraints(max_length=labels.TITLE, strip_whitespace=True, pattern=r"^[^\x00-\x1f]*$")
    ] = ""
    note: Annotated[
        str,
        StringConstraints(max_length=labels.NOTE, strip_whitespace=True, pattern=r"^[^\x00-\x09\x0b-\x1f]*$"),
    ] = ""


class Add(Ask):
    """A result's file, as a card gives it out."""

    text: Annotated[str, StringConstraints(max_length=280_000)]


class Weigh(Ask):
    choices: Choices


class Essay(Ask):
    method: Line


class Begin(Owned):
    visitor: Token
    choices: Choices
    again: bool = False


class Pack(OfRun):
    """A download of a compressed model. form: a format of other programs; "" for our own."""

    form: Line = ""


def _architecture(name: str) -> str:
    if name not in ARCHITECTURES:
        raise ValueError(f"an architecture is one of {', '.join(ARCHITECTURES)}")
    return name


Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Sizes(_Strict):
    """The sizes of a model that has no name here; every layer is alike."""

    architecture: Annotated[Line, AfterValidator(_architecture)]
    layers: Annotated[int, Field(ge=1, le=1_000)]
    hidden: Count
    heads: Annotated[int, Field(ge=1, le=1_024)]
    kv_heads: Annotated[int, Field(ge=1, le=1_024)]
    head_size: Annotated[int, Field(ge=1, le=4_096)]
    feed_forward: Count
    vocabulary: Annotated[int, Field(ge=1, le=10_000_000)]
    tied: bool = False

    @model_validator(mode="after")
    def _shared(self) -> Sizes:
        if self.heads % self.kv_heads:
            raise BadRequest(
                f"heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}",
                code="bad_param",
                name="heads",
                got=self.heads,
                allowed=f"a multiple of {self.kv_heads}",
            )
        return self


class Plan(Ask):
    """What fits: a model by name, or by its sizes; bytes of memory; tokens of context; bytes a second."""

    model: Name = ""
    sizes: Sizes | None = None
    memory_bytes: Annotated[float, Field(ge=1e6, le=1e15)]
    context: Annotated[int, Field(ge=1, le=10_000_000)] = 4_096
    cache_bits: Literal[16, 8, 4] = 16
    bandwidth: Annotated[float, Field(ge=0, le=1e15)] = 0.0


class Message(_Strict):
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, StringConstraints(max_length=PROMPT_CHARACTERS)]


class Converse(Owned):
    visitor: Token
    id: Line
    turn: Whole = 0
    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=ANSWER_TOKENS)] = 128
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    seed: Annotated[int, Field(ge=0, le=WHOLE)] = 0

    @model_validator(mode="after")
    def _short(self) -> Converse:
        if (total := sum(len(m.content) for m in self.messages)) > PROMPT_CHARACTERS:
            raise BadRequest(
                f"the messages have {total} characters; allowed: {PROMPT_CHARACTERS}",
                code="bad_length",
                name="messages",
                got=total,
                allowed=f"≤ {PROMPT_CHARACTERS}",
            )
        return self


ClassName = Annotated[str, StringConstraints(pattern=r"^[A-Z0-9]{1,12}$")]
LessonName = Annotated[str, StringConstraints(pattern=r"^[a-z_]{0,40}$")]


class _OfClass(Ask):
    code: ClassName
    lesson: LessonName = ""


class ClassLook(_OfClass):
    """What a class does. key: the teacher's. member: the token of a browser that joins."""

    key: Line = ""
    member: Token | None = None


class ClassGuess(_OfClass):
    """A member's guess of a lesson's answer: a number, or the places of an order."""

    member: Token
    lesson: Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}$")]
    guess: (
        Annotated[float, Field(ge=-1e15, le=1e15)]
        | Annotated[list[Annotated[int, Field(ge=0, le=99)]], Field(min_length=1, max_length=12)]
    )


class ClassLead(_OfClass):
    key: Line
    show: bool = False
    close: bool = False


class ClassCode(Ask):
    """The address that a QR code shows."""

    link: Annotated[str, StringConstraints(max_length=300, pattern=r"^https?://[^\s]+$")]


@dataclass(frozen=True)
class Question:
    """A question's schema, and what its answer holds beside "error" if it is refused."""

    schema: type[Ask]
    empty: dict = field(default_factory=dict)


QUESTIONS = {  # a question's name is the method of evaluation.page.questions.Page that answers it
    "front": Question(Front),
    "zoomed": Question(Front, {"text": ""}),
    "card": Question(OfRun, {"html": "", "spec": None, "status": "unknown"}),
    "runs": Question(Ask),
    "record": Question(OfRun, {"name": "", "text": ""}),
    "add": Question(Add, {"id": ""}),
    "delete": Question(OfOwnRun),
    "name": Question(Naming),
    "export_all": Question(Ask, {"file": "", "name": ""}),
    "essay": Question(Essay, {"text": ""}),
    "plan": Question(Plan, {"html": "", "options": []}),
    "weigh": Question(Weigh, {"html": "", "path": [], "stored": "", "fits": False}),
    "begin": Question(Begin),
    "poll": Question(OfOwnRun, {"status": "unknown", "result": ""}),
    "stop": Question(OfOwnRun, {"left": ""}),
    "enough": Question(OfOwnRun),
    "pack": Question(Pack),
    "sides": Question(OfRun, {"options": [], "left": None, "right": None, "busy": False}),
    "recorded": Question(Recorded, {"prompts": [], "options": [], "right": None, "ladder": []}),
    "converse": Question(Converse),
    "stop_chat": Question(Owned),
    "class_open": Question(Ask),
    "class_look": Question(ClassLook),
    "class_guess": Question(ClassGuess),
    "class_lead": Question(ClassLead),
    "class_code": Question(ClassCode),
}


def take(question: str, ask: Any, address: str = "") -> Ask:
    """The request, checked against its schema. Raises BadRequest, which names the first wrong value."""
    try:
        taken = QUESTIONS[question].schema.model_validate(ask)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_input=True)[0]) from None
    taken._address = address
    return taken


def _refusal(wrong: Mapping[str, Any]) -> BadRequest:
    where = ".".join(str(part)[:40] for part in wrong["loc"][:6])
    limit, value = next(
        ((f"{sign} {wrong['ctx'][k]}", k) for k, sign in _BOUNDS.items() if k in wrong.get("ctx", {})),
        ("", ""),
    )
    if limit:
        long = value.endswith("length")
        got = f"{len(wrong['input']) if long else wrong['input']:.6g}"
        return BadRequest(
            f"{where}{' has a length of' if long else ' ='} {got}; allowed: {limit}",
            code="bad_length" if long else "bad_param",
            name=str(wrong["loc"][-1])[:40],
            got=got,
            allowed=limit,
        )
    return BadRequest(f"{where or 'the request'}: {wrong['msg']}", where=where or "{}")


_BOUNDS = {"ge": "≥", "le": "≤", "min_length": "≥", "max_length": "≤"}


def language(ask: Any) -> str:
    """The language that a request names, even if the request is wrong."""
    said = ask.get("lang") if isinstance(ask, dict) else None
    return said if isinstance(said, str) else ""


def spec_of(choices: Choices, public: bool) -> RunSpec:
    """The run that the knobs describe. Raises BadParam; on a public page also what `named_only` raises."""
    spec = RunSpec.parse(choices.model_dump())
    if public:
        named_only(spec)
    return spec
