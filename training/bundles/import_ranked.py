"""The ranked system, out of its authors' own image, as a bundle; nothing in the image is run."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inference.bundle.manifest import DECISIONS
from inference.bundle.store import Bundle
from inference.bundle.tables import SubtypeTables, Thresholds, ThresholdTables
from inference.bundle.writing import NewBundle, write_bundle
from inference.errors import ExitStatus, FolderError, GliomaError, UsageError
from inference.labels import REGIONS, TUMOUR_LABELS
from inference.text import printable
from training.bundles import ranked
from training.bundles.checkpoints import few, read_checkpoint
from training.bundles.foreign import read_conventions, read_old_plans
from training.bundles.image import SavedImage, open_image
from training.bundles.import_checkpoints import add_bundle_arguments, in_ensemble, provenance
from training.bundles.ranked_programs import decision_rules, fallback_clusters
from training.bundles.trained_folders import MEDNEXT_FILE, NNUNET_FILE, Imported, import_mednext, import_nnunet

# The system takes arrays as they are stored, and African scans are stored so.
_ORIENTATION: Final = "RAS"
# Tables and programs have kilobytes, networks of the ranked size some hundred megabytes.
_LARGEST_PART: Final = 64 * 2**20
_LARGEST_CHECKPOINT: Final = 4 * 2**30
_SIDE_FILES: Final = {"nnunet": ("dataset.json", "plans.json"), "mednext": ("plans.pkl",)}
_CHECKPOINTS: Final = {"nnunet": NNUNET_FILE, "mednext": MEDNEXT_FILE}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `import-ranked`."""
    add = parser.add_argument
    add(
        "source", type=Path, help="what `docker save`, skopeo or `crane export` wrote, or a folder of the image's files"
    )
    add("--output", type=Path, metavar="DIR", help="bundle to write")
    add("--list", action="store_true", help="say what was found, and write nothing")
    add("--task", metavar="NAME", help="whose networks to take, such as BraTS-SSA (default: the one that is there)")
    add("--decision", choices=DECISIONS, help="from probabilities to labels (default: as the image's programs say)")
    add(
        "--fallback-cluster", type=int, metavar="N",
        help="subtype whose thresholds a tumour gets that cannot be described (default: as the programs say)",
    )  # fmt: skip
    # No licence was found with the image.
    add_bundle_arguments(parser, "ranked", "not stated by the image; ask its authors")


def run(arguments: argparse.Namespace) -> int:
    """List what is there, or write the bundle."""
    if not arguments.list and arguments.output is None:
        raise UsageError("import-ranked: found neither --list nor --output, expected one")
    # Copies of the networks take gigabytes: beside the bundle there is room for them, in /tmp there may be none.
    beside = None if arguments.list else Path(os.path.realpath(arguments.output)).parent
    try:
        if beside is not None:
            beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".import-", dir=beside) as scratch:
            opened = open_files(arguments.source, Path(scratch))
            if arguments.list:
                sys.stdout.write("\n".join(listing(opened)) + "\n")
            else:
                import_ranked(opened, arguments)
    except OSError as error:
        raise FolderError(f"{error.filename or arguments.source}: {error.strerror or error}") from error
    return ExitStatus.OK


