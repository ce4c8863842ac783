"""The ranked system's parts among the files of its image, known by what they are and hold, under any folder.

Names and forms are those of the same authors' released code for other challenges, where the African system's stand
beside them. What is not as there is refused, or asked for by an option.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference.bundle.tables import SubtypeTables, Thresholds
from inference.errors import UsageError
from inference.labels import SEQUENCES, TUMOUR_LABELS, Label
from inference.refine.radiomics import FEATURE_NAMES, PRESETS
from inference.refine.subtypes import SubtypeModel, subtype_tables
from inference.text import printable
from training.bundles.foreign import sequence_of
from training.bundles.import_checkpoints import MEDNEXT_FILE, NNUNET_FILE
from training.bundles.pickles import Estimator, read_pickle, shown

_Table = TypeVar("_Table")
_Entry = TypeVar("_Entry")

FOLDS: Final = ("0", "1", "2", "3", "4")
"""What each family of the ranked system was trained in."""
_FAMILIES: Final = {
    "nnunet": rf"Dataset\d+_([^/!]+)/[^/!]+__[^/!]+__[^/!]+)/fold_([^/!]+)/{re.escape(NNUNET_FILE)}",
    "mednext": rf"3d_fullres/Task\d+_([^/!]+)/[^/!]+__[^/!]+)/fold_([^/!]+)/{re.escape(MEDNEXT_FILE)}",
}
_PARTS: Final = {
    "weights": r"weights_cv\.json",
    "components": r"cc_thresholds_cv\.json",
    "ratios": r"lblredef_thresholds_cv\.json",
    "subtypes": r"[^/!]*_cluster\.pkl",
    "channels": r"weights/name\.json",
    "radiomics": r"radiomics/params\.yaml",
    "ensembler": r"ensembler/[^/!]+\.py",
}
"""The parts beside the networks, and the ends of their paths."""
_NETWORK: Final = re.compile(r"\.(pth|pt|model|ckpt|model\.pkl)$")
_RATIO_LABEL: Final = f"label_{int(Label.ET)}"
_MOST_CODE: Final = 2**20


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
    parts: Mapping[str, tuple[str, ...]]
    """The other parts, by the keys of `_PARTS`, and `runner`: the programs beside the ensembler's folder."""
    left_alone: tuple[str, ...]
    """Other files that look like networks."""


def survey(paths: Iterable[str]) -> Survey:
    """Find the ranked system's parts among the paths of an image."""
    trees: dict[str, Tree] = {}
    parts: dict[str, list[str]] = {part: [] for part in (*_PARTS, "runner")}
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
    others = tuple(path for path in names if _NETWORK.search(path) and path not in used)
    return Survey(tuple(trees.values()), {part: tuple(found) for part, found in parts.items()}, others)


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


class _Rule(msgspec.Struct):
    """A threshold of one label, of small components in voxels or of its share of the tumour."""

    th: float
    redefine_to: int | None = None


def read_weights(raw: bytes, path: str, task: str) -> dict[str, float]:
    """The shares of nnU-Net and MedNeXt, which add up to 1, by `weights_cv.json`. Raises UsageError."""
    shares: dict[str, float] = {}
    for name, share in _of_task(_decoded(raw, path, dict[str, dict[str, float]]), path, task).items():
        family = next((family for family in _FAMILIES if name.lower().startswith(family)), None)
        if family is None or family in shares:
            raise UsageError(f"{path}: found a model {shown(name)}, expected one nnU-Net and one MedNeXt alone")
        shares[family] = share
    if set(shares) != set(_FAMILIES) or min(shares.values()) <= 0:
        raise UsageError(f"{path}: found the weights {shown(shares)}, expected two above 0, of nnU-Net and MedNeXt")
    return {family: share / sum(shares.values()) for family, share in shares.items()}


def read_thresholds(
    components: tuple[bytes, str], ratios: tuple[bytes, str], task: str, clusters: int
) -> dict[int, Thresholds]:
    """Thresholds by subtype, by `cc_thresholds_cv.json` and `lblredef_thresholds_cv.json`, each with its path.

    Components are counted in voxels of 1 mm³. Raises UsageError for other subtypes or labels than are known, and for a
    relabelling other than of enhancing tumour to necrotic core.
    """
    smallest, shares = (_rules(*table, task, clusters) for table in (components, ratios))
    path = ratios[1]
    for cluster, rules in shares.items():
        for label, rule in rules.items():
            if rule.th > 0 and (label, rule.redefine_to) != (_RATIO_LABEL, int(Label.NCR)):
                found = f"found a relabelling to {rule.redefine_to}"
                raise UsageError(f"{path}: {cluster}.{label}: {found}, expected of label 3 to 1 alone")
            if rule.th > 1:
                raise UsageError(f"{path}: {cluster}.{label}.th: found {rule.th}, expected a share from 0 to 1")
    return {
        number: Thresholds(
            {
                label.name: rules[f"label_{int(label)}"].th if f"label_{int(label)}" in rules else 0.0
                for label in TUMOUR_LABELS
            },
            shares[cluster][_RATIO_LABEL].th if _RATIO_LABEL in shares[cluster] else 0.0,
        )
        for number, (cluster, rules) in enumerate(sorted(smallest.items(), key=lambda item: int(item[0][8:])))
    }


