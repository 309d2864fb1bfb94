"""The page's HTML and drawings: templates (templates/) filled with plain data.

    render("error.html", words=words, error={"what": "The disk is full.", ...})

Whatever a template is given is escaped: names, paths, messages and models' text can't become markup. A
template that names something it wasn't given raises.
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
    """A template of the page as text."""
    return _ENVIRONMENT.get_template(template).render(facts)


@pass_context
def _sentence(context: Context, key: str, **facts) -> Markup:
    """A string of the page whose {facts} may be markup, as a name that is a button."""
    return escape(context["words"].table[key]).format(**facts)


def _place(x: float) -> str:
    """A coordinate of a drawing."""
    return f"{x:.1f}"


_ENVIRONMENT.globals["sentence"] = _sentence
_ENVIRONMENT.filters["place"] = _place
