"""Pages, reports and cards, made from Jinja templates that lie beside their users, in `<package>/templates`."""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: object) -> str:
    """The text of a template with these values.

    A template is named by its package and its file, such as `inference.report/page.html.jinja`; templates include one
    another by the same names. In `*.html.jinja` every value is escaped. In `*.md.jinja` nothing is: text from outside
    goes through the filter `md` there. A value that the template names and nobody gave is an error (jinja2's
    UndefinedError), not an empty place.
    """
    return _environment().get_template(template).render(values)


def markdown_text(value: object) -> str:
    """A value as text on one line of Markdown, in a table too: no HTML, link, code or cell of its own."""
    return re.sub(r"([\\`\[<|])", r"\\\1", " ".join(str(value).split()))


@functools.cache
def _environment() -> Environment:
    # Jinja takes about 50 ms to import, which `--help` need not wait for.
    from jinja2 import Environment, FunctionLoader, StrictUndefined, select_autoescape

    # A page shows text from outside (names of cases, messages), so that escaping is the rule.
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=select_autoescape(enabled_extensions=("html.jinja",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = markdown_text
    return environment


def _source(template: str) -> str | None:
    package, _, name = template.partition("/")
    try:
        return (files(package) / "templates" / name).read_text("utf-8")
    except (FileNotFoundError, ModuleNotFoundError):
        return None