def _rules(raw: bytes, path: str, task: str, clusters: int) -> dict[str, dict[str, _Rule]]:
    table = _of_task(_decoded(raw, path, dict[str, dict[str, dict[str, _Rule]]]), path, task)
    expected = [f"cluster_{number}" for number in range(clusters)]
    if sorted(table) != sorted(expected):
        raise UsageError(f"{path}: found {shown(sorted(table))}, expected the {clusters} subtypes of the k-means")
    labels = {f"label_{int(label)}" for label in TUMOUR_LABELS}
    for cluster, rules in table.items():
        for label, rule in rules.items():
            if label not in labels or rule.th < 0:
                raise UsageError(f"{path}: {cluster}: found {shown(label)} {rule.th}, expected label_1 to 3, 0 or more")
    return table


def _decoded(raw: bytes, path: str, kind: type[_Table]) -> _Table:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UsageError(f"{path}: {printable(str(error)[:200])}") from error


def _of_task(table: Mapping[str, _Entry], path: str, task: str) -> _Entry:
    """The entry of a task. Raises UsageError where there is none, or two."""
    found = [entry for name, entry in table.items() if plain_task(name) == task]
    if len(found) != 1:
        raise UsageError(f"{path}: found the tasks {shown(sorted(table))}, expected {task} once")
    return found[0]


def read_channels(raw: bytes, path: str) -> tuple[str, ...]:
    """The sequences in the order of the networks' channels, by `name.json`, as `-t1n.nii.gz` and so on name them."""
    order = _decoded(raw, path, dict[str, str])
    numbered = {place: name for name, place in order.items()}
    places = [f"_{number:04}.nii.gz" for number in range(len(SEQUENCES))]
    if sorted(order.values()) != places:
        raise UsageError(f"{path}: found {shown(order)}, expected the names of {', '.join(places)}")
    return tuple(numbered[place].removesuffix(".nii.gz").strip("-_") for place in places)


def check_channels(names: Sequence[str], where: str, order: Sequence[str], path: str) -> None:
    """Refuse a network whose channels are not those of `name.json`, in its order, under any usual name (UsageError)."""
    found, expected = ([sequence_of(name) for name in given] for given in (names, order))
    if found != expected or None in found or len(set(found)) != len(SEQUENCES):
        raise UsageError(f"{where}: found the channels {shown(names)}, expected those of {path}, {shown(order)}")


def check_radiomics(raw: bytes, path: str) -> None:
    """Refuse settings of feature extraction other than `normalize: True` and pyradiomics' defaults (UsageError)."""
    import yaml  # of the training lock: the demo lists the subcommands without it

    try:
        value = yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: found no YAML that can be read") from error
    settings = value.get("setting") if isinstance(value, dict) and set(value) == {"setting"} else None
    # The tolerance says which masks are accepted, and changes no feature.
    known = isinstance(settings, dict) and settings.get("normalize") is True
    if not isinstance(settings, dict) or not known or set(settings) - {"normalize", "geometryTolerance"}:
        raise UsageError(f"{path}: found {shown(value)}, expected setting.normalize True and pyradiomics' defaults")


def read_subtypes(pickled: Path) -> SubtypeTables:
    """The subtype model in a pickle of scikit-learn's Normalizer, PCA and KMeans, which is read and never run.

    Raises UsageError for another scaling, a whitening PCA, or features that are not this program's 386 in their order
    as far as that can be seen.
    """
    value = read_pickle(pickled)
    parts = list(value.values()) if isinstance(value, dict) else []
    known = {part.name: part.state for part in parts if isinstance(part, Estimator) and part.name != "Index"}
    if sorted(known) != ["KMeans", "Normalizer", "PCA"]:
        raise UsageError(f"{pickled}: found {shown(sorted(known))}, expected a Normalizer, a PCA and a KMeans")
    for name, key, expected in (("Normalizer", "norm", "l2"), ("PCA", "whiten", False)):
        if known[name].get(key) != expected:
            raise UsageError(f"{pickled}: {name}.{key}: found {shown(known[name].get(key))}, expected {expected}")
    count = len(FEATURE_NAMES)
    mean = _matrix(known["PCA"].get("mean_"), f"{pickled}: PCA.mean_", (count,))
    components = _matrix(known["PCA"].get("components_"), f"{pickled}: PCA.components_", (None, count))
    centres = _matrix(
        known["KMeans"].get("cluster_centers_"), f"{pickled}: KMeans.cluster_centers_", (None, len(components))
    )
    _probe_order(np.vstack([mean, components]), pickled)
    # Its authors describe every tumour: what pyradiomics cannot describe gets the thresholds of the fallback.
    extraction = msgspec.structs.replace(PRESETS["paper"], smallest_tumour_voxels=1)
    return subtype_tables(SubtypeModel(extraction, "l2", mean, components, centres))


