"""The page: its layout, and thin callbacks. What they compute is in evaluation/.

    python app.py            opens http://localhost:7860 (GRADIO_SERVER_PORT is honoured)

This is the only file that imports gradio. The page is five panels (`gr.HTML`, each with a script in assets/)
that ask the server plain functions (evaluation/page/questions). If the connection drops, such a call fails
quietly, where a Gradio event would reload the page. Only the chat is an event, because it streams. No torch
is imported here; the first answer that needs it imports it, after the first paint.
"""

from __future__ import annotations

import os
import re

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
try:
    import spaces  # on ZeroGPU it must come before torch
except ImportError:
    spaces = None

from collections.abc import Callable, Sequence

import gradio as gr
from starlette.middleware import Middleware

from evaluation import ROOT
from evaluation.page import learn as learning
from evaluation.page.gate import Gate, Rules, hostnames
from evaluation.page.markup import render
from evaluation.page.questions import Page
from evaluation.page.wire import Wire
from evaluation.program import in_utf8

ASSETS = ROOT / "assets"
SCRIPTS = ASSETS / "scripts"
SHARED = "small link page"  # scripts that every panel's script begins with
FONTS = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "PingFang TC",
    "Microsoft JhengHei",
    "Noto Sans TC",
    "Noto Sans CJK TC",
    "sans-serif",
)
# seconds between two looks for a chat's question; Gradio looks 1,000 times a second, which takes 4 % of a
# core
LOOK_SECONDS = 0.05
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def panel(name: str, label: str, questions: Sequence[Callable] = (), parts: str = "", **props) -> gr.HTML:
    """One panel: an empty section that its script fills.

    questions: what the script may ask the server. parts: the files that come before the panel's own script
    and share its scope.
    """
    files = (*SHARED.split(), *parts.split(), name)
    return gr.HTML(
        js_on_load="\n".join(lean((SCRIPTS / f"{file}.js").read_text("utf-8")) for file in files),
        html_template=render("panel.html", label=label),
        elem_id=name,
        server_functions=list(questions),
        apply_default_css=False,
        **props,
    )


def lean(source: str) -> str:
    """A script or style sheet without indentation and without comments on lines of their own.

    Every visitor loads it before anything is shown. No template string goes over several lines.
    """
    return re.sub(r"^ *//[^\n]*\n|^ */\*.*?\*/ *\n|^ +", "", source, flags=re.MULTILINE | re.DOTALL)


def question(page: Page, name: str) -> Callable:
    """One of the page's questions, in the form that Gradio calls."""

    def call(ask, request: gr.Request):
        return page.answer(name, ask, request.client.host)

    call.__name__ = f"ask_{name}"
    return call


def explore(page: Page) -> None:
    """The tab of the front: a model, a way to make it smaller, and what it costs."""

    def ask(*names: str) -> list[Callable]:
        return [question(page, name) for name in names]

    with gr.Row(elem_id="explore"):  # in the order of Tab: the knobs stand on the figure's left
        asked = ask("weigh", "begin", "poll", "stop", "enough", "essay")
        panel("controls", "Controls", asked, "declared model knobs fields estimate progress")
        panel("front", "Front", ask("front", "zoomed"), "layout plot picture answer")
        panel("card", "Run", ask("card", "pack", "record", "name", "delete"))
        panel("runs", "Runs", ask("runs", "add", "export_all"))


def chat(page: Page) -> None:
    """The tab of the chat: original and compressed, side by side."""
    asked = [question(page, name) for name in ("sides", "recorded", "stop_chat")]
    talk = panel("chat", "Chat", asked, "columns recorded")

    def converse(event: gr.EventData, request: gr.Request):
        yield from page.converse(event._data, request.client.host)

    # the chat has its own line of questions, which knows each visitor's place
    talk.ask(converse, None, talk, show_progress="hidden", api_visibility="private", concurrency_limit=None)


def plan(page: Page) -> None:
    """The tab that says what fits into a memory, before anything is run."""
    panel("plan", "Plan", [question(page, "plan")], "sizes")


def learn(page: Page) -> None:
    """The tab of the lessons. Its script loads /learn/ and drives the other tabs."""
    panel("learn", "Learn")


# Each tab's name is the id of the section that its function builds; the first tab is open on a first visit. A
# new tab takes a function and a line here, its script, and its words.
TABS: dict[str, Callable[[Page], None]] = {"explore": explore, "learn": learn, "chat": chat, "plan": plan}


def hiding() -> str:
    """The style that shows one tab at a time; until a script has chosen one, the first."""
    first, *others = TABS
    rules = [f'body[data-tab]:not([data-tab="{first}"]) #{first}']
    rules += [f'body:not([data-tab="{name}"]) #{name}' for name in others]
    return f"{', '.join(rules)} {{ display: none; }}"


