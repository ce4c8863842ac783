"""The command line's words turned into settings; imports nothing that takes time."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, cast

from inference.errors import UsageError
from inference.settings import EMBEDDED, ENGINES, ON_ERROR, PROFILES, EngineChoice, OnError, ProfileChoice

VERBS: Final = ("infer", "info", "check", "explain", "merge")
_DEVICE: Final = re.compile(r"auto|cpu|cuda(:\d{1,3})?")
_EPILOGUE: Final = """\
exit status: 0 every case was written; 1 some case failed, the others were written; 2 nothing was attempted.
environment: GLIOMA_BUNDLE and ON_ERROR are the defaults of --bundle and --on-error; OMP_NUM_THREADS bounds that of
  --threads."""


@dataclass(frozen=True)
class InferArguments:
    """What `infer` was asked for."""

    data_path: Path
    """Folder of the cases."""
    output_path: Path
    """Folder that gets one label map per case and nothing else."""
    bundle: Path
    """Folder of the bundle."""
    profile: ProfileChoice
    """`auto` is `paper` on a GPU and `fast` on a CPU."""
    engine: EngineChoice
    """`auto` is PyTorch on a GPU and what is fastest on a CPU."""
    device: str
    """auto, cpu, cuda or cuda:N."""
    record: Path | None
    """File of the run's record."""
    report: Path | None
    """Folder of figures and page."""
    probabilities: Path | None
    """Folder of the probability maps."""
    uncertainty: Path | None
    """Folder of the maps of disagreement between the networks."""
    on_error: OnError
    """What to do about a failed case."""
    resume: bool
    """Whether to leave out cases whose result is there."""
    shard: tuple[int, int]
    """(I, N): only every N-th case, from the I-th, counted from 1."""
    threads: int | None
    """Processor cores to use; None for all that this process may use."""
    ignored: tuple[str, ...] = ()
    """Words that mean nothing here."""


@dataclass(frozen=True)
class InfoArguments:
    """What `info` was asked for."""

    bundle: Path
    """Folder of the bundle."""
    json: bool
    """Whether to answer in JSON."""
    card: bool
    """Whether to answer with the bundle's model card, in Markdown."""


@dataclass(frozen=True)
class CheckArguments:
    """What `check` was asked for."""

    bundle: Path
    """Folder of the bundle."""


@dataclass(frozen=True)
class ExplainArguments:
    """What `explain` was asked for."""

    record: Path
    """A run's record."""
    case: str | None
    """ID of the case; None for all."""


@dataclass(frozen=True)
class MergeArguments:
    """What `merge` was asked for."""

    records: tuple[Path, ...]
    """The last record of every shard."""
    earlier: tuple[Path, ...]
    """Records of earlier runs, for what they say of cases that were resumed."""
    output: Path
    """File of the one record."""


Arguments = InferArguments | InfoArguments | CheckArguments | ExplainArguments | MergeArguments


class _Parser(argparse.ArgumentParser):
    """argparse, but what is wrong is one line and the program's own error."""

    def error(self, message: str) -> NoReturn:
        # The brackets are for the usage line; who copies the hint into a shell gets a command.
        raise UsageError(f"{message} (see {self.prog.replace('[infer]', 'infer')} --help)")


def parse_arguments(words: Sequence[str], environment: Mapping[str, str] | None = None) -> Arguments:
    """What the words of a command line ask for; UsageError where they cannot be carried out.

    Asked for help, it is written to standard output and SystemExit(0) raised.
    """
    environment = os.environ if environment is None else environment
    verb, rest = (words[0], words[1:]) if words and words[0] in VERBS else ("infer", words)
    bundle = Path(environment.get("GLIOMA_BUNDLE") or EMBEDDED)
    if verb == "infer":
        return _parse_infer(rest, bundle, environment)
    parser = _Parser(prog=f"python -m inference {verb}", description=_DESCRIPTIONS[verb], allow_abbrev=False)
    if verb == "explain":
        parser.add_argument("record", type=_path, metavar="RECORD.json", help="a record written by infer --record")
        parser.add_argument("case", nargs="?", metavar="ID", help="one case (default: all)")
        given = parser.parse_args(rest)
        return ExplainArguments(given.record, given.case)
    if verb == "merge":
        parser.add_argument("records", type=_path, nargs="+", metavar="RECORD.json", help="the last of every shard")
        parser.add_argument("--earlier", type=_path, nargs="*", default=[], metavar="RECORD.json", help=_EARLIER)
        parser.add_argument("--output", type=_path, required=True, metavar="FILE.json", help="the one record")
        given = parser.parse_args(rest)
        return MergeArguments(tuple(given.records), tuple(given.earlier), given.output)
    parser.add_argument("--bundle", type=_path, default=bundle, metavar="DIR", help=f"bundle (default: {bundle})")
    if verb == "check":
        return CheckArguments(parser.parse_args(rest).bundle)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="answer in JSON")
    form.add_argument("--card", action="store_true", help="answer with the bundle's model card, in Markdown")
    given = parser.parse_args(rest)
    return InfoArguments(given.bundle, given.json, given.card)


