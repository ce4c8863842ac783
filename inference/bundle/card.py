"""A bundle's model card: what its manifest says, as Markdown, so that no number of it is ever copied by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from inference.bundle.manifest import Manifest
from inference.labels import REGIONS
from inference.templates import markdown_text, render

# Scores that the table shows of a region, and what they are called there. Lesions were counted in two ways (editions of
# 2023 and 2024), and papers quote either.
_METRICS: Final = {"dice": "Dice", "lesionwise_dice_2023": "2023", "lesionwise_dice_2024": "2024"}


def model_card(manifest: Manifest, digest: str) -> str:
    """The card of a bundle whose manifest has this SHA-256, as Markdown."""
    return render(
        "inference.bundle/card.md.jinja",
        manifest=manifest,
        provenance=manifest.provenance,
        digest=digest,
        table=list(score_table(manifest.scores)),
        others=list(leaves(_without_regions(manifest.scores))),
    )


def score_lines(scores: Mapping[str, object]) -> Iterator[str]:
    """All that a manifest says of scores: the table per region, a blank line, and the rest as a list."""
    yield from score_table(scores)
    yield ""
    yield from (f"- {line}" for line in leaves(_without_regions(scores)))


def score_table(scores: Mapping[str, object]) -> Iterator[str]:
    """The scores per region as lines of a Markdown table: Dice, and lesion-wise Dice of both definitions."""
    rows = list(_region_rows(scores, ()))
    if not rows:
        yield "No scores per region."
        return
    counts = {region: _counts(rows, region) for region in REGIONS}
    heads = (f"{region} ({counts[region]} cases)" if counts[region] else region for region in REGIONS)
    found = {key for _, regions in rows for scores in regions.values() if isinstance(scores, Mapping) for key in scores}
    metrics = [f"lesion-wise, {name}" for metric, name in _METRICS.items() if metric != "dice" and metric in found]
    yield f"Whole-volume Dice, over the cases that have the region / {' / '.join(metrics)}:\n"
    yield f"| system | {' | '.join(heads)} |"
    yield "|---" * (1 + len(REGIONS)) + "|"
    for path, regions in rows:
        cells = " | ".join(_cell(regions.get(region)) for region in REGIONS)
        yield f"| {markdown_text(', '.join(path[-2:]))} | {cells} |"


def leaves(value: object, path: str = "") -> Iterator[str]:
    """One line for every innermost group of free JSON: where it is, and its values."""
    if not isinstance(value, Mapping):
        yield f"{path.strip()}: {value}"
        return
    plain = {key: item for key, item in value.items() if not isinstance(item, Mapping)}
    if plain and path:
        numbers = (f"{key} {item:.4g}" if isinstance(item, float) else f"{key} {item}" for key, item in plain.items())
        yield f"{path.strip()}: {', '.join(numbers)}"
    for key, item in value.items():
        if not (path and key in plain):  # at the top each plain value has a line of its own
            yield from leaves(item, f"{path} {key}")


_Row = tuple[tuple[str, ...], Mapping[str, object]]


def _region_rows(value: Mapping[str, object], path: tuple[str, ...]) -> Iterator[_Row]:
    """Every innermost group of free JSON that has Dice by region, and where it is."""
    if any(_shown(value.get(region)) for region in REGIONS):
        yield path, value
        return
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _region_rows(item, (*path, str(key)))


def _without_regions(value: Mapping[str, object]) -> dict[str, object]:
    """Leave out what the table shows."""
    rest: dict[str, object] = {}
    for key, item in value.items():
        if not isinstance(item, Mapping):
            rest[str(key)] = item
        elif not any(_shown(item.get(region)) for region in REGIONS):
            rest |= {str(key): inner} if (inner := _without_regions(item)) else {}
    return rest


def _shown(scores: object) -> list[float]:
    """The scores of a region that the table shows."""
    if not isinstance(scores, Mapping):
        return []
    return [float(scores[metric]) for metric in _METRICS if isinstance(scores.get(metric), int | float)]


def _cell(scores: object) -> str:
    """The scores of a region side by side; a dash for the Dice of one that no case has."""
    cell = " / ".join(f"{value:.2f}" for value in _shown(scores))
    return f"– / {cell}" if cell and isinstance(scores, Mapping) and "dice" not in scores else cell


def _counts(rows: Sequence[_Row], region: str) -> str:
    """How many cases have a region; empty where that is not said or differs."""
    groups = (regions.get(region) for _, regions in rows)
    found = {scores.get("cases_with_region") for scores in groups if isinstance(scores, Mapping)}
    number = found.pop() if len(found) == 1 else None
    return f"{number:.0f}" if isinstance(number, int | float) else ""
