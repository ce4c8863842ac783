"""The ranked system out of images that look like its own: in every form, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.bundle.manifest import Manifest
from inference.bundle.store import load_bundle
from inference.refine.subtypes import subtype_model
from tests.training.bundles import lookalike
from tests.training.bundles.lookalike import FORMS, MEDNEXTS, NNUNET, Files, layers_of, tarred, write_folder
from training.cli import main

HOME = "mlcube_project"


@pytest.fixture(scope="module")
def files() -> Files:
    return lookalike.system()


@pytest.fixture(scope="module")
def image(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "ranked.tar"
    path.write_bytes(FORMS["docker-new"](files))
    return path


@pytest.fixture(scope="module")
def bundle(image: Path) -> Path:
    target = image.parent / "ranked"
    assert main(["import-ranked", str(image), "--output", str(target)]) == 0
    return target


def without_origin(manifest: Manifest) -> Manifest:
    provenance = replace(manifest.provenance, ancestry=(), config={})
    return replace(manifest, created="", provenance=provenance)


@pytest.mark.parametrize("form", [*FORMS, "folder"])
def test_every_form_gives_the_same_bundle(form: str, files: Files, bundle: Path, tmp_path: Path) -> None:
    """The lower layer's tables and programs are deleted or replaced by the upper one: they would be refused."""
    source = tmp_path / "saved"
    if form == "folder":
        write_folder(files, source)
    else:
        source.write_bytes(FORMS[form](files))
    assert main(["import-ranked", str(source), "--output", str(tmp_path / "bundle")]) == 0
    found = load_bundle(tmp_path / "bundle").manifest
    assert without_origin(found) == without_origin(load_bundle(bundle).manifest)


