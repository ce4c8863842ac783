"""How the documentation is built: `./build.sh docs`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from inference.bundle.card import model_card  # noqa: E402
from inference.bundle.manifest import read_manifest  # noqa: E402

project = "Glioma segmentation for Sub-Saharan Africa"
author = "The contributors of this repository"
copyright = author  # noqa: A001 (Sphinx's name for it)
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

html_theme = "furo"
html_title = project
html_static_path: list[str] = []

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
nitpicky = True
nitpick_ignore_regex = [("py:.*", r".*")]  # types of other libraries, whose documentation is not at hand offline

# The card is made from the manifest at every build, so that its numbers are those of the bundle.
(ROOT / "docs" / "model-card.md").write_text(model_card(*read_manifest(ROOT / "weights" / "embedded")), "utf-8")
