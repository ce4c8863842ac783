from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from jinja2 import TemplateNotFound, UndefinedError

from inference.templates import markdown_text, render


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    templates = tmp_path / "somewhere" / "templates"
    templates.mkdir(parents=True)
    (tmp_path / "somewhere" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield templates
    sys.modules.pop("somewhere", None)
    from inference import templates as module

    module._environment.cache_clear()


def test_values_are_escaped_in_html(package: Path) -> None:
    (package / "page.html.jinja").write_text('<p title="{{ text }}">{{ text }}</p>\n')

    shown = render("somewhere/page.html.jinja", text="<script>\"'&")

    assert shown == '<p title="&lt;script&gt;&#34;&#39;&amp;">&lt;script&gt;&#34;&#39;&amp;</p>\n'


def test_values_are_not_html_in_markdown(package: Path) -> None:
    (package / "card.md.jinja").write_text("{{ plain }} {{ text|md }}\n")

    assert render("somewhere/card.md.jinja", plain="5 > 3", text="<b>|x") == "5 > 3 \\<b>\\|x\n"


def test_templates_include_one_another(package: Path) -> None:
    (package / "page.html.jinja").write_text("{% include 'somewhere/part.html.jinja' %}")
    (package / "part.html.jinja").write_text("{{ value }}")

    assert render("somewhere/page.html.jinja", value="<") == "&lt;"


def test_a_missing_value_is_an_error(package: Path) -> None:
    (package / "page.html.jinja").write_text("{{ value }}")

    with pytest.raises(UndefinedError, match="value"):
        render("somewhere/page.html.jinja")


@pytest.mark.parametrize("name", ["somewhere/none.html.jinja", "nowhere/page.html.jinja"])
def test_a_missing_template_is_named(package: Path, name: str) -> None:
    with pytest.raises(TemplateNotFound, match=name):
        render(name)


def test_markdown_text_stays_on_its_line() -> None:
    assert markdown_text("a\n# b | `c`") == "a # b \\| \\`c\\`"


def test_jinja_waits_until_it_is_used() -> None:
    code = "import sys, inference.templates; sys.exit('jinja2' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
