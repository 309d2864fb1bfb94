"""Serves Learn by itself under /learn/, and answers its questions: `routes(page)` for the app's server.

    files()       name in the folder -> file of this checkout; what any web server needs to give out
    site(...)     what the page reads about the server that it came from

A phone in a class loads this page instead of the app: it needs no framework. `python -m evaluation learn
--static` copies the same files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from evaluation import ROOT

if TYPE_CHECKING:
    from evaluation.page.questions import Page

ASSETS = ROOT / "assets"
FOLDER = ASSETS / "learn"
BORROWED = {"style.css": "style.css", "small.js": "scripts/small.js", "icon.svg": "icon.svg"}


def files() -> dict[str, Path]:
    """Every file of Learn by its name in the folder, beside site.json."""
    own = {file.relative_to(FOLDER).as_posix(): file for file in sorted(FOLDER.rglob("*")) if file.is_file()}
    return own | {name: ASSETS / file for name, file in BORROWED.items()}


def site(app: str = "", server: bool = False) -> dict[str, Any]:
    """What site.json holds: the address of a live page ("" for none), and whether questions are answered."""
    return {"app": app, "server": server}


def routes(page: Page) -> Sequence[BaseRoute]:
    """Learn's addresses: /learn/, its files, and /learn/ask for the questions of a class."""
    found = files()

    async def give(request: Request) -> Response:
        name = request.path_params["name"] or "index.html"
        if name == "site.json":
            return JSONResponse(site(server=True))
        if name not in found:
            return Response("there is nothing here", 404)
        return FileResponse(found[name])

    def ask(request: Request, body: bytes) -> dict:
        asked = json.loads(body)
        return page.answer(asked["question"], asked["ask"], request.client.host if request.client else "")

    async def answer(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(ask, request, await request.body()))

    async def inside(request: Request) -> Response:
        return RedirectResponse("learn/")  # relative: a proxy may have another name and scheme

    return [
        Route("/learn", inside),
        Route("/learn/ask", answer, methods=["POST"]),
        Route("/learn/{name:path}", give),
    ]
