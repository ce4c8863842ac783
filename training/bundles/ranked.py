"""The ranked system's parts among the files of its image, known by what they are and hold, under any folder.

Names and forms are those of the same authors' released code for other challenges, where the African system's stand
beside them. What is not as there is refused, or asked for by an option.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference.bundle.tables import SubtypeTables, Thresholds
from inference.errors import UsageError
from inference.labels import SEQUENCES, TUMOUR_LABELS, Label
from inference.refine.radiomics import FEATURE_NAMES, PRESETS
from inference.refine.subtypes import SubtypeModel, subtype_tables
from inference.schema import Amount, convert, parse_json
from inference.text import printable
from training.bundles.foreign import sequence_of
from training.bundles.pickles import Estimator, read_pickle, shown
from training.bundles.trained_folders import MEDNEXT_FILE, NNUNET_FILE

T = TypeVar("T")

FOLDS: Final = ("0", "1", "2", "3", "4")
"""The program that each family of the ranked system was trained in."""
# Folder, task and fold of a checkpoint, as nnU-Net v2 and v1 name them: task, trainer, plans, fold, file.
_FAMILIES: Final = {
    "nnunet": rf"Dataset\d+_([^/!]+)/[^/!]+__[^/!]+__[^/!]+)/fold_([^/!]+)/{re.escape(NNUNET_FILE)}",
    "mednext": rf"3d_fullres/Task\d+_([^/!]+)/[^/!]+__[^/!]+)/fold_([^/!]+)/{re.escape(MEDNEXT_FILE)}",
}
# The parts beside the networks, and the ends of their paths.
_PARTS: Final = {
    "weights": r"weights_cv\.json",
    "components": r"cc_thresholds_cv\.json",
    "ratios": r"lblredef_thresholds_cv\.json",
    "subtypes": r"[^/!]*_cluster\.pkl",
    "channels": r"weights/name\.json",
    "radiomics": r"radiomics/params\.yaml",
    "ensembler": r"ensembler/[^/!]+\.py",
}
_NETWORK: Final = re.compile(r"\.(pth|pt|model|ckpt|model\.pkl)$")


@dataclass
class Tree:
    """A folder of trained networks in the image."""

    family: str
    """`nnunet` or `mednext`."""
    task: str
    """As its path names it."""
    root: str
    """Path of the folder."""
    folds: dict[str, str] = field(default_factory=dict)
    """Its checkpoints by fold."""


@dataclass(frozen=True)
class Survey:
    """Parts of the ranked system in an image, by path."""

    trees: tuple[Tree, ...]
    """Networks of all tasks."""
    parts: Mapping[str, list[str]]
    """The other parts, by the keys of `_PARTS`, and `runner`: the programs beside the ensembler's folder."""
    left_alone: list[str]
    """Other files that look like networks."""


def survey(paths: Iterable[str]) -> Survey:
    """Find the ranked system's parts among the paths of an image."""
    trees: dict[str, Tree] = {}
    parts: dict[str, list[str]] = {part: [] for part in _PARTS}
    names = sorted(paths)
    used = set()
    for path in names:
        for family, pattern in _FAMILIES.items():
            if found := re.fullmatch(rf"((?:.*[/!])?{pattern}", path):
                root, task, fold = found.groups()
                trees.setdefault(root, Tree(family, task, root)).folds[fold] = path
                used.add(path)
        for part, pattern in _PARTS.items():
            if re.fullmatch(rf"(?:.*[/!])?{pattern}", path):
                parts[part].append(path)
    beside = {re.sub(r"ensembler/[^/]+$", "", path) for path in parts["ensembler"]}
    parts["runner"] = [path for path in names if path.endswith(".py") and path[: path.rfind("/") + 1] in beside]
    others = [path for path in names if _NETWORK.search(path) and path not in used]
    return Survey(tuple(trees.values()), parts, others)


def plain_task(task: str) -> str:
    """A task's name without the year and plural that the authors spell in several ways: `BraTS2024-SSA` is `ssa`."""
    return re.sub(r"^brats\d*[-_]?", "", task.lower()).removesuffix("s")


def choose_task(found: Survey, asked: str | None) -> str:
    """The task whose networks are taken, in its plain form. Raises UsageError where that is not one and clear."""
    tasks = {plain_task(tree.task): tree.task for tree in found.trees}
    listed = ", ".join(printable(task) for task in tasks.values())
    if not tasks:
        raise UsageError("found no folder of networks (Dataset…/ or 3d_fullres/Task… with fold_0 to fold_4)")
    if asked is not None and plain_task(asked) not in tasks:
        raise UsageError(f"--task {asked}: found networks of {listed} only")
    if asked is None and len(tasks) > 1:
        raise UsageError(f"found networks of several tasks, {listed}, expected one: say which by --task")
    return plain_task(asked) if asked is not None else next(iter(tasks))