def _matrix(value: object, name: str, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    fits = isinstance(value, np.ndarray) and value.ndim == len(shape) and value.dtype.kind == "f" and value.size > 0
    if not isinstance(value, np.ndarray) or not fits or any(
        size not in (None, found) for size, found in zip(shape, value.shape, strict=True)
    ):  # fmt: skip
        found = value.shape if isinstance(value, np.ndarray) else shown(value)
        raise UsageError(f"{name}: found {found}, expected numbers of shape {shape}")
    if not np.isfinite(value).all():
        raise UsageError(f"{name}: found numbers that are not finite")
    return np.ascontiguousarray(value, np.float64)


def _probe_order(rows: NDArray[np.float64], pickled: Path) -> None:
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
            if not np.allclose(found, factor * other, rtol=1e-3, atol=1e-12):
                raise UsageError(
                    f"{pickled}: PCA: {sequence}_{first} is not {factor:g} times {second}, expected this program's "
                    "order of features: shape, then t1n, t1c, t2w, t2f, each as pyradiomics gives them"
                )


def decision_rules(sources: Mapping[str, bytes]) -> dict[str, str]:
    """The rules from probabilities to labels in functions of programs, each with the path of one that has it.

    `argmax` over the first axis, or `regions`: probabilities compared with a half. The programs are parsed, not run.
    Raises UsageError for a comparison with another number.
    """
    rules: dict[str, str] = {}
    for path, raw in sources.items():
        functions = [node for node in ast.walk(_parsed(raw, path)) if isinstance(node, ast.FunctionDef)]
        for node in (inner for function in functions for inner in ast.walk(function)):
            if isinstance(node, ast.Call) and _is_argmax(node):
                rules.setdefault("argmax", path)
            elif isinstance(node, ast.Compare) and (compared := _share_compared(node)) is not None:
                if compared != 0.5:
                    raise UsageError(f"{path}: found probabilities compared with {compared}, expected 0.5")
                rules.setdefault("regions", path)
    return rules


def _is_argmax(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    of_library = isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") in ("np", "numpy", "torch")
    place = 1 if of_library else 0
    given = [keyword.value for keyword in call.keywords if keyword.arg in ("axis", "dim")] or call.args[
        place : place + 1
    ]
    return name == "argmax" and any(isinstance(axis, ast.Constant) and axis.value == 0 for axis in given)


def _share_compared(node: ast.Compare) -> float | None:
    """The number between 0 and 1 that something is compared with."""
    if not any(isinstance(operator, (ast.Gt, ast.GtE, ast.Lt, ast.LtE)) for operator in node.ops):
        return None
    numbers = [side.value for side in (node.left, *node.comparators) if isinstance(side, ast.Constant)]
    return next((number for number in numbers if isinstance(number, float) and 0 < number < 1), None)


def fallback_clusters(sources: Mapping[str, bytes], task: str) -> dict[int, str]:
    """Subtypes that a runner takes where features fail (`except: cluster = N`), each with the path of one that does.

    Where runners name their task, only those of `task` count.
    """
    trees = {path: _parsed(raw, path) for path, raw in sources.items()}
    of_task = {path: tree for path, tree in trees.items() if task in map(plain_task, _constants(tree.body, "TASK"))}
    found: dict[int, str] = {}
    for path, tree in (of_task or trees).items():
        handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
        for number in (value for handler in handlers for value in _constants(handler.body, "cluster")):
            if number.isdecimal():
                found.setdefault(int(number), path)
    return found


def _constants(body: Iterable[ast.stmt], name: str) -> list[str]:
    """The constants that are assigned to a name, as texts."""
    values = []
    for statement in body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        value = getattr(statement, "value", None)
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            values += [str(value.value)] if isinstance(value, ast.Constant) else []
    return values


def _parsed(raw: bytes, path: str) -> ast.Module:
    if len(raw) > _MOST_CODE:
        raise UsageError(f"{path}: found {len(raw)} bytes of program, expected at most {_MOST_CODE}")
    try:
        return ast.parse(raw)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path}: found a program that Python cannot parse") from error