def build_app(
    store,
    runner,
    chat=None,
    estimate: Callable | None = None,
    path: Callable | None = None,
    public: bool = False,
) -> gr.Blocks:
    """The whole page over a store, a runner, a chat and an estimate."""
    page = Page(store, runner, chat, estimate, path, public)
    tabs = [name for name in TABS if name != "chat" or chat is not None]
    gr.set_static_paths([page.downloads()])
    with gr.Blocks(title="Compression Explorer", fill_width=True, analytics_enabled=False) as demo:
        demo.served = (f"{page.downloads()}/",)  # what is served of this disk, for the gate
        demo.beside = learning.routes(page)  # what is served beside Gradio's own page
        panel("top", "Compression Explorer", value=page.boot() | {"tabs": tabs})
        for name in tabs:
            TABS[name](page)
    demo.queue(default_concurrency_limit=4)
    demo._queue.sleep_when_free = demo._queue.progress_update_sleep_when_free = LOOK_SECONDS
    return demo


def lent_gpu() -> Callable:
    """The run in the form that ZeroGPU wants.

    It is a decorated generator that asks for no more seconds than the estimate.
    """
    from evaluation.running.estimate import estimate
    from evaluation.running.worker import events
    from evaluation.spec import RunSpec

    return spaces.GPU(
        duration=lambda request: max(30, round(estimate(RunSpec.parse(request["spec"])).seconds))
    )(events)


def launch_options(demo: gr.Blocks, public: bool = False) -> dict:
    """The arguments of `launch`, here and in the tests."""
    functions = {
        (id, f.__name__) for id, block in demo.blocks.items() for f in getattr(block, "server_fns", ())
    }
    named = ("GRADIO_SERVER_NAME", "SPACE_HOST", "COMPRESSION_EXPLORER_HOSTS")
    rules = Rules(
        functions=frozenset(functions),
        event=next(iter(demo.fns), None),
        files=tuple(demo.served),
        hosts=hostnames(",".join(os.environ.get(name, "") for name in named)),
        public=public,
        frames=("https://huggingface.co", "https://*.hf.space") if public else (),
    )
    return {
        # the page uploads nothing
        "theme": gr.themes.Base(font=list(FONTS), font_mono=list(MONO)),
        "footer_links": [],
        "max_file_size": 1,
        # Gradio would rewrite the selectors of `css`, so the style goes into the head
        "head": f"<style>{lean((ASSETS / 'style.css').read_text('utf-8'))}{hiding()}</style>",
        "run_history": False,
        "ssr_mode": False,
        "favicon_path": str(ASSETS / "icon.svg"),
        "max_threads": 80,
        "app_kwargs": {
            "routes": list(demo.beside),
            "middleware": [Middleware(Gate, rules=rules), Middleware(Wire)],
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
    }


def main() -> None:
    """Build the real store, runner and chat, and serve."""
    import signal
    import sys
    import threading

    import compression
    from evaluation import host
    from evaluation.running import provenance
    from evaluation.running.chat import Chat
    from evaluation.running.estimate import estimate, path
    from evaluation.running.executor import Lent, Workers
    from evaluation.running.runner import Runner
    from evaluation.spec import WIKITEXT
    from evaluation.store import Store
    from kernels import cpu

    public = bool(os.environ.get("SPACE_ID"))
    for name in ("SIGTERM", "SIGHUP"):  # whoever ends the app this way, it still cleans up
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))
    try:
        store = Store()
    except OSError as error:
        sys.exit(f"error: {error}")
    lent = bool(os.environ.get("SPACES_ZERO_GPU"))
    if not lent:
        provenance.judge_behind(store)
    runner = Runner(store, executor=Lent(lent_gpu()) if lent else Workers(), public=public)
    chat = Chat(store, public=public)
    demo = build_app(store, runner, chat, estimate, path, public)

    def warm_up():  # one thing after the other: work beside a measurement of speed would spoil it
        host.profile()
        for name in compression.NAMES:  # imports torch, while the page loads
            compression.get(name)
        host.profile(again=True)
        cpu.library()  # begins to build the kernels

    def fetch():  # the text that a run reads unless told otherwise; the page says if it can't be had
        from compression import texts

        texts.fetch(WIKITEXT)

    for work in (warm_up, fetch):
        threading.Thread(target=work, daemon=True).start()
    port = int(os.environ.get("GRADIO_SERVER_PORT", 7860))
    try:
        demo.launch(
            server_name="0.0.0.0" if public else os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
            server_port=port,
            **launch_options(demo, public),
        )
    finally:
        chat.close()
        runner.close()


if __name__ == "__main__":
    in_utf8()
    main()