def read_weights(raw: bytes, path: str, task: str) -> dict[str, float]:
    """The shares of nnU-Net and MedNeXt, which add up to 1, by `weights_cv.json`. Raises UsageError."""
    shares: dict[str, float] = {}
    for name, share in _of_task(raw, path, dict[str, dict[str, float]], task).items():
        # `nnUNetv2` and `MedNeXt` there, with or without a version.
        family = next((family for family in _FAMILIES if name.lower().startswith(family)), None)
        if family is None or family in shares:
            raise UsageError(f"{path}: found a model {shown(name)}, expected one nnU-Net and one MedNeXt alone")
        shares[family] = share
    if set(shares) != set(_FAMILIES) or min(shares.values()) <= 0:
        raise UsageError(f"{path}: found the weights {shown(shares)}, expected two above 0, of nnU-Net and MedNeXt")
    return {family: share / sum(shares.values()) for family, share in shares.items()}


class _Rule(msgspec.Struct):
    """A threshold of one label, of small components in voxels or of its share of the tumour."""

    th: Amount
    redefine_to: int | None = None


def read_thresholds(
    components: tuple[bytes, str], ratios: tuple[bytes, str], task: str, clusters: int
) -> dict[int, Thresholds]:
    """Thresholds by subtype, by `cc_thresholds_cv.json` and `lblredef_thresholds_cv.json`, each with its path.

    Components are counted in voxels of 1 mm³. Raises UsageError for other subtypes or labels than are known, and for a
    relabelling other than of enhancing tumour to necrotic core.
    """
    labels = [f"label_{int(label)}" for label in TUMOUR_LABELS]
    tables = []
    for raw, path in (components, ratios):
        table = _of_task(raw, path, dict[str, dict[str, dict[str, _Rule]]], task)
        if set(table) != {f"cluster_{number}" for number in range(clusters)}:
            raise UsageError(f"{path}: found {shown(sorted(table))}, expected the {clusters} subtypes of the k-means")
        for cluster, rules in table.items():
            if unknown := sorted(set(rules) - set(labels)):
                raise UsageError(f"{path}: {cluster}: found {shown(unknown[0])}, expected {', '.join(labels)}")
        tables.append(table)
    smallest, shares = tables
    enhancing = f"label_{int(Label.ET)}"
    for cluster, rules in shares.items():
        for label, rule in rules.items():
            # The authors' code can relabel any label to any other, at a threshold of 0 never. A bundle knows one way.
            if rule.th > 0 and (label, rule.redefine_to) != (enhancing, int(Label.NCR)):
                found = f"found a relabelling to {rule.redefine_to}"
                raise UsageError(f"{ratios[1]}: {cluster}.{label}: {found}, expected of label 3 to 1 alone")
            if rule.th > 1:
                raise UsageError(f"{ratios[1]}: {cluster}.{label}.th: found {rule.th}, expected a share from 0 to 1")
    none = _Rule(0.0)
    thresholds = {}
    for number in range(clusters):
        sizes, ratio = smallest[f"cluster_{number}"], shares[f"cluster_{number}"]
        by_label = {label.name: sizes.get(f"label_{int(label)}", none).th for label in TUMOUR_LABELS}
        thresholds[number] = Thresholds(by_label, ratio.get(enhancing, none).th)
    return thresholds


def _of_task(raw: bytes, path: str, kind: type[dict[str, T]], task: str) -> T:
    """The entry of a task in a table of several. Raises UsageError where there is none, or two."""
    # Other challenges' tables stand in the same files, and need not be whole: only the task's is read strictly.
    table = parse_json(raw, dict[str, object], UsageError, path)
    found = {name: entry for name, entry in table.items() if plain_task(name) == task}
    if len(found) != 1:
        raise UsageError(f"{path}: found the tasks {shown(sorted(table))}, expected {task} once")
    return next(iter(convert(found, kind, UsageError, path).values()))


def check_channels(names: Sequence[str], where: str, raw: bytes, path: str) -> None:
    """Refuse a network whose channels are not those of `name.json`, in its order, under any usual name (UsageError).

    The file says which sequence, by the end of its name (`-t1n.nii.gz`), becomes which channel (`_0000.nii.gz`).
    """
    order = parse_json(raw, dict[str, str], UsageError, path)
    places = [f"_{number:04}.nii.gz" for number in range(len(SEQUENCES))]
    if sorted(order.values()) != places:
        raise UsageError(f"{path}: found {shown(order)}, expected the names of {', '.join(places)}")
    stated = [name.removesuffix(".nii.gz").strip("-_") for name in sorted(order, key=order.__getitem__)]
    found, expected = ([sequence_of(name) for name in given] for given in (names, stated))
    if found != expected or None in found or len(set(found)) != len(SEQUENCES):
        raise UsageError(f"{where}: found the channels {shown(names)}, expected those of {path}, {shown(stated)}")


