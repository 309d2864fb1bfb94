"""Ten minutes of chat: short answers, stops, visitors who leave, kills of the worker, hostile templates, huge
prompts.

Right is: after each of them a plain question gets the answer that it got at first; whatever is refused is
refused in words; nothing takes longer than the deadlines allow, and Stop works within three seconds.
"""

from __future__ import annotations

import threading
import time

import psutil

from tests.soak import stage
from tests.soak.campaign import Campaign
from tests.soak.client import Answered, Client, Hung, Unreachable
from tests.soak.kill_workers import RUN_SECONDS

SECONDS = 600
ANSWER_SECONDS, DEADLINE_SECONDS, STOP_SECONDS = (
    60,
    120,
    3,
)  # a plain answer, loading included; until a hostile one is given up; Stop
QUESTION = "line 7 of a small"
TEMPLATES = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) "
    "%}x{% endfor %}{% endfor %}{% endfor %}",
    "a power": "{{ 9**9**9**9 }}",
    "a long text": "{{ 'x' * 2000000000 }}",
    "a longer text": "{% for m in messages %}{{ m['content'] * 50000000 }}{% endfor %}",
    "an exception": "{{ raise_exception('no ' + messages[0]['role']) }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "no syntax": "{% for %}",
    "itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "nothing": "{{ '' }}",
    "a list": "{{ messages | list | tojson | length }}{% set x = namespace(v=[]) %}{% for i in "
    "range(9999999) %}{% set x.v = x.v + [i] %}{% endfor %}",
    "an unknown filter": "{{ messages | nosuchfilter }}",
}


class Talk:
    """A plain run, hostile ones, and one visitor."""

    def __init__(self, campaign: Campaign, app: stage.App):
        self.campaign, self.ledger, self.app = campaign, campaign.ledger, app
        self.client = Client(app.url)
        self.plain = self._made("plain", campaign.choices())
        self.expected = ""
        self.hostile: dict[str, str] = {}

    def _made(self, name: str, choices: dict) -> str:
        """A run's id, "" if it was refused in words (which is right for a hostile one)."""
        answer = self.client.begin(choices)
        if "id" not in answer:
            self.ledger.note(f"a model with the template '{name}' is refused")
            return ""
        state = self.client.follow(answer["id"], RUN_SECONDS)
        self.ledger.check(
            state["status"] == "ok" or (name != "plain" and bool(state["error"])),
            f"the run of '{name}' is {state}",
        )
        return answer["id"] if state["status"] == "ok" else ""

    def prepare(self, names: list[str]) -> None:
        for name in names:
            model = self.campaign.model(f"hostile-{name.replace(' ', '-')}", TEMPLATES[name])
            self.hostile[name] = self._made(
                name, self.campaign.choices(model, [["rtn", {"bits": 4, "group_size": 16}]])
            )

    def say(self, what: str, seconds: float, *, client: Client | None = None, **options) -> dict | None:
        """The last state; None for a defect, which is counted."""
        try:
            return (client or self.client).say(
                options.pop("id", self.plain), options.pop("words", QUESTION), seconds, **options
            )
        except Hung as error:
            return self.ledger.count("hung", f"{what}: {error}")
        except Answered as error:
            return (
                {"error": str(error), "status": error.status}
                if error.status < 500
                else self.ledger.count("wrong", f"{what}: {error}")
            )
        except Unreachable as error:
            return self.ledger.count("lost", f"{what}: {error}")

    def recovered(self, what: str) -> None:
        """After everything a plain question gets its answer."""
        last = self.say(f"a plain question after {what}", ANSWER_SECONDS)
        if last is not None:
            said = (last.get("sides") or {}).get("compressed", {}).get("text")
            self.ledger.check(
                said == self.expected and not last.get("error"),
                f"after {what} the answer is {said!r}, {str(last.get('error'))[:200]}",
            )


def run(campaign: Campaign) -> None:
    """All kinds in turn until the time is over."""
    ledger = campaign.ledger
    with stage.App(campaign.home()) as app:
        talk = Talk(campaign, app)
        if not talk.plain:
            return
        names = list(TEMPLATES)[: campaign.times(len(TEMPLATES), 2)]
        talk.prepare(names)
        first = talk.say("the first question", ANSWER_SECONDS)
        if not ledger.check(
            bool(first and first["sides"]["compressed"]["text"]), f"the first answer is {first}"
        ):
            return
        talk.expected = first["sides"]["compressed"]["text"]
        kinds = [
            _plain,
            _stop,
            _leave,
            _kill,
            _huge,
            _two,
            _odd,
            *[_template(n) for n in names if talk.hostile[n]],
        ]
        end, done = time.monotonic() + campaign.seconds(SECONDS, 60), 0
        while (time.monotonic() < end or done < len(kinds)) and app.alive() and time.monotonic() < end + 1800:
            kind = kinds[done % len(kinds)]
            kind(talk)
            talk.recovered(kind.__doc__.strip(" .").lower())
            done += 1
        for text in app.tracebacks():
            ledger.found("traceback", text)
        ledger.check(app.alive(), "the app died", "lost")
        ledger.check(len(app.children("evaluation.running.chat")) <= 2, "more than one chat worker is alive")


