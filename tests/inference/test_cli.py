"""`python -m inference`, as its callers call it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from inference import cli
from inference.cli import main
from inference.errors import DeviceError

ROOT = Path(__file__).resolve().parents[2]
IDS = ["P-00001-000", "P-00002-000", "P-00003-000"]
HEAVY = ("torch", "openvino", "monai", "nnunetv2", "scipy", "skimage", "matplotlib", "radiomics", "SimpleITK", "tqdm")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test may change is put back after it."""
    for name in ("ON_ERROR", "GLIOMA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    # More threads than idle cores wait for each other.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def cases(phantom_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom_folder, tmp_path / "cases"))


def infer(cases: Path, bundle: Path, *words: str) -> int:
    output = cases.parent / "output"
    return main(["-i", str(cases), "-o", str(output), "--bundle", str(bundle), "--engine", "torch", *words])


def outputs(cases: Path) -> list[str]:
    return sorted(path.name for path in (cases.parent / "output").iterdir())


def python(*words: object, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """This program in a process of its own: another working directory, no HOME, no PATH."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd="/",
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


NAMELESS = """
import pwd, sys
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
from inference.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("profile", ["fast", "paper"])
def test_torch_runs_for_a_user_without_a_name(cases: Path, tiny_bundle: Path, tmp_path: Path, profile: str) -> None:
    words = ["-i", cases, "-o", tmp_path / "out", "--bundle", tiny_bundle, "--engine", "torch", "--profile", profile]
    done = python("-c", NAMELESS, "infer", *words)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").iterdir())) == len(IDS)


def test_a_folder_is_segmented_and_recorded(
    cases: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "elsewhere" / "record.json"
    assert infer(cases, tiny_bundle, "--record", str(record), "--parameters_file", "x.yaml") == 0
    assert outputs(cases) == [f"{case}.nii.gz" for case in IDS]
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "ignored: unknown options '--parameters_file x.yaml'"
    assert lines[1].startswith("bundle tiny 0.0.1, profile fast, torch")
    assert [line.split(":")[0] for line in lines[2:6]] == ["device", "memory", "threads", "writes"]
    assert [line.split(":")[0] for line in lines[6:9]] == IDS
    assert lines[9:] == ["3 of 3 cases written", f"label maps: {cases.parent / 'output'}", f"record: {record}"]
    value = json.loads(record.read_bytes())
    assert [case["id"] for case in value["cases"]] == IDS
    assert value["run"]["bundle"]["name"] == "tiny"
    assert value["run"]["exit_status"] == 0
    assert value["run"]["profile"] == "fast"
    assert "--parameters_file" in value["run"]["command"]
    for case in value["cases"]:
        assert case["refinement"]["thresholds_of"].startswith("all cases")


def test_a_failed_case_is_named_and_means_exit_status_1(
    cases: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cases / IDS[1] / f"{IDS[1]}-t1c.nii.gz").unlink()
    assert infer(cases, tiny_bundle) == 1
    assert outputs(cases) == [f"{IDS[0]}.nii.gz", f"{IDS[2]}.nii.gz"]
    captured = capsys.readouterr().err
    assert re.search(rf"^{IDS[1]}: failed: missing t1c", captured, re.MULTILINE)
    assert "2 of 3 cases written" in captured
    assert "Traceback" not in captured


def test_a_folder_without_label_maps_is_not_pointed_to(
    cases: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in IDS:
        (cases / case / f"{case}-t1c.nii.gz").unlink()
    assert infer(cases, tiny_bundle) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "0 of 3 cases written"


def test_an_organiser_gets_an_empty_file_and_exit_status_0(
    cases: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (cases / IDS[1] / f"{IDS[1]}-t1c.nii.gz").write_bytes(b"")
    monkeypatch.setenv("ON_ERROR", "empty")
    assert infer(cases, tiny_bundle) == 0
    assert outputs(cases) == [f"{case}.nii.gz" for case in IDS]
    assert not np.asarray(nib.load(cases.parent / "output" / f"{IDS[1]}.nii.gz").dataobj).any()
    assert f"{IDS[1]}: FAILED, AN EMPTY FILE WAS WRITTEN IN ITS PLACE" in capsys.readouterr().err


def test_nothing_attempted_is_one_line_and_exit_status_2(
    cases: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    broken = shutil.copytree(tiny_bundle, tmp_path / "broken")
    weights = broken / "mednext" / "fold_0.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    good = ["-i", str(cases), "-o", str(tmp_path / "output"), "--bundle", str(tiny_bundle), "--engine", "torch"]
    for words, complaint in (
        (["-i", str(tmp_path / "nowhere")], "nowhere: cannot be read (No such file or directory); --data_path names"),
        (["-i", str(tmp_path / "file")], "file: cannot be read (Not a directory); --data_path names the folder"),
        (["-i", str(tmp_path / "empty")], "empty: no case found"),
        (["-o", str(tmp_path / "file")], "file: cannot be written to"),
        (["-o", "/proc/nowhere"], "/proc/nowhere: cannot be created"),
        (["--report", str(tmp_path / "file")], "file: cannot be written to"),
        (["--record", str(tmp_path)], "cannot be written (it is a folder"),
        (["--bundle", str(tmp_path / "nowhere")], "no bundle here"),
        (["--bundle", str(broken)], "mednext/fold_0.safetensors: found SHA-256"),
        (["--device", "cuda:99"], "device cuda:99"),
        (["--device", "gpu"], "expected auto, cpu, cuda or cuda:N"),
        (["--engine", "openvino", "--device", "cuda"], "openvino"),
        (["--profile", "best"], "invalid choice"),
        (["--threads", "-1"], "threads"),
        (["stray"], "unexpected word 'stray'"),
    ):
        assert main([*good, *words]) == 2, words
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert complaint in lines[0]
    monkeypatch.setenv("ON_ERROR", "panic")
    assert main(good) == 2
    assert "ON_ERROR" in capsys.readouterr().err
    assert not (tmp_path / "output").exists() or not list((tmp_path / "output").iterdir())


def test_no_words_mean_input_to_output_with_the_default_bundle(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLIOMA_BUNDLE", str(tiny_bundle))
    seen = []
    monkeypatch.setattr(cli, "_infer", lambda arguments, *_: seen.append(arguments) or 0)
    assert main([]) == 0
    assert (str(seen[0].data_path), str(seen[0].output_path)) == ("/input", "/output")
    assert seen[0].bundle == tiny_bundle


def test_a_report_is_a_page_and_pictures_beside_the_output(cases: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    assert infer(cases, tiny_bundle, "--report", str(tmp_path / "report"), "--shard", "1/3") == 0
    assert outputs(cases) == [f"{IDS[0]}.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        f"{IDS[0]}.case.js",
        f"{IDS[0]}.png",
        "index.html",
    ]
    assert IDS[0] in (tmp_path / "report" / "index.html").read_text()


def test_resume_and_shards_together_cover_a_folder(
    cases: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(cases, tiny_bundle, "--shard", "1/2") == 0
    assert outputs(cases) == [f"{IDS[0]}.nii.gz", f"{IDS[2]}.nii.gz"]
    assert infer(cases, tiny_bundle, "--resume") == 0
    assert outputs(cases) == [f"{case}.nii.gz" for case in IDS]
    assert capsys.readouterr().err.count("already there") == 2


def test_a_signal_before_the_first_case_is_said(
    cases: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "look_around", lambda: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5))
    assert infer(cases, tiny_bundle) == 2
    assert capsys.readouterr().err == "error: ended by SIGTERM before the first case\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_check_says_ok_or_what_is_wrong(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--bundle", str(tiny_bundle)]) == 0
    assert capsys.readouterr().out == "ok: bundle tiny 0.0.1: 4 networks load\n"
    spoilt = shutil.copytree(tiny_bundle, tmp_path / "spoilt")
    (spoilt / "nnunet" / "more.txt").write_text("x")
    assert main(["check", "--bundle", str(spoilt)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: nnunet/more.txt: found a file that manifest.json does not list\n"


def test_info_in_words_and_in_json(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--bundle", str(tiny_bundle)]) == 0
    text = capsys.readouterr().out
    assert "tiny 0.0.1" in text
    assert "nnunet: PlainConvUNet × 2 folds, weight 0.4722" in text
    assert "\nscores        No scores per region.\n" in text
    assert main(["info", "--json", "--bundle", str(tiny_bundle)]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["bundle"]["orientation"] == "RAS"
    assert value["bundle"]["scores"] == {"out_of_fold": {"WT": None}}
    assert value["machine"]["threads"] >= 1
    assert main(["info", "--bundle", "/nowhere"]) == 2


def test_explain_reads_a_record(
    cases: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "record.json"
    infer(cases, tiny_bundle, "--record", str(record), "--shard", "1/3")
    capsys.readouterr()
    assert main(["explain", str(record), IDS[0]]) == 0
    assert "subtype: none, since the bundle has no subtype model" in capsys.readouterr().out
    assert main(["explain", str(record), "nobody"]) == 2
    assert main(["explain", str(tmp_path / "nothing.json")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["info", "--help"], 0),
        (["--profile", "best"], 2),
        (["info", "--json", "--bundle", "{bundle}"], 0),
        (["info", "--bundle", "/nowhere"], 2),
        (["-i", "/nowhere"], 2),
    ],
)
def test_answers_that_need_no_network_come_without_heavy_libraries(
    tiny_bundle: Path, words: list[str], status: int
) -> None:
    program = (
        "import sys\nfrom inference.cli import main\n"
        f"try:\n    status = main({[word.format(bundle=tiny_bundle) for word in words]!r})\n"
        "except SystemExit as end:\n    status = end.code or 0\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = python("-c", program)
    assert done.returncode == status, done.stderr


def test_the_module_is_a_program(tiny_bundle: Path) -> None:
    done = python("-m", "inference", "info", GLIOMA_BUNDLE=str(tiny_bundle))
    assert done.returncode == 0, done.stderr
    assert "tiny" in done.stdout
    closed = subprocess.Popen(
        [sys.executable, "-m", "inference", "info", "--bundle", str(tiny_bundle)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert closed.stdout is not None
    closed.stdout.close()
    assert closed.stderr is not None
    assert b"Traceback" not in closed.stderr.read()
    closed.wait()


def test_sigterm_leaves_whole_files_and_a_record(cases: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for copy in range(100):
        original = IDS[copy % 3]
        folder = cases / f"Q-{copy:05d}-000"
        folder.mkdir()
        for path in (cases / original).iterdir():
            (folder / path.name.replace(original, folder.name)).symlink_to(path)
    record, output = tmp_path / "record.json", tmp_path / "output"
    words = ["-i", cases, "-o", output, "--bundle", tiny_bundle, "--engine", "torch", "--record", record]
    run = subprocess.Popen(
        [sys.executable, "-m", "inference", *map(str, words)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while len(list(output.glob("*"))) < 3 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 1, errors
    assert "ended by SIGTERM" in errors
    assert "Traceback" not in errors
    value = json.loads(record.read_bytes())
    assert value["run"]["interrupted"] == "SIGTERM"
    assert len(value["cases"]) == 103
    written = {case["id"] for case in value["cases"] if case["status"] == "ok"}
    assert 3 <= len(written) < 103
    assert {path.name for path in output.iterdir()} == {f"{case}.nii.gz" for case in written}
    for path in output.iterdir():
        np.asarray(nib.load(path).dataobj)


def test_a_gpu_that_is_not_used_is_pointed_out(
    cases: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    machine = replace(cli.look_around(), gpus=("NVIDIA H200",), driver="550.1", memory_gib=1.5)
    monkeypatch.setattr(cli, "look_around", lambda: machine)
    assert infer(cases, tiny_bundle, "--shard", "1/3", "--device", "cpu") == 0
    errors = capsys.readouterr().err
    assert "runs on the CPU although there is a GPU (NVIDIA H200, driver 550.1)" in errors
    assert "only 1.5 GiB of memory" in errors


def test_a_device_that_fails_is_one_line(
    cases: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise DeviceError("device cuda: compute capability 12.1, but this torch is built for 80, 90")

    monkeypatch.setattr("inference.case.open_engine", broken)
    assert infer(cases, tiny_bundle) == 2
    assert capsys.readouterr().err.startswith("error: device cuda: compute capability 12.1")


def test_info_shows_the_scores_of_the_embedded_bundle_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    from inference.bundle.card import score_table
    from inference.bundle.manifest import read_manifest
    from inference.settings import EMBEDDED

    assert main(["info", "--bundle", str(EMBEDDED)]) == 0
    shown = [line[14:] for line in capsys.readouterr().out.splitlines() if line.startswith("scores        ")]
    table = [line.rstrip() for line in score_table(read_manifest(EMBEDDED)[0].scores)]
    assert len(table) > 3
    assert shown[: len(table)] == table
    assert any(line.startswith("- how: ") for line in shown[len(table) :])


@pytest.mark.parametrize("option", ["--report", "--probabilities", "--uncertainty"])
def test_nothing_but_label_maps_may_go_to_their_folder(
    cases: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    output = cases.parent / "output"
    assert infer(cases, tiny_bundle, option, str(cases / ".." / "output")) == 2
    assert f"error: {option}: " in capsys.readouterr().err
    assert not output.exists()
    assert infer(cases, tiny_bundle, option, str(cases)) == 2
    assert "is read by this run, expected a path of its own" in capsys.readouterr().err
    assert infer(cases, tiny_bundle, option, str(output / "within")) == 2
    assert "lies in the folder of the label maps, expected one outside of it" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("option", ["-o", "--report", "--probabilities", "--record"])
def test_no_output_takes_the_place_of_an_input(
    cases: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    before = {path: path.read_bytes() for path in cases.rglob("*.nii.gz")}
    scan = cases / IDS[0] / f"{IDS[0]}-t1n.nii.gz"
    (cases.parent / "linked").symlink_to(cases / IDS[1])
    places = [scan] if option == "--record" else [cases, cases / IDS[0], cases.parent / "linked"]
    for place in places:
        assert infer(cases, tiny_bundle, option, str(place)) == 2
        assert "is read by this run, expected a path of its own" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in cases.rglob("*.nii.gz")} == before


def test_label_maps_within_the_cases_may_have_any_name(phantom_folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for path in (phantom_folder / IDS[0]).iterdir():
        copy = tmp_path / "cases" / "P_t1" / path.name.replace(IDS[0], "P_t1")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for _ in range(2):
        assert infer(tmp_path / "cases", tiny_bundle, "-o", str(tmp_path / "cases" / "labels"), "--resume") == 0


def test_the_record_may_not_lie_among_the_label_maps(
    cases: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = cases.parent / "output"
    assert infer(cases, tiny_bundle, "--record", str(output / "record.json")) == 2
    assert f"error: --record: {output} lies in the folder of the label maps" in capsys.readouterr().err
    assert not output.exists()


def test_maps_and_agreement_from_the_command_line(cases: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    inside = cases / "maps"
    words = ["--record", str(record), "--probabilities", str(inside), "--uncertainty", str(tmp_path / "doubt")]
    for _ in range(2):
        # The second time there are maps within the folder of the cases, which are none.
        assert infer(cases, tiny_bundle, *words) == 0
    assert outputs(cases) == [f"{case}.nii.gz" for case in IDS]
    assert sorted(path.name for path in inside.iterdir()) == [f"{case}_probabilities.nii.gz" for case in IDS]
    assert sorted(path.name for path in (tmp_path / "doubt").iterdir()) == [
        f"{case}_uncertainty.nii.gz" for case in IDS
    ]
    for case in json.loads(record.read_bytes())["cases"]:
        assert set(case["agreement"]) == {"WT", "TC", "ET"}
        assert all(0 <= value <= 1 for value in case["agreement"].values())


def test_closed_streams_take_nothing_from_a_run(cases: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    words = ["-i", cases, "-o", tmp_path / "out", "--bundle", tiny_bundle, "--engine", "torch", "--shard", "1/3"]
    program = [sys.executable, "-m", "inference", *map(str, words)]
    run = subprocess.run(["sh", "-c", 'exec "$@" 0>&- 1>&- 2>&-', "sh", *program], cwd=ROOT, check=False, timeout=300)
    assert run.returncode == 0
    (path,) = (tmp_path / "out").iterdir()
    assert np.asarray(nib.load(path).dataobj).any()


def test_an_answer_without_a_reader_is_one_line(tiny_bundle: Path) -> None:
    program = [sys.executable, "-m", "inference", "info", "--bundle", str(tiny_bundle)]
    for stream, complaint in ((">&-", "standard output is closed"), (">/dev/full", "No space left on device")):
        run = subprocess.run(
            ["sh", "-c", f'exec "$@" {stream}', "sh", *program], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert run.returncode == 2
        assert complaint in run.stderr
        assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_answers_in_any_encoding(tiny_bundle: Path, encoding: str) -> None:
    environment = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for words in (["info"], ["info", "--json"], ["info", "--card"]):
        program = [sys.executable, "-m", "inference", *words, "--bundle", str(tiny_bundle)]
        done = subprocess.run(program, cwd="/", env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        if words[-1] == "--json":
            assert json.loads(done.stdout.decode(encoding))["bundle"]["name"] == "tiny"


def test_signals_one_after_another_end_a_run_once(cases: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for copy in range(40):
        folder = cases / f"Q-{copy:05d}-000"
        folder.mkdir()
        for path in (cases / IDS[0]).iterdir():
            (folder / path.name.replace(IDS[0], folder.name)).symlink_to(path)
    record, output = tmp_path / "record.json", tmp_path / "output"
    words = ["-i", cases, "-o", output, "--bundle", tiny_bundle, "--engine", "torch", "--record", record]
    run = subprocess.Popen(
        [sys.executable, "-m", "inference", *map(str, words)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while len(list(output.glob("*"))) < 2 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    for number in [signal.SIGHUP, *[signal.SIGINT, signal.SIGTERM] * 10]:
        if run.poll() is None:
            run.send_signal(number)
            time.sleep(0.01)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 1, errors
    assert "ended by SIGHUP: " in errors
    assert "Traceback" not in errors
    value = json.loads(record.read_bytes())["run"]
    assert (value["interrupted"], value["exit_status"]) == ("SIGHUP", 1)
