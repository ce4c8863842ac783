"""Why a tumour got its subtype and thresholds, in words, from a run's record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from inference.errors import UsageError
from inference.refine.postprocess import RefinementRecord
from inference.report.record import CaseRecord, Record


def explain(record: Record, case: str | None) -> str:
    """Lines about one case of a record, or about all; UsageError where the record has no such case."""
    chosen = [entry for entry in record.cases if case in (None, entry.id)]
    if not chosen:
        known = ", ".join(entry.id for entry in record.cases[:5]) + (", …" if len(record.cases) > 5 else "")
        raise UsageError(f"case {case!r} is not in the record, which has {known}" if case else "the record has no case")
    run = record.run
    lines = [f"bundle {run.bundle.name} {run.bundle.version}, profile {run.profile}, {run.engine}"]
    if cuts := run.region_thresholds:
        lines.append(f"a voxel belongs to a region where its probability is above: {_numbers(cuts)}")
    if run.confidence:
        lines.append(f"a lesion stays with at least {run.confidence:.4g} of the largest lesion's mean probability")
    return "\n".join([*lines, *(line for entry in chosen for line in _explain_case(entry))]) + "\n"


def _explain_case(case: CaseRecord) -> Iterator[str]:
    yield f"\n{case.id}: {case.status}" + (" (from an earlier run)" if case.resumed else "")
    if case.error:
        yield f"  failed: {case.error}"
    yield from (f"  repair: {note}" for note in case.repairs)
    yield from (f"  warning: {note}" for note in case.warnings)
    if case.volumes_ml:
        yield f"  volumes: {_numbers(case.volumes_ml, ' mL')}"
    if case.agreement:
        yield f"  agreement of the networks with the ensemble (Dice): {_numbers(case.agreement)}"
    for region, removed in case.doubtful.items():
        if removed.components:
            count = f"{removed.components} lesion{'s' * (removed.components != 1)}"
            yield f"  left out of {region}, since the networks doubt them: {count}, {removed.mm3:.6g} mm³"
    if case.refinement:
        yield from _explain_refinement(case.refinement)


def _explain_refinement(refinement: RefinementRecord) -> Iterator[str]:
    if refinement.cluster is None:
        yield f"  subtype: none, since {refinement.no_subtype}"
    else:
        nearest, *others = (f"{distance:.4g}" for distance in refinement.distances)
        next_one = f"; {others[0]} to the next" if others else ""
        yield f"  subtype: {refinement.cluster}, whose centroid is nearest (distance {nearest}{next_one})"
    thresholds = refinement.thresholds
    yield f"  thresholds of {refinement.thresholds_of}"
    yield f"  components removed if smaller than: {_numbers(thresholds.smallest_component_mm3, ' mm³')}"
    for label, removed in refinement.removed.items():
        if removed.components:
            count = f"{removed.components} component{'s' * (removed.components != 1)}"
            yield f"  removed of {label}: {count}, {removed.mm3:.6g} mm³"
    ratio, least = refinement.et_wt_ratio, thresholds.et_wt_ratio
    if ratio is None:
        yield "  ET/WT: no tumour was left"
    elif not least:
        yield f"  ET/WT: {ratio:.4g}; there is no threshold for it, so ET stayed"
    elif refinement.et_relabelled:
        yield f"  ET/WT: {ratio:.4g}, below {least:.4g}, so ET became NCR"
    else:
        yield f"  ET/WT: {ratio:.4g}, not below {least:.4g}, so ET stayed"


def _numbers(values: Mapping[str, float], unit: str = "") -> str:
    return ", ".join(f"{name} {value:.4g}{unit}" for name, value in values.items())