@dataclass(frozen=True)
class Opened:
    """An image whose files can be had, and what of the ranked system is in it."""

    image: SavedImage
    """The image, its zips opened."""
    scratch: Path
    """Folder for copies."""
    found: ranked.Survey
    """The parts that were found, and where."""

    def contents(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Small files of the image, by path."""
        places = {path: self.scratch / f"part-{number}" for number, path in enumerate(paths)}
        self.image.copy(places, _LARGEST_PART)
        return {path: place.read_bytes() for path, place in places.items()}

    def one_of(self, part: str, paths: Sequence[str] = ()) -> tuple[bytes, str]:
        """A part of the system, and its path; where it is there several times, all must be the same."""
        contents = self.contents(paths or self.found.parts[part])
        if not contents:
            raise UsageError(f"found nothing for {part}, expected a file: --list says what is there")
        if len(set(contents.values())) > 1:
            raise UsageError(f"found {few([*map(printable, contents)])}, which differ, expected copies of one file")
        path, raw = next(iter(contents.items()))
        return raw, printable(path)


def open_files(source: Path, scratch: Path) -> Opened:
    """An image whose zips are opened in `scratch`, and what is in it. Raises UsageError for what cannot be read."""
    image = open_image(source)
    image.open_zips(scratch)
    return Opened(image, scratch, ranked.survey(image.entries))


def listing(opened: Opened) -> Iterator[str]:
    """List what was found, in lines."""
    image, found = opened.image, opened.found
    yield f"{image.description}: {printable(image.identity)}, {len(image.entries)} paths"
    for tree in found.trees:
        missing = [fold for fold in ranked.FOLDS if fold not in tree.folds]
        state = f"folds {', '.join(tree.folds)}" + (f"; missing {', '.join(missing)}" if missing else "")
        yield f"{tree.family}, task {printable(tree.task)}: {printable(tree.root)}: {state}"
    if not found.trees:
        yield "no folder of networks"
    for part, paths in found.parts.items():
        if part not in ("ensembler", "runner"):
            yield f"{part}: {few([*map(printable, paths)]) if paths else 'nothing'}"
    for name, read in (("decision", _rules_in), ("fallback subtype", _fallbacks_in)):
        try:
            rules = read(opened)
        except UsageError as error:
            yield f"{name}: {error}"
            continue
        stated = ", ".join(f"{rule} ({printable(path)})" for rule, path in rules.items())
        yield f"{name}: {stated or 'no program says'}"
    if found.left_alone:
        yield f"left alone: {few([*map(printable, found.left_alone)], 2)}"
    yield from (f"note: {note}" for note in image.notes)


def _rules_in(opened: Opened) -> dict[str, str]:
    return decision_rules(opened.contents(opened.found.parts["ensembler"]))


def _fallbacks_in(opened: Opened, task: str = "") -> dict[str, str]:
    return fallback_clusters(opened.contents(opened.found.parts["runner"]), task)


def import_ranked(opened: Opened, given: argparse.Namespace) -> Bundle:
    """The bundle of the ranked system in an opened image, written to `given.output`.

    Raises UsageError, FolderError or BundleError, naming path, found and expected, for whatever is not known; nothing
    is written then.
    """
    task = ranked.choose_task(opened.found, given.task)
    trees = {family: _tree(opened, family, task) for family in _SIDE_FILES}
    shares = ranked.read_weights(*opened.one_of("weights"), task)
    subtypes, thresholds = _refinement(opened, task)
    if opened.found.parts["radiomics"]:
        ranked.check_radiomics(*opened.one_of("radiomics"))
    # Last, since networks take the longest to read.
    models = {family: _imported(opened, tree) for family, tree in trees.items()}
    decision = _decision(_rules_in(opened), given.decision, models)
    fallback = _fallback(_fallbacks_in(opened, task), given.fallback_cluster, len(thresholds))
    image = opened.image
    origin = {
        "image": f"{image.identity} ({image.description})",
        "task": trees["nnunet"].task,
        "models": {family: {**one.origin, "folder": trees[family].root} for family, one in models.items()},
        "decision": decision,
        "fallback": fallback,
        "not_found": [part for part in ("channels", "radiomics") if not opened.found.parts[part]],
    }
    ancestry = [
        f"image {image.identity}",
        *(f"layer sha256 {digest}" for digest in image.layers),
        *(f"{printable(path)} sha256 {digest}" for path, digest in sorted(image.digests.items())),
    ]
    return write_bundle(
        given.output,
        NewBundle(
            name=given.name,
            version=given.version,
            intended_use="Research on, and comparison with, the system that was ranked first in BraTS-Africa 2024.",
            limits=(
                "Not a medical device. Imported, not confirmed: until someone has compared its label maps with those "
                "of the image, it is not known to be the ranked system. For whoever imported it; not to be passed on."
            ),
            licence=given.licence,
            provenance=provenance({"imported": origin}, ancestry, given.revision),
            models=[in_ensemble(one.model, family, shares[family]) for family, one in models.items()],
            thresholds=ThresholdTables(
                (0.5, 0.5, 0.5), thresholds[int(str(fallback["cluster"]))], thresholds, "subtypes"
            ),
            scores={},
            subtypes=subtypes,
            orientation=_ORIENTATION,
            decision=str(decision["used"]),
        ),
    )


def _tree(opened: Opened, family: str, task: str) -> ranked.Tree:
    """The one folder of a family's networks for a task, its files copied to the scratch folder.

    Raises UsageError where there is none, a fold is missing, or two that are not copies of each other.
    """
    trees = [tree for tree in opened.found.trees if tree.family == family and ranked.plain_task(tree.task) == task]
    if not trees:
        raise UsageError(f"found no networks of {family} for {task}: --list says what is there")
    for tree in trees:
        missing = [f"fold_{fold}" for fold in ranked.FOLDS if fold not in tree.folds]
        if missing:
            raise UsageError(f"{printable(tree.root)}: found no {', '.join(missing)}, expected all five folds")
    first, *others = trees
    networks = [f"fold_{fold}/{_CHECKPOINTS[family]}" for fold in ranked.FOLDS]
    for names, most in ((_SIDE_FILES[family], _LARGEST_PART), (networks, _LARGEST_CHECKPOINT)):
        places = {f"{first.root}/{name}": opened.scratch / family / name for name in names}
        for place in places.values():
            place.parent.mkdir(parents=True, exist_ok=True)
        opened.image.copy(places, most)
    # Beside zips of networks may lie, left from building the image, what was unpacked of them.
    for other in others:
        pairs = [(f"{first.root}/{name}", f"{other.root}/{name}") for name in (*_SIDE_FILES[family], *networks)]
        whole = all(copy in opened.image.entries for _, copy in pairs)
        opened.image.copy(dict.fromkeys(copy for _, copy in pairs) if whole else {}, _LARGEST_CHECKPOINT)
        if not whole or any(opened.image.digests[path] != opened.image.digests[copy] for path, copy in pairs):
            raise UsageError(
                f"found {printable(first.root)} and {printable(other.root)}, which differ, expected one of {family}"
            )
    return first


def _imported(opened: Opened, tree: ranked.Tree) -> Imported:
    """A family's networks, whose channels must be those of `name.json` where there is one."""
    folder, nnunet = opened.scratch / tree.family, tree.family == "nnunet"
    try:
        if opened.found.parts["channels"]:
            names = read_conventions(folder / "dataset.json") if nnunet else read_old_plans(folder / "plans.pkl")
            ranked.check_channels(names.channel_names, printable(tree.root), *opened.one_of("channels"))
        if nnunet:
            return import_nnunet(folder, ranked.FOLDS, _ORIENTATION)
        outputs = _outputs_of(read_checkpoint(folder / "fold_0" / MEDNEXT_FILE).tensors, folder)
        return import_mednext(folder, ranked.FOLDS, outputs=outputs)
    except GliomaError as error:
        # Errors name networks as the image does, not by where their copies lay.
        raise UsageError(str(error).replace(str(folder), printable(tree.root))) from error


def _outputs_of(tensors: Mapping[str, object], folder: Path) -> tuple[str, ...]:
    """Heads of a MedNeXt by the number of its outputs: four labels with the background, or three regions."""
    shape: Sequence[int] = getattr(tensors.get("out_0.conv_out.weight"), "shape", ())
    outputs = {4: tuple(label.name for label in TUMOUR_LABELS), 3: tuple(REGIONS)}
    if len(shape) != 5 or shape[1] not in outputs:
        raise UsageError(f"{folder}: out_0.conv_out.weight: found shape {tuple(shape)}, expected 3 or 4 outputs")
    return outputs[shape[1]]


def _refinement(opened: Opened, task: str) -> tuple[SubtypeTables, dict[int, Thresholds]]:
    """The subtype model and the thresholds of each subtype."""
    candidates = opened.found.parts["subtypes"]
    if len(candidates) > 1:
        # Models of other challenges may lie beside it, named after them.
        prefix = {path: path.replace("!", "/").rpartition("/")[2].removesuffix("_cluster.pkl") for path in candidates}
        candidates = [path for path in candidates if ranked.plain_task(prefix[path]) == task] or candidates
    subtypes = ranked.read_subtypes(*opened.one_of("subtypes", candidates))
    tables = opened.one_of("components"), opened.one_of("ratios")
    return subtypes, ranked.read_thresholds(*tables, task, subtypes.clusters)


def _decision(rules: Mapping[str, str], asked: str | None, models: Mapping[str, Imported]) -> dict[str, object]:
    """The rule from probabilities to labels, and what the programs have. Raises UsageError where it has to be asked."""
    if asked is None and len(rules) != 1:
        found = " and ".join(f"{rule} in {printable(path)}" for rule, path in rules.items()) or "no rule"
        raise UsageError(f"found {found} in the ensembler's programs, expected one rule: say which by --decision")
    used = asked or next(iter(rules))
    # Sigmoids of nested regions are no shares of a whole: WT would win nearly everywhere.
    regions = [family for family, one in models.items() if one.model.heads == "regions"]
    if used == "argmax" and regions:
        raise UsageError(f"found argmax with region heads ({', '.join(regions)}), expected label heads, or other rules")
    return {"used": used, "asked_for": asked, "in_programs": dict(rules)}


def _fallback(found: Mapping[str, str], asked: int | None, clusters: int) -> dict[str, object]:
    """The subtype of tumours that cannot be described. Raises UsageError where it has to be asked."""
    if asked is None and len(found) != 1:
        listed = ", ".join(f"{number} in {printable(path)}" for number, path in found.items()) or "none"
        raise UsageError(f"found the fallback subtypes {listed}, expected one: say which by --fallback-cluster")
    cluster = int(next(iter(found))) if asked is None else asked
    if not 0 <= cluster < clusters:
        raise UsageError(f"found the fallback subtype {cluster}, expected one of 0 to {clusters - 1}")
    return {"cluster": cluster, "asked_for": asked, "in_programs": dict(found)}
