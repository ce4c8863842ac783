"""The command line's words turned into settings; imports nothing that takes time."""

# ruff: noqa: RUF009 (what `_option` returns is a field, made anew at each call)

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final, NoReturn, TypeVar, cast

from inference.errors import UsageError
from inference.settings import EMBEDDED, ENGINES, ON_ERROR, PROFILES, EngineChoice, OnError, ProfileChoice

_Value = TypeVar("_Value")
_DEVICE: Final = re.compile(r"auto|cpu|cuda(:\d{1,3})?")
_EPILOGUE: Final = """\
exit status: 0 every case was written; 1 some case failed, the others were written; 2 nothing was attempted.
environment: GLIOMA_BUNDLE and ON_ERROR are the defaults of --bundle and --on-error; OMP_NUM_THREADS bounds that of
  --threads."""


def _option(*names: str, default: _Value, environment: str = "", **settings: object) -> _Value:
    """Declare a field of a dataclass as an argument; `settings` go to argparse, `environment` may hold a default."""
    metadata = {"names": names, "environment": environment, "settings": settings}
    declared: _Value = field(default=default, metadata=metadata)
    return declared


def _path(word: str) -> Path:
    if not word or "\0" in word:
        raise argparse.ArgumentTypeError("expected a path")
    return Path(word)


def _device(word: str) -> str:
    if not _DEVICE.fullmatch(word):
        raise argparse.ArgumentTypeError(f"found {word!r}, expected auto, cpu, cuda or cuda:N")
    return word


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"found {word!r}, expected a whole number of at least 1")
    return int(word)


def _shard(word: str) -> tuple[int, int]:
    part, _, parts = word.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"found {word!r}, expected I/N with I from 1 to N")
    return int(part), int(parts)


# One field is one option, and its lines are read as a table.
# fmt: off
@dataclass(frozen=True)
class InferArguments:
    """Segment the gliomas of a folder of cases: one <ID>.nii.gz per case. Also: info, check, explain, merge."""

    data_path: Path = _option("-i", "--data_path", "--data-path", default=Path("/input"), type=_path, metavar="IN",
                              help="cases (default: %(default)s)")
    output_path: Path = _option("-o", "--output_path", "--output-path", default=Path("/output"), type=_path,
                                metavar="OUT", help="default: %(default)s")
    bundle: Path = _option("--bundle", default=EMBEDDED, environment="GLIOMA_BUNDLE", type=_path, metavar="DIR",
                           help="networks and tables (default: %(default)s)")
    profile: ProfileChoice = _option("--profile", default="auto", choices=PROFILES,
                                     help="auto: paper on a GPU, fast on a CPU")
    engine: EngineChoice = _option("--engine", default="auto", choices=ENGINES)
    device: str = _option("--device", default="auto", type=_device, metavar="auto|cpu|cuda|cuda:N")
    record: Path | None = _option("--record", default=None, type=_path, metavar="FILE.json",
                                  help="write what happened to every case")
    report: Path | None = _option("--report", default=None, type=_path, metavar="DIR",
                                  help="draw every case, with a page of all")
    probabilities: Path | None = _option("--probabilities", default=None, type=_path, metavar="DIR",
                                         help="write <ID>_probabilities.nii.gz: WT, TC, ET of the ensemble")
    uncertainty: Path | None = _option("--uncertainty", default=None, type=_path, metavar="DIR",
                                       help="write <ID>_uncertainty.nii.gz: where the networks disagree")
    on_error: OnError = _option("--on-error", "--on_error", default="skip", environment="ON_ERROR", choices=ON_ERROR,
                                help="a failed case is left out (default), gets an empty label map, or ends the run")
    resume: bool = _option("--resume", default=False, action="store_true",
                           help="leave out cases that this bundle and profile have written already")
    shard: tuple[int, int] = _option("--shard", default=(1, 1), type=_shard, metavar="I/N",
                                     help="every N-th case from the I-th, from 1 to N")
    threads: int | None = _option("--threads", default=None, type=_positive, metavar="N",
                                  help="processor cores (default: all that this process may use)")
    ignored: tuple[str, ...] = ()
    """Unknown options, with the word that belongs to each: a caller may pass what other programs need."""


@dataclass(frozen=True)
class InfoArguments:
    """Say what the bundle is and what runs on this machine."""

    bundle: Path = _option("--bundle", default=EMBEDDED, environment="GLIOMA_BUNDLE", type=_path, metavar="DIR",
                           help="bundle (default: %(default)s)")
    json: bool = _option("--json", default=False, action="store_true", help="answer in JSON")
    card: bool = _option("--card", default=False, action="store_true",
                         help="answer with the bundle's model card, in Markdown")


