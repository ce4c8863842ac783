"""A run's configuration as a file: read, its variants applied, checked, and settled in the run's folder."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from inference.errors import UsageError
from inference.files import check_readable, write_whole
from inference.schema import convert, read_yaml
from training.config import RunConfig, Tree


def load_config(path: Path) -> RunConfig:
    """Read and check a YAML configuration; UsageError names the key that is wrong.

    Relative folders start at the file's folder. Its `variants` are checked too.
    """
    content, variants = _read(path)
    # Those that nobody has asked for too: a mistake is found before a run of days needs them.
    for name, changes in variants.items():
        _checked(_varied(content, changes, f"{path.name}: variant {name}"), path)
    return _checked(content, path)


def settle_config(path: Path, folders: Sequence[str], target: Path, variants: Sequence[str] = ()) -> None:
    """Write the configuration at `path` to `target` with all its folders absolute, some of them where `folders` say.

    `folders` holds words of the form NAME=DIR, NAME a source. `variants` names those of the file's `variants` that
    replace what it says, later ones last. A `target` of the same content is left alone. Raises UsageError for a word of
    another form, an unknown source or variant, or a configuration that is wrong.
    """
    import yaml

    content, known = _read(path)
    for name in variants:
        if name not in known:
            raise UsageError(f"--variant {name}: {path.name} has {', '.join(known) or 'no variants'}")
        content = _varied(content, known[name], f"{path.name}: variant {name}")
    config = _checked(content, path)
    placed = {source.name: source.folder for source in config.sources if source.folder}
    for word in folders:
        name, _, folder = word.partition("=")
        if not folder or name not in placed:
            raise UsageError(f"--source {word!r}: expected NAME=DIR, NAME one of {', '.join(placed)}")
        placed[name] = os.path.realpath(folder)
    # Into the content as it was written: keys that were left to their defaults stay so.
    for source in _named(content["sources"]):
        if source["name"] in placed:
            source["folder"] = placed[str(source["name"])]
    if config.ancestor:
        content["ancestor"] = config.ancestor
    contents = yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()
    # The graph goes by times: a file that is written again would make everything anew.
    if not target.is_file() or target.read_bytes() != contents:
        write_whole(target, contents)


def _read(path: Path) -> tuple[Tree, dict[str, Tree]]:
    """The content of a configuration file, and apart from it the named changes of its `variants`."""
    check_readable(path)
    content = read_yaml(path, UsageError)
    taken = {"variants": content.pop("variants", {})}
    return content, convert(taken, dict[str, dict[str, Tree]], UsageError, path.name)["variants"]


def _varied(content: Tree, changes: Tree, where: str) -> Tree:
    """`content` with `changes`: mappings are merged, items of a list go by their `name`, anything else is replaced."""
    result = dict(content)
    for key, change in changes.items():
        old = content.get(key)
        if not isinstance(change, dict) or old is None:
            result[key] = change
        elif isinstance(old, dict):
            result[key] = _varied(old, change, where)
        else:
            items = {str(item["name"]): item for item in _named(old)}
            if unknown := change.keys() - items.keys():
                found, expected = ", ".join(sorted(unknown)), ", ".join(items) or "no such key"
                raise UsageError(f"{where}: {key}: found {found}, expected {expected}")
            result[key] = [_varied(item, change.get(name, {}), where) for name, item in items.items()]
    return result


def _named(items: object) -> list[Tree]:
    """Those items of a list that are mappings with a name."""
    return [item for item in items if isinstance(item, dict) and "name" in item] if isinstance(items, list) else []


def _checked(content: Tree, path: Path) -> RunConfig:
    """The configuration in the content of the file at `path`, with its folders absolute."""
    config = convert(content, RunConfig, UsageError, path.name)
    _check_names(config, path.name)
    folder = Path(os.path.realpath(path)).parent
    sources = tuple(
        dataclasses.replace(source, folder=os.path.realpath(folder / source.folder)) if source.folder else source
        for source in config.sources
    )
    # Fine-tuning starts from one of them.
    if bool(config.ancestor) == bool(config.pretraining):
        raise UsageError(f"{path.name}: give either pretraining or an ancestor")
    ancestor = os.path.realpath(folder / config.ancestor) if config.ancestor else ""
    return dataclasses.replace(config, sources=sources, ancestor=ancestor)


def _check_names(config: RunConfig, where: str) -> None:
    """Refuse names that are given twice, names of sources that there are none of, and stages without any."""
    # Without regard to case: names become folders, which some file systems would take for one.
    for kind, names in (("sources", config.sources), ("models", config.models)):
        counts = Counter(one.name.casefold() for one in names)
        if not counts or max(counts.values()) > 1:
            found = ", ".join(one.name for one in names) or "none"
            raise UsageError(f"{where}: {kind}: found {found}, expected one or more of different names")
    for stage, dataset in (("pretraining", config.pretraining), ("finetuning", config.finetuning)):
        if dataset is None:
            continue
        if not dataset.sources:
            raise UsageError(f"{where}: {stage}.sources: found none, expected one or more")
        for name in dataset.sources:
            config.source(name)
