"""Whatever is done to the files of a bundle, it is refused by name; and no code of `inference` could run one."""

from __future__ import annotations

import ast
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import inference
from inference.bundle.manifest import MANIFEST
from inference.bundle.store import Model, load_bundle
from inference.bundle.writing import write_bundle
from inference.errors import BundleError
from tests.inference.tiny import describe, random_subtypes

VARIANTS = 240


@pytest.fixture
def bundle(tmp_path: Path, plain_models: tuple[Model, ...]) -> Path:
    contents = describe(
        plain_models, subtypes=random_subtypes(), fold_subtypes=random_subtypes(), texts={"LICENSE": "none"}
    )
    return write_bundle(tmp_path / "bundle", contents).path


Tamper = Callable[[Path, random.Random], Path]
"""Does something to a file of a bundle; returns the file that has to be named."""


def flip(path: Path, chance: random.Random) -> Path:
    raw = bytearray(path.read_bytes())
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)
    return path


def truncate(path: Path, chance: random.Random) -> Path:
    raw = path.read_bytes()
    path.write_bytes(raw[: chance.randrange(len(raw))])
    return path


def lengthen(path: Path, chance: random.Random) -> Path:
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randint(1, 9)))
    return path


def replace(path: Path, chance: random.Random) -> Path:
    """Other contents of the same length."""
    path.write_bytes(chance.randbytes(path.stat().st_size))
    return path


def pickled(path: Path, chance: random.Random) -> Path:
    path.write_bytes(pickle.dumps({"weights": [chance.random()]}))
    return path


def foreign(path: Path, chance: random.Random) -> Path:
    """The file of another one in the same bundle."""
    others = [other for other in path.parent.iterdir() if other.is_file() and other.read_bytes() != path.read_bytes()]
    path.write_bytes(chance.choice(others).read_bytes() if others else b"foreign")
    return path


def remove(path: Path, chance: random.Random) -> Path:
    path.unlink()
    return path


def rename(path: Path, chance: random.Random) -> Path:
    path.rename(path.with_name(f"{path.name}{chance.randrange(10)}"))
    return path


def add(path: Path, chance: random.Random) -> Path:
    name = chance.choice(["__init__.py", "fold_9.safetensors", "x.pkl", ".hidden", "sub/deep.so", f"{path.name}~"])
    new = path.parent / name
    new.parent.mkdir(exist_ok=True)
    new.write_bytes(chance.randbytes(9))
    return new


def link(path: Path, chance: random.Random) -> Path:
    """The same contents, by a symbolic link to a file elsewhere."""
    elsewhere = path.parents[2] / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    return path


def loop(path: Path, chance: random.Random) -> Path:
    path.unlink()
    path.symlink_to(path.name)
    return path


def folder(path: Path, chance: random.Random) -> Path:
    path.unlink()
    path.mkdir()
    return path


def pipe(path: Path, chance: random.Random) -> Path:
    path.unlink()
    os.mkfifo(path)
    return path


TAMPERS: list[Tamper] = [
    flip, truncate, lengthen, replace, pickled, foreign, remove, rename, add, link, loop, folder, pipe,
]  # fmt: skip


@pytest.mark.timeout(120)
def test_whatever_is_done_to_any_file_is_refused_by_its_name(bundle: Path, tmp_path: Path) -> None:
    chance, done = random.Random(6), set()
    files = sorted(path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file())
    for number in range(VARIANTS):
        home = tmp_path / str(number)
        spoilt = Path(shutil.copytree(bundle, home / "copy"))
        tamper, file = TAMPERS[number % len(TAMPERS)], files[number // len(TAMPERS) % len(files)]
        named = tamper(spoilt / file, chance).relative_to(spoilt)
        with pytest.raises(BundleError) as caught:
            load_bundle(spoilt)
        message = str(caught.value)
        assert named.as_posix() in message or named.as_posix().partition("/")[0] in message, (tamper, file, message)
        assert named.name in message or named.parent.name in message, (tamper, file, message)
        assert message.isprintable()
        done.add((tamper, file))
        shutil.rmtree(home)
    assert len(done) == len(TAMPERS) * len(files) or len(done) == VARIANTS


@pytest.mark.parametrize("schema", [0, -1, 2, 99, 1.5, True, None, "1", [1]])
def test_another_schema_is_refused_even_where_everything_else_fits(bundle: Path, schema: object) -> None:
    import json

    value = json.loads((bundle / MANIFEST).read_bytes())
    (bundle / MANIFEST).write_text(json.dumps(value | {"schema": schema}, indent=2))
    with pytest.raises(BundleError, match=r"manifest\.json: schema"):
        load_bundle(bundle)


def modules() -> Iterator[tuple[str, ast.Module]]:
    root = Path(inference.__file__).parent
    for path in sorted(root.rglob("*.py")):
        yield path.relative_to(root).as_posix(), ast.parse(path.read_text())


FORBIDDEN_MODULES = {
    "pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "runpy", "importlib",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "import_module", "find_class", "system", "popen", "Popen"}
HARMLESS = {"importlib.metadata", "importlib.util", "importlib.resources"}
"""Versions, whether a package is there, and the page's own template: none takes a name from a bundle."""


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {
                f"{node.module}.{alias.name}" if node.module == "importlib" else node.module for alias in node.names
            }
    return names


def called(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def suspicious(tree: ast.Module) -> list[str]:
    """What in a module could run code that is data."""
    found = [
        f"import {name}"
        for name in imported(tree) - HARMLESS
        if name.partition(".")[0] in FORBIDDEN_MODULES and not any(name.startswith(f"{fine}.") for fine in HARMLESS)
    ]
    for name, call in called(tree):
        keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
        last = name.rpartition(".")[2]
        by_name = last in FORBIDDEN_CALLS and name not in {"re.compile", "torch.compile"}
        allowing = keywords.get("allow_pickle") == "True" or keywords.get("weights_only") == "False"
        loading = name in {"torch.load", "torch.jit.load"} and keywords.get("weights_only") != "True"
        reaching = name == "getattr" and not isinstance(call.args[1], ast.Constant)
        if by_name or allowing or loading or reaching:
            found.append(ast.unparse(call))
    return found


ACCOUNTED_FOR = {
    "__init__.py": {"getattr(segmenter, name)"},  # a public name, checked against __all__
    "predict/engines/torch_engine.py": {"network.eval()"},
    "predict/networks/__init__.py": {"getattr(nn, short)"},  # a layer, checked against a list of a few
    "cli.py": {"getattr(arguments, option)"},  # the rest: names that stand in the code
    "refine/subtypes.py": {"getattr(model, name)"},
    "report/page.py": {"getattr(run, key)"},
    "report/record.py": {"getattr(value, entry.name)", "getattr(run, entry.name)"},
}
"""By module, calls that look like more than they are."""


def test_nothing_unpickles_or_imports_what_a_bundle_names() -> None:
    seen = {
        name: set(found) - ACCOUNTED_FOR.get(name, set()) for name, tree in modules() if (found := suspicious(tree))
    }
    assert {name: found for name, found in seen.items() if found} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import importlib", "from importlib import import_module",
        "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)", "eval(text)",
        "getattr(module, name)", "__import__(name)", "os.system(text)", "subprocess.Popen(words)",
    ],
)  # fmt: skip
def test_the_scan_sees_what_it_is_for(code: str) -> None:
    assert suspicious(ast.parse(code))