def test_the_bundle_says_what_it_is_and_where_from(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.manifest.orientation == "RAS"
    assert loaded.manifest.decision == "argmax"
    assert [(model.name, model.heads, model.averaging, model.folds) for model in loaded.models] == [
        ("nnunet", "labels", "logits", (0, 1, 2, 3, 4)),
        ("mednext", "labels", "probabilities", (0, 1, 2, 3, 4)),
    ]
    assert [model.weight for model in loaded.models] == pytest.approx([0.4722, 0.5278])
    assert loaded.thresholds.use == "subtypes"
    assert len(loaded.thresholds.subtypes) == lookalike.CLUSTERS
    assert loaded.thresholds.overall == loaded.thresholds.subtypes[4]
    assert loaded.thresholds.subtypes[3].smallest_component_mm3 == {"NCR": 35, "ED": 40, "ET": 45}
    assert loaded.thresholds.subtypes[3].et_wt_ratio == pytest.approx(0.06)
    assert "ask its authors" in loaded.manifest.licence
    assert "not confirmed" in loaded.manifest.limits
    ancestry = loaded.manifest.provenance.ancestry
    assert ancestry[0].startswith("image sha256:")
    assert sum(line.startswith("layer sha256 ") for line in ancestry) == 2
    assert sum("checkpoint_final.pth sha256 " in line for line in ancestry) == 5


def test_subtypes_are_those_of_scikit_learn(bundle: Path) -> None:
    model = subtype_model(load_bundle(bundle).subtypes)
    assert model.extraction.smallest_tumour_voxels == 1
    fit = lookalike.fitted()
    values = lookalike.tumours(200, seed=1)
    expected = fit["kmeans"].predict(fit["pca"].transform(fit["normalizer"].transform(values)))
    found = [model.assign(row).cluster for row in values]
    assert len(set(found)) > 3
    np.testing.assert_array_equal(found, expected)


def test_listing_writes_nothing(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(image.parent.iterdir())
    assert main(["import-ranked", str(image), "--list", "--output", str(tmp_path / "never")]) == 0
    said = capsys.readouterr().out
    for text in (
        "docker save, 2 layers",
        "task BraTS2024-SSA",
        "folds 0, 1, 2, 3, 4",
        "argmax",
        "subtype: 4",
        "no zip",
    ):
        assert text in said
    assert sorted(image.parent.iterdir()) == before
    assert not any(tmp_path.iterdir())


def test_region_heads_are_read_from_the_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = lookalike.system(heads=lookalike.REGIONS, outputs=3)
    write_folder(files, tmp_path / "image")
    words = ["import-ranked", str(tmp_path / "image"), "--output", str(tmp_path / "bundle")]
    assert main(words) == 2
    assert "found argmax with region heads (nnunet, mednext), expected label heads" in caplog.messages[-1]
    assert main([*words, "--decision", "regions", "--fallback-cluster", "2", "--licence", "CC0"]) == 0
    loaded = load_bundle(tmp_path / "bundle")
    assert {model.heads for model in loaded.models} == {"regions"}
    assert loaded.manifest.decision == "regions"
    assert loaded.thresholds.overall == loaded.thresholds.subtypes[2]
    assert loaded.manifest.licence == "CC0"


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch /tmp/import-ranked-was-here",)


Change = Callable[[Files], None]


def sets(path: str, contents: bytes | str) -> Change:
    return lambda files: files.update(
        {f"{HOME}/{path}": contents if isinstance(contents, bytes) else contents.encode()}
    )


def drops(path: str) -> Change:
    return lambda files: files.pop(f"{HOME}/{path}")


def in_json(path: str, change: Callable[[dict], object]) -> Change:
    def changed(files: Files) -> None:
        value = json.loads(files[f"{HOME}/{path}"])
        change(value)
        files[f"{HOME}/{path}"] = json.dumps(value).encode()

    return changed


def in_model(change: Callable[[dict], object]) -> Change:
    def changed(files: Files) -> None:
        value = lookalike.fitted()
        change(value)
        files[f"{HOME}/{CLUSTER}"] = pickle.dumps(value)

    return changed


def unpacked(tree: str, name: str, contents: bytes, fold: int | None = None) -> Change:
    """One more folder of networks, not in a zip, of which only one file matters."""

    def changed(files: Files) -> None:
        for number in range(5):
            checkpoint = "checkpoint_final.pth" if "Dataset" in tree else "model_final_checkpoint.model"
            if number != fold:
                files[f"tmp/{tree}/fold_{number}/{checkpoint}"] = b"another"
        files[f"tmp/{tree}/{name}"] = contents

    return changed


WEIGHTS, SMALL, RATIO = (
    "ensembler/weights_cv.json",
    "postproc/cc_thresholds_cv.json",
    "postproc/lblredef_thresholds_cv.json",
)
CLUSTER, PROGRAM = "kmeans-cluster-artifacts/SSA_cluster.pkl", "ensembler/ssa_weighted_ensemble.py"
NNUNET_ZIP, MEDNEXT_ZIP = "weights/BraTS2024_SSA_nnunetv2_model.zip", "weights/BraTS2024_SSA_MedNeXt_model.zip"
OTHER = NNUNET.replace("022", "021").replace("SSA", "PEDs")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda files: files.clear(), "found no folder of networks"),
        (drops(MEDNEXT_ZIP), "found no networks of mednext for ssa"),
        (unpacked(OTHER, "plans.json", b"{}"), "several tasks, .*SSA.*PEDs.*say which by --task"),
        (unpacked(NNUNET, "plans.json", b"{}", fold=3), "found no fold_3, expected all five folds"),
        (
            unpacked(NNUNET, "plans.json", b"{}"),
            "found .*Dataset022.* and .*Dataset022.*, which differ, expected one of nnunet",
        ),
        (drops(WEIGHTS), "found nothing for weights"),
        (in_json(WEIGHTS, lambda v: v["BraTS-SSA"].update(SwinUNETR=1.0)), "found a model 'SwinUNETR'"),
        (in_json(WEIGHTS, lambda v: v["BraTS-SSA"].update(MedNeXt=0)), "expected two above 0"),
        (in_json(WEIGHTS, lambda v: v["BraTS-SSA"].update(MedNeXt="1")), 'MedNeXt: found "1", expected a number'),
        (in_json(WEIGHTS, lambda v: v.pop("BraTS-SSA")), "found the tasks .* expected ssa once"),
        (sets("again/" + WEIGHTS, b"{}"), "which differ, expected copies of one file"),
        (in_json(SMALL, lambda v: v["BraTS-SSA"].pop("cluster_7")), "expected the 8 subtypes of the k-means"),
        (in_json(SMALL, lambda v: v["BraTS-SSA"]["cluster_0"].update(label_4={"th": 1})), "found 'label_4'"),
        (
            in_json(RATIO, lambda v: v["BraTS-SSA"]["cluster_1"]["label_1"].update(th=0.5)),
            "cluster_1.label_1: found a relabelling to 2, expected of label 3 to 1 alone",
        ),
        (in_json(RATIO, lambda v: v["BraTS-SSA"]["cluster_1"]["label_3"].update(redefine_to=2)), "relabelling to 2"),
        (in_json(RATIO, lambda v: v["BraTS-SSA"]["cluster_1"]["label_3"].update(th=7)), "expected a share from 0 to 1"),
        (in_json("weights/name.json", lambda v: v.update({"-t1n.nii.gz": "_0009.nii.gz"})), "name.json: found"),
        (
            sets(
                "weights/name.json",
                json.dumps({f"-{n}.nii.gz": f"_{i:04}.nii.gz" for i, n in enumerate(["t1c", "t1n", "t2w", "t2f"])}),
            ),
            "found the channels .*t1n.*expected those of .*name.json.*t1c",
        ),
        (sets("radiomics/params.yaml", "setting: {normalize: True, binWidth: 5}"), "expected setting.normalize True"),
        (in_model(lambda v: v["pca"].__dict__.update(whiten=True)), "PCA.whiten: found True, expected False"),
        (in_model(lambda v: v["normalizer"].__dict__.update(norm="l1")), "Normalizer.norm: found 'l1', expected l2"),
        (in_model(lambda v: v["pca"].__dict__.update(mean_=np.zeros(385))), r"found \(385,\), expected numbers"),
        (in_model(lambda v: v["pca"].__dict__.update(mean_=v["pca"].mean_[::-1])), "expected this program's order"),
        (in_model(lambda v: v.pop("kmeans")), "expected a Normalizer, a PCA and a KMeans"),
        (sets(CLUSTER, pickle.dumps({"a": Hostile()})), "SSA_cluster.pkl: found posix.system in it"),
        (sets(CLUSTER, pickle.dumps(re.compile("a"))), "SSA_cluster.pkl: found re._compile in it"),
        (sets(CLUSTER, b"\x80\x04joblib"), "SSA_cluster.pkl: found no pickle that can be read"),
        (sets(PROGRAM, "x = 1"), "found no rule in the ensembler's programs, expected one rule"),
        (sets(PROGRAM, lookalike.ENSEMBLER + "    wt = prob[0] > 0.5\n"), "argmax in .* and regions in .*--decision"),
        (sets(PROGRAM, "def f(prob):\n    return prob[0] > 0.4\n"), "compared with 0.4, expected 0.5"),
        (sets(PROGRAM, "def f(:"), "found a program that Python cannot parse"),
        (sets("runner_ssa.py", "x = 1"), "fallback subtypes none, expected one: say which by --fallback-cluster"),
        (sets("runner_ssa.py", lookalike.RUNNER.replace("= 4", "= 9")), "subtype 9, expected one of 0 to 7"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(
    change: Change, complaint: str, files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = dict(files)
    change(changed)
    (tmp_path / "image").mkdir()
    refused(write_folder(changed, tmp_path / "image"), complaint, caplog)


def refused(source: Path, complaint: str, caplog: pytest.LogCaptureFixture) -> None:
    target = source.parent / "bundle"
    assert main(["import-ranked", str(source), "--output", str(target)]) == 2
    said = caplog.messages[-1]
    assert re.search(complaint, said), said
    assert "\n" not in said
    assert str(source.parent / ".import-") not in said
    assert sorted(path.name for path in source.parent.iterdir()) == [source.name]
    assert not Path("/tmp/import-ranked-was-here").exists()


def test_hostile_networks_and_plans_are_refused(files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changed = dict(files)
    networks = lookalike.mednext_files(4, lookalike.MEDNEXT, lookalike.PATCH)
    hostile = {"plans.pkl": pickle.dumps({"transpose_forward": Hostile()})}
    changed[f"{HOME}/{MEDNEXT_ZIP}"] = lookalike.zipped({**networks, **hostile}, MEDNEXTS)
    refused(write_folder(changed, tmp_path / "image"), "plans.pkl: found posix.system in it", caplog)
    hostile = {"fold_1/model_final_checkpoint.model": lookalike.saved({"state_dict": Hostile()})}
    changed[f"{HOME}/{MEDNEXT_ZIP}"] = lookalike.zipped({**networks, **hostile}, MEDNEXTS)
    refused(
        write_folder(changed, tmp_path / "image"), "fold_1/model_final_checkpoint.model: found posix.system", caplog
    )


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", contents: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(contents)
    return info, contents


def with_members(layer: bytes, *members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO(layer)
    with tarfile.open(fileobj=file, mode="a") as archive:
        for info, contents in members:
            archive.addfile(info, io.BytesIO(contents))
    return file.getvalue()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (
            lambda files: with_members(tarred(files), member(f"{HOME}/{WEIGHTS}", contents=b"{}")),
            "there twice, expected a",
        ),
        (
            lambda files: with_members(
                tarred({name: raw for name, raw in files.items() if not name.endswith(WEIGHTS)}),
                member(f"{HOME}/{WEIGHTS}", tarfile.SYMTYPE, "/etc/passwd"),
            ),
            "weights_cv.json: found a link, expected a file",
        ),
        (
            lambda files: with_members(
                tarred({name: raw for name, raw in files.items() if not name.endswith(WEIGHTS)}),
                member(f"{HOME}/{WEIGHTS}", tarfile.FIFOTYPE),
            ),
            "weights_cv.json: found a device, a pipe",
        ),
        (lambda files: tarred(files)[:-20000], "damaged, or was cut off|damaged or cut off"),
        (lambda files: lookalike.docker_old([b"\x28\xb5\x2f\xfd" + bytes(100), tarred(files)]), "zstd.*crane export"),
        (lambda _: b"\x28\xb5\x2f\xfd" + bytes(100), "zstd"),
        (lambda _: b"no image at all", "damaged or cut off"),
        (lambda _: b"", "damaged|cut off"),
        (lambda files: gzip.compress(lookalike.docker_old(layers_of(files)))[:-5000], "damaged or cut off"),
        (
            lambda files: lookalike.docker_old(layers_of(files)).replace(b"KMeans", b"kmeans"),
            "found sha256 .*, expected .*: it is damaged or was altered",
        ),
        (
            lambda files: lookalike.oci(layers_of(files), packed=False).replace(b"KMeans", b"kmeans"),
            "found sha256 .*, expected .*: it is damaged or was altered",
        ),
        (lambda _: tarred({"manifest.json": b'[{"Config": "c", "Layers": ["../x"]}]'}), "found nothing there"),
        (lambda _: tarred({"manifest.json": b'[{"Layers": []}, {"Layers": []}]'}), "found 2 images, expected one"),
        (lambda _: tarred({"index.json": b"{}", "oci-layout": b"{}"}), "found no image's manifest"),
    ],
)
def test_broken_and_hostile_images_are_refused_in_one_line(
    make: Callable[[Files], bytes], complaint: str, files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "image.tar"
    source.write_bytes(make(files))
    refused(source, complaint, caplog)


def test_names_that_lead_elsewhere_are_read_past(files: Files, bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "image.tar"
    escapes = [f"../{HOME}/{WEIGHTS}", f"/{HOME}/{WEIGHTS}", f"x/../../{WEIGHTS}", ".wh.", f"{HOME}/.wh..wh.plnk"]
    source.write_bytes(with_members(tarred(files), *(member(name, contents=b"{}") for name in escapes)))
    assert main(["import-ranked", str(source), "--output", str(tmp_path / "bundle")]) == 0
    assert load_bundle(tmp_path / "bundle").manifest.files == load_bundle(bundle).manifest.files


def test_a_layer_that_old_docker_stored_once_is_followed(files: Files, bundle: Path, tmp_path: Path) -> None:
    """Two equal layers: the second is a link to the first, inside the archive."""
    layer = tarred(files)
    config = lookalike.configuration([layer, layer])
    manifest = [{"Config": f"{lookalike.sha(config)}.json", "Layers": ["a/layer.tar", "b/layer.tar"]}]
    stored = {
        "a/layer.tar": layer,
        f"{lookalike.sha(config)}.json": config,
        "manifest.json": json.dumps(manifest).encode(),
    }
    source = tmp_path / "image.tar"
    source.write_bytes(with_members(tarred(stored), member("b/layer.tar", tarfile.SYMTYPE, "../a/layer.tar")))
    assert main(["import-ranked", str(source), "--output", str(tmp_path / "bundle")]) == 0
    assert load_bundle(tmp_path / "bundle").manifest.files == load_bundle(bundle).manifest.files


def test_one_of_several_tasks_is_taken_by_name(files: Files, bundle: Path, tmp_path: Path) -> None:
    changed = dict(files)
    unpacked(OTHER, "plans.json", b"{}")(changed)
    changed[f"{HOME}/kmeans-cluster-artifacts/PEDS_cluster.pkl"] = b"never opened"
    words = ["import-ranked", str(write_folder(changed, tmp_path / "image")), "--output", str(tmp_path / "bundle")]
    assert main([*words, "--task", "BraTS-GLI"]) == 2
    assert main([*words, "--task", "BraTS-SSA"]) == 0
    assert load_bundle(tmp_path / "bundle").manifest.files == load_bundle(bundle).manifest.files


def test_an_unpacked_copy_beside_the_zip_is_no_second_model(files: Files, bundle: Path, tmp_path: Path) -> None:
    copies = lookalike.nnunet_files(lookalike.LABELS, lookalike.UNET, lookalike.PATCH)
    changed = {**files, **{f"tmp/{NNUNET}/{name}": raw for name, raw in copies.items()}}
    words = ["import-ranked", str(write_folder(changed, tmp_path / "image")), "--output", str(tmp_path / "bundle")]
    assert main(words) == 0
    assert load_bundle(tmp_path / "bundle").manifest.files == load_bundle(bundle).manifest.files
