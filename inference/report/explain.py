"""Why a tumour got its subtype and thresholds, in words, from a run's record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from inference.errors import UsageError


def explain(record: Mapping[str, object], case: str | None) -> str:
    """Lines about one case of a record, or about all; UsageError where the record has no such case."""
    cases = [entry for entry in _list(record.get("cases")) if isinstance(entry, dict)]
    chosen = [entry for entry in cases if case is None or entry.get("id") == case]
    if not chosen:
        known = ", ".join(str(entry.get("id")) for entry in cases[:5]) + (", …" if len(cases) > 5 else "")
        raise UsageError(f"case {case!r} is not in the record, which has {known}" if case else "the record has no case")
    run = _mapping(record.get("run"))
    bundle = _mapping(run.get("bundle"))
    head = f"bundle {bundle.get('name')} {bundle.get('version')}, profile {run.get('profile')}, {run.get('engine')}"
    cuts = _mapping(run.get("region_thresholds"))
    if cuts:
        numbers = ", ".join(f"{region} {_number(value)}" for region, value in cuts.items())
        head += f"\na voxel belongs to a region where its probability is above: {numbers}"
    return "\n".join([head, *(line for entry in chosen for line in _explain_case(entry))]) + "\n"


def _explain_case(case: Mapping[str, object]) -> Iterator[str]:
    yield f"\n{case.get('id')}: {case.get('status')}" + (" (from an earlier run)" if case.get("resumed") else "")
    if case.get("error"):
        yield f"  failed: {case['error']}"
    for kind in ("repairs", "warnings"):
        yield from (f"  {kind[:-1]}: {note}" for note in _list(case.get(kind)))
    volumes = _mapping(case.get("volumes_ml"))
    if volumes:
        yield "  volumes: " + ", ".join(f"{region} {_number(volume)} mL" for region, volume in volumes.items())
    agreement = _mapping(case.get("agreement"))
    if agreement:
        numbers = ", ".join(f"{region} {_number(value)}" for region, value in agreement.items())
        yield f"  agreement of the networks with the ensemble (Dice): {numbers}"
    refinement = _mapping(case.get("refinement"))
    if refinement:
        yield from _explain_refinement(refinement)


def _explain_refinement(refinement: Mapping[str, object]) -> Iterator[str]:
    if refinement.get("cluster") is None:
        yield f"  subtype: none, since {refinement.get('no_subtype')}"
    else:
        distances = [_number(distance) for distance in _list(refinement.get("distances"))]
        yield f"  subtype: {refinement['cluster']}, whose centroid is nearest (distance {distances[0]}" + (
            f"; {distances[1]} to the next)" if len(distances) > 1 else ")"
        )
    thresholds = _mapping(refinement.get("thresholds"))
    smallest = _mapping(thresholds.get("smallest_component_mm3"))
    sizes = ", ".join(f"{label} {_number(size)} mm³" for label, size in smallest.items())
    yield f"  thresholds of {refinement.get('thresholds_of')}"
    yield f"  components removed if smaller than: {sizes}"
    for label, removed in _mapping(refinement.get("removed")).items():
        what = _mapping(removed)
        if what.get("components"):
            count = f"{what['components']} component{'s' * (what['components'] != 1)}"
            yield f"  removed of {label}: {count}, {_number(what.get('mm3'))} mm³"
    yield from _explain_ratio(refinement, thresholds)


def _explain_ratio(refinement: Mapping[str, object], thresholds: Mapping[str, object]) -> Iterator[str]:
    ratio = refinement.get("et_wt_ratio")
    if ratio is None:
        yield "  ET/WT: no tumour was left"
        return
    if not thresholds.get("et_wt_ratio"):
        yield f"  ET/WT: {_number(ratio)}; there is no threshold for it, so ET stayed"
        return
    done = "so ET became NCR" if refinement.get("et_relabelled") else "so ET stayed"
    sign = "below" if refinement.get("et_relabelled") else "not below"
    yield f"  ET/WT: {_number(ratio)}, {sign} {_number(thresholds.get('et_wt_ratio'))}, {done}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "?"


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
