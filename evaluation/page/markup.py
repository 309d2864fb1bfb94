"""The page's HTML and drawings: templates (templates/) filled with plain data.

    render("error.html", words=words, error={"what": "The disk is full.", ...})

All data that a template is given is escaped: names, paths, messages and a model's text can't become markup. A
template that uses a name that it wasn't given raises an error.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).parent / "templates"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **facts) -> str:
    """The text of a template of the page, filled in."""
    return _ENVIRONMENT.get_template(template).render(facts)


@pass_context
def _sentence(context: Context, key: str, **facts) -> Markup:
    """A string of the page whose {facts} may be markup, e.g. a name that is a button."""
    return escape(context["words"].table[key]).format(**facts)


def _place(x: float) -> str:
    """A coordinate of a drawing."""
    return f"{x:.1f}"


_ENVIRONMENT.globals["sentence"] = _sentence
_ENVIRONMENT.filters["place"] = _place