def check_radiomics(raw: bytes, path: str) -> None:
    """Refuse settings of feature extraction other than `normalize: True` and pyradiomics' defaults (UsageError)."""
    import yaml  # of the training lock: the demo lists the subcommands without it

    try:
        value = yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: found no YAML that can be read") from error
    settings = value.get("setting") if isinstance(value, dict) and set(value) == {"setting"} else None
    # The tolerance says which masks are accepted, and changes no feature.
    known = {"normalize", "geometryTolerance"}
    if not isinstance(settings, dict) or settings.get("normalize") is not True or set(settings) - known:
        raise UsageError(f"{path}: found {shown(value)}, expected setting.normalize True and pyradiomics' defaults")


def read_subtypes(raw: bytes, path: str) -> SubtypeTables:
    """The subtype model in a pickle of scikit-learn's Normalizer, PCA and KMeans, which is read and never run.

    Raises UsageError for another scaling, a whitening PCA, or features that are not this program's 386 in their order
    as far as that can be seen.
    """
    value = read_pickle(raw, path)
    parts = list(value.values()) if isinstance(value, dict) else []
    # The names of a table's columns, a pandas Index, may lie beside the model.
    known = {part.name: part.state for part in parts if isinstance(part, Estimator) and part.name != "Index"}
    if sorted(known) != ["KMeans", "Normalizer", "PCA"]:
        raise UsageError(f"{path}: found {shown(sorted(known))}, expected a Normalizer, a PCA and a KMeans")
    for name, key, expected in (("Normalizer", "norm", "l2"), ("PCA", "whiten", False)):
        if known[name].get(key) != expected:
            raise UsageError(f"{path}: {name}.{key}: found {shown(known[name].get(key))}, expected {expected}")
    count = len(FEATURE_NAMES)
    mean = _matrix(known["PCA"].get("mean_"), f"{path}: PCA.mean_", (count,))
    components = _matrix(known["PCA"].get("components_"), f"{path}: PCA.components_", (None, count))
    centres = _matrix(
        known["KMeans"].get("cluster_centers_"), f"{path}: KMeans.cluster_centers_", (None, len(components))
    )
    _probe_order(np.vstack([mean, components]), path)
    # Its authors describe every tumour: what pyradiomics cannot describe gets the thresholds of the fallback.
    extraction = msgspec.structs.replace(PRESETS["paper"], smallest_tumour_voxels=1)
    return subtype_tables(SubtypeModel(extraction, "l2", mean, components, centres))


def _matrix(value: object, name: str, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    """A value from outside as numbers of a shape, of which None is any size but 0."""
    found = value.shape if isinstance(value, np.ndarray) and value.dtype.kind == "f" else ()
    fits = [size in (None, side) and side > 0 for size, side in zip(shape, found, strict=False)]
    if not isinstance(value, np.ndarray) or len(found) != len(shape) or not all(fits):
        raise UsageError(f"{name}: found {found or shown(value)}, expected numbers of shape {shape}")
    if not np.isfinite(value).all():
        raise UsageError(f"{name}: found numbers that are not finite")
    return np.ascontiguousarray(value, np.float64)


def _probe_order(rows: NDArray[np.float64], path: str) -> None:
    """Refuse features in another order, as far as two identities of pyradiomics show it.

    At 1 mm `TotalEnergy` is `Energy`, and `SumAverage` is always twice `JointAverage`; so they are in each tumour once
    it is scaled to unit length, in the mean of tumours, and in components, which are sums of tumours.
    """
    place = {name: index for index, name in enumerate(FEATURE_NAMES)}
    for sequence in SEQUENCES:
        for first, second, factor in (
            ("firstorder_TotalEnergy", "firstorder_Energy", 1.0),
            ("glcm_SumAverage", "glcm_JointAverage", 2.0),
        ):
            found, other = (rows[:, place[f"{sequence}_{name}"]] for name in (first, second))
            # Energies are so large that other features end up near 0 at unit length: hence the small atol.
            if not np.allclose(found, factor * other, rtol=1e-3, atol=1e-12):
                raise UsageError(
                    f"{path}: PCA: {sequence}_{first} is not {factor:g} times {second}, expected this program's "
                    "order of features: shape, then t1n, t1c, t2w, t2f, each as pyradiomics gives them"
                )