_DESCRIPTIONS: Final = {
    "infer": "Segment the gliomas of a folder of cases: one <ID>.nii.gz per case. Also: info, check, explain, merge.",
    "info": "Say what the bundle is and what runs on this machine.",
    "check": "Verify the bundle and that its networks load: exit status 0, or the name of what is wrong and 2.",
    "explain": "Say why a tumour got its subtype and thresholds, from a run's record.",
    "merge": "Make one record of those of shards: exit status 0, 1 if a case failed, 2 if a shard has not ended.",
}
_EARLIER: Final = "records of earlier runs, which tell more of the cases that a later run left out"


def _parse_infer(words: Sequence[str], bundle: Path, environment: Mapping[str, str]) -> InferArguments:
    parser = _infer_parser(bundle)
    given, unknown = parser.parse_known_args(list(words))
    ignored = _ignorable(unknown, parser)
    on_error = given.on_error or environment.get("ON_ERROR") or "skip"
    if on_error not in ON_ERROR:
        raise UsageError(f"ON_ERROR: found {on_error!r} in the environment, expected skip, empty or stop")
    return InferArguments(
        data_path=given.data_path,
        output_path=given.output_path,
        bundle=given.bundle,
        profile=given.profile,
        engine=given.engine,
        device=given.device,
        record=given.record,
        report=given.report,
        probabilities=given.probabilities,
        uncertainty=given.uncertainty,
        on_error=cast("OnError", on_error),
        resume=given.resume,
        shard=given.shard,
        threads=given.threads,
        ignored=ignored,
    )


def _infer_parser(bundle: Path) -> _Parser:
    parser = _Parser(
        prog="python -m inference [infer]",
        description=_DESCRIPTIONS["infer"],
        epilog=_EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-i", "--data_path", "--data-path", type=_path, default="/input", metavar="IN", help="cases (default: /input)")
    add("-o", "--output_path", "--output-path", type=_path, default="/output", metavar="OUT", help="default: /output")
    add("--bundle", type=_path, default=bundle, metavar="DIR", help=f"networks and tables (default: {bundle})")
    add("--profile", choices=PROFILES, default="auto", help="auto: paper on a GPU, fast on a CPU")
    add("--engine", choices=ENGINES, default="auto")
    add("--device", type=_device, default="auto", metavar="auto|cpu|cuda|cuda:N")
    add("--record", type=_path, metavar="FILE.json", help="write what happened to every case")
    add("--report", type=_path, metavar="DIR", help="draw every case, with a page of all")
    add(
        "--probabilities", type=_path, metavar="DIR", help="write <ID>_probabilities.nii.gz: WT, TC, ET of the ensemble"
    )
    add("--uncertainty", type=_path, metavar="DIR", help="write <ID>_uncertainty.nii.gz: where the networks disagree")
    add(
        "--on-error",
        "--on_error",
        choices=ON_ERROR,
        help="a failed case is left out (default), gets an all-background file, or ends the run",
    )
    add("--resume", action="store_true", help="leave out cases that this bundle and profile have written already")
    add("--shard", type=_shard, default=(1, 1), metavar="I/N", help="every N-th case from the I-th, from 1 to N")
    add("--threads", type=_positive, metavar="N", help="processor cores (default: all that this process may use)")
    return parser


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
