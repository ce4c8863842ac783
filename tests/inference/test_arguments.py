"""Words of the command line, and what they come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.arguments import (
    CheckArguments,
    ExplainArguments,
    InferArguments,
    InfoArguments,
    parse_arguments,
)
from inference.errors import UsageError
from inference.settings import EMBEDDED


def infer(*words: str, **environment: str) -> InferArguments:
    arguments = parse_arguments(words, environment)
    assert isinstance(arguments, InferArguments)
    return arguments


@pytest.mark.parametrize(
    "words",
    [
        ("infer", "--data_path=IN", "--output_path=OUT"),
        ("infer", "--data_path", "IN", "--output_path", "OUT"),
        ("--data-path=IN", "--output-path", "OUT"),
        ("-i", "IN", "-o", "OUT"),
        ("infer", "--data_path=IN", "--output_path=OUT", "--parameters_file=a b.yaml", "--anything", "x", "--flag"),
    ],
)
def test_every_way_to_name_the_folders(words: tuple[str, ...]) -> None:
    arguments = infer(*words)
    assert (arguments.data_path, arguments.output_path) == (Path("IN"), Path("OUT"))


def test_nothing_said_means_the_containers_mounts() -> None:
    arguments = infer()
    assert (arguments.data_path, arguments.output_path) == (Path("/input"), Path("/output"))
    assert (arguments.profile, arguments.engine, arguments.device) == ("auto", "auto", "auto")
    assert (arguments.on_error, arguments.shard, arguments.threads) == ("skip", (1, 1), None)
    assert arguments.bundle == EMBEDDED
    assert (arguments.report, arguments.probabilities, arguments.uncertainty) == (None, None, None)


def test_folders_of_maps() -> None:
    arguments = infer("--probabilities", "P", "--uncertainty=U")
    assert (arguments.probabilities, arguments.uncertainty) == (Path("P"), Path("U"))


def test_unknown_options_take_the_next_word_unless_it_is_an_option() -> None:
    arguments = infer("--x", "1", "--y", "--resume", "--z=2", "-q", "-i", "IN")
    assert arguments.ignored == ("--x 1", "--y", "--z=2", "-q")
    assert arguments.resume
    assert arguments.data_path == Path("IN")


def test_the_environment_gives_defaults_that_words_override() -> None:
    assert infer(ON_ERROR="empty").on_error == "empty"
    assert infer("--on-error", "stop", ON_ERROR="empty").on_error == "stop"
    assert infer("--on_error=stop").on_error == "stop"
    assert infer(ON_ERROR="").on_error == "skip"
    assert infer("--threads", "2", OMP_NUM_THREADS="3").threads == 2
    assert infer(OMP_NUM_THREADS="3").threads is None  # the machine's cores and quota have a say as well
    assert infer(GLIOMA_BUNDLE="/b").bundle == Path("/b")
    assert infer("--bundle", "/c", GLIOMA_BUNDLE="/b").bundle == Path("/c")


def test_the_other_verbs() -> None:
    assert parse_arguments(["info", "--json"], {}) == InfoArguments(EMBEDDED, json=True, card=False)
    assert parse_arguments(["check", "--bundle=B"], {}) == CheckArguments(Path("B"))
    assert parse_arguments(["explain", "r.json", "A"], {}) == ExplainArguments(Path("r.json"), "A")
    assert parse_arguments(["explain", "r.json"], {}) == ExplainArguments(Path("r.json"), None)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["segment"], "unexpected word 'segment' (see python -m inference infer --help)"),
        (["infer", "--resume", "yes"], "unexpected word 'yes'"),
        (["--profile", "best"], "invalid choice: 'best'"),
        (["--engine=onnx"], "invalid choice: 'onnx'"),
        (["--device", "tpu"], "found 'tpu', expected auto, cpu, cuda or cuda:N"),
        (["--device", "cuda:x"], "found 'cuda:x'"),
        (["--on-error", "panic"], "invalid choice: 'panic'"),
        (["--shard", "0/4"], "found '0/4'"),
        (["--shard", "5/4"], "found '5/4'"),
        (["--shard", "2"], "found '2'"),
        (["--threads", "0"], "found '0'"),
        (["--threads=many"], "found 'many'"),
        (["-i"], "expected one argument"),
        (["--data_path="], "expected a path"),
        (["info", "--surprise"], "unrecognized arguments: --surprise"),
        (["explain"], "required: RECORD.json"),
    ],
)
def test_words_that_cannot_be_carried_out_are_one_line(words: list[str], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(words, {})
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_environment_is_said() -> None:
    with pytest.raises(UsageError, match="ON_ERROR: found 'panic'"):
        infer(ON_ERROR="panic")