def _plain(talk: Talk) -> None:
    """A question with other options."""
    last = talk.say(
        "a warm question",
        ANSWER_SECONDS,
        temperature=1.0,
        seed=talk.campaign.random.randrange(10**6),
        max_tokens=64,
    )
    if last is not None:
        talk.ledger.check(
            bool(last.get("done")) and not last.get("error"), f"a warm question ends with {str(last)[:200]}"
        )


def _stop(talk: Talk) -> None:
    """A stop in the middle."""
    began = time.monotonic()
    stopped, ended = 0.0, False
    try:
        for state in talk.client.converse(_ask(talk, max_tokens=512), ANSWER_SECONDS):
            if not stopped and (state["sides"]["compressed"]["pieces"] > 3 or time.monotonic() - began > 20):
                talk.client.ask("ask_stop_chat")
                stopped = time.monotonic()
            ended = state["done"]
    except (Hung, Answered, Unreachable) as error:
        return talk.ledger.count("hung", f"stopping: {error}")
    late = time.monotonic() - stopped if stopped else 0
    return talk.ledger.judge(
        ended and late < STOP_SECONDS * stage.PATIENCE, f"an answer went on {late:.1f} s after Stop"
    )


def _leave(talk: Talk) -> None:
    """A visitor who leaves."""
    other = Client(talk.app.url, config=talk.client.config)
    try:
        for _ in zip(range(4), other.converse(_ask(talk, max_tokens=512), ANSWER_SECONDS), strict=False):
            pass
    except (Hung, Answered, Unreachable) as error:
        return talk.ledger.count("hung", f"leaving: {error}")
    other.close()
    return talk.ledger.count()


def _kill(talk: Talk) -> None:
    """A kill of the worker."""
    threading.Timer(talk.campaign.random.uniform(0.2, 4), _kill_worker, (talk.app,)).start()
    last = talk.say("a question whose worker is killed", ANSWER_SECONDS, max_tokens=512)
    if last is not None:
        talk.ledger.check(bool(last.get("done")), f"a killed worker's question ends with {str(last)[:200]}")


def _kill_worker(app: stage.App) -> None:
    for process in app.children("evaluation.running.chat"):
        try:
            process.kill()
        except psutil.Error:
            continue


def _huge(talk: Talk) -> None:
    """A huge prompt."""
    size = talk.campaign.random.choice((5_000, 100_000, 3_000_000))
    last = talk.say(f"a prompt of {size} letters", DEADLINE_SECONDS, words="x" * size)
    if last is not None:
        talk.ledger.check(
            bool(last.get("error")),
            f"a prompt of {size} letters, where the model reads 256 tokens, ends with {str(last)[:200]}",
        )


def _odd(talk: Talk) -> None:
    """A question with odd values."""
    chance = talk.campaign.random
    odd = chance.choice(
        (
            {"max_tokens": 10**9},
            {"max_tokens": -1},
            {"temperature": -5},
            {"temperature": 1e300},
            {"seed": -1},
            {"seed": 2**70},
            {"messages": []},
            {"messages": [{"role": "tool", "content": "x"}]},
            {"messages": "hello"},
            {"messages": [{}] * 5000},
            {"max_tokens": "many"},
            {"id": "../../x"},
            {"id": None},
            {"messages": [{"role": "user", "content": ""}]},
        )
    )
    last = talk.say(f"a question with {str(odd)[:80]}", DEADLINE_SECONDS, **odd)
    if last is not None:
        talk.ledger.check(
            bool(last.get("error")) or bool(last.get("done")),
            f"a question with {str(odd)[:80]} ends with {str(last)[:200]}",
        )


def _two(talk: Talk) -> None:
    """Two visitors at once."""
    other, answers = Client(talk.app.url, config=talk.client.config), []
    thread = threading.Thread(
        target=lambda: answers.append(talk.say("a second visitor", ANSWER_SECONDS, client=other)), daemon=True
    )
    thread.start()
    mine = talk.say("a first visitor", ANSWER_SECONDS)
    thread.join(ANSWER_SECONDS * 2)
    for last in (mine, *answers):
        if last is not None:
            said = (last.get("sides") or {}).get("compressed", {}).get("text")
            talk.ledger.check(
                said == talk.expected,
                f"of two visitors at once one reads {said!r}, {str(last.get('error'))[:200]}",
            )


def _template(name: str):
    def kind(talk: Talk) -> None:
        last = talk.say(f"the template '{name}'", DEADLINE_SECONDS, id=talk.hostile[name])
        if last is not None:
            talk.ledger.check(
                bool(last.get("done")) or bool(last.get("error")),
                f"the template '{name}' ends with {str(last)[:200]}",
            )

    kind.__doc__ = f"The template '{name}'"
    return kind


def _ask(talk: Talk, **options) -> dict:
    return {
        "id": talk.plain,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 16,
        "temperature": 0,
        "seed": 0,
    } | options