@dataclass(frozen=True)
class CheckArguments:
    """Verify the bundle and that its networks load: exit status 0, or the name of what is wrong and 2."""

    bundle: Path = _option("--bundle", default=EMBEDDED, environment="GLIOMA_BUNDLE", type=_path, metavar="DIR",
                           help="bundle (default: %(default)s)")


@dataclass(frozen=True)
class ExplainArguments:
    """Say why a tumour got its subtype and thresholds, from a run's record."""

    record: Path = _option("record", default=Path(), type=_path, metavar="RECORD.json",
                           help="a record written by infer --record")
    case: str | None = _option("case", default=None, nargs="?", metavar="ID", help="one case (default: all)")


@dataclass(frozen=True)
class MergeArguments:
    """Make one record of those of shards: exit status 0, 1 if a case failed, 2 if a shard has not ended."""

    records: Sequence[Path] = _option("records", default=(), type=_path, nargs="+", metavar="RECORD.json",
                                      help="the last of every shard")
    earlier: Sequence[Path] = _option("--earlier", default=(), type=_path, nargs="*", metavar="RECORD.json",
                                      help="records of earlier runs, for cases that a later run left out")
    output: Path = _option("--output", default=Path(), type=_path, required=True, metavar="FILE.json",
                           help="the one record")
# fmt: on


Arguments = InferArguments | InfoArguments | CheckArguments | ExplainArguments | MergeArguments
VERBS: Final[Mapping[str, type[Arguments]]] = {
    "infer": InferArguments,
    "info": InfoArguments,
    "check": CheckArguments,
    "explain": ExplainArguments,
    "merge": MergeArguments,
}


class _Parser(argparse.ArgumentParser):
    """argparse, but what is wrong is one line and the program's own error."""

    def error(self, message: str) -> NoReturn:
        # The brackets are for the usage line; who copies the hint into a shell gets a command.
        raise UsageError(f"{message} (see {self.prog.replace('[infer]', 'infer')} --help)")


def parse_arguments(words: Sequence[str], environment: Mapping[str, str] | None = None) -> Arguments:
    """Parse the words of a command line; UsageError where they cannot be carried out.

    Asked for help, it is written to standard output and SystemExit(0) raised.
    """
    environment = os.environ if environment is None else environment
    verb, rest = (words[0], words[1:]) if words and words[0] in VERBS else ("infer", words)
    kind = VERBS[verb]
    parser = _Parser(
        prog=f"python -m inference {'[infer]' if verb == 'infer' else verb}",
        description=kind.__doc__,
        epilog=_EPILOGUE if verb == "infer" else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an unknown option that a platform passes must not be taken for one of ours
    )
    for entry in fields(kind):
        if entry.metadata:
            names, settings = entry.metadata["names"], entry.metadata["settings"]
            # A word, not a value: argparse parses defaults that are texts, and so names what is wrong with them.
            default = _default(environment, entry.metadata["environment"], settings) or entry.default
            parser.add_argument(*names, default=default, **settings)
    if verb != "infer":
        given = parser.parse_args(rest)
        if verb == "info" and given.json and given.card:  # a group of argparse would be a second way to declare options
            parser.error("argument --card: not allowed with argument --json")
        return kind(**vars(given))
    given, unknown = parser.parse_known_args(list(rest))
    return InferArguments(**vars(given), ignored=_ignorable(unknown, parser))


def _default(environment: Mapping[str, str], name: str, settings: Mapping[str, object]) -> str | None:
    """A default from the environment, where it has one; argparse parses it like a word but does not compare choices."""
    word, choices = environment.get(name), cast("Sequence[str] | None", settings.get("choices"))
    if word and choices and word not in choices:
        expected = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise UsageError(f"{name}: found {word!r} in the environment, expected {expected}")
    return word


def _ignorable(unknown: Sequence[str], parser: _Parser) -> tuple[str, ...]:
    """The unknown options, each with the word that belongs to it; UsageError for any other word."""
    ignored, words = [], list(unknown)
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word in ("-", "--"):
            parser.error(f"unexpected word {word!r}")
        ignored.append(word)
        if word.startswith("--") and "=" not in word and words and not words[0].startswith("-"):
            ignored[-1] += " " + words.pop(0)
    return tuple(ignored)
