"""Checkpoints from outside become bundles that say what the networks say, or are refused by name."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.bundle.store import load_bundle
from inference.predict.networks import build_network, load_weights
from inference.predict.networks.mednext import MedNeXt
from inference.predict.networks.sizes import MedNeXtSize
from tests.inference.tiny import UNET, plans
from tests.training.bundles import lookalike
from training.bundles.checkpoints import Checkpoint, mednext_architecture
from training.cli import main

SIZE = MedNeXtSize(2, (1, 2, 1, 1, 1, 1, 1, 1, 2), (2, 3, 2, 2, 2, 2, 2, 3, 2))
CHANNELS = {"0": "FLAIR", "1": "T1", "2": "T1CE", "3": "T2"}
OF_SEQUENCES = [1, 2, 3, 0]
REGIONS = {"background": 0, "enhancing tumor": [3], "whole tumor": [1, 2, 3], "tumor core": [2, 3]}
LABELS = {"background": 0, "edema": 1, "NETC": 2, "ET": 3}


def dataset(labels: dict[str, object]) -> dict[str, object]:
    return {"channel_names": CHANNELS, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}


def write_mednext(folder: Path, labels: dict[str, object], folds: int = 2) -> list[torch.nn.Module]:
    """Checkpoints as mednextv1 writes them, with the losses as numpy's numbers; returns the networks."""
    (folder / "dataset.json").parent.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(dataset(labels)))
    networks = []
    for fold in range(folds):
        torch.manual_seed(fold)
        network = MedNeXt(SIZE, 3, 4, 3 if labels is REGIONS else 4, deep_supervision=True)
        contents = {
            "epoch": 7,
            "state_dict": OrderedDict({**network.state_dict(), "dummy_tensor": torch.ones(1)}),
            "optimizer_state_dict": torch.optim.AdamW(network.parameters()).state_dict(),
            "lr_scheduler_state_dict": None,
            "plot_stuff": ([np.mean([1.0, 2.0]), np.float32(3)], [np.float64(1)], [], []),
            "best_stuff": (None, np.float64(0.5), None),
        }
        path = folder / f"fold_{fold}" / "model_final_checkpoint.model"
        path.parent.mkdir()
        torch.save(contents, path)
        path.with_suffix(".model.pkl").write_bytes(b"never opened")
        networks.append(network.eval())
    return networks


def write_nnunet(
    folder: Path, network: torch.nn.Module | None = None, stored: dict[str, object] | None = None
) -> torch.nn.Module:
    """One fold as nnU-Net v2 writes it."""
    torch.manual_seed(0)
    network = network or build_network(UNET, 4, 3, deep_supervision=True).eval()
    stored = stored or plans(UNET)
    (folder / "fold_0").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(dataset(REGIONS)))
    (folder / "plans.json").write_text(json.dumps(stored))
    contents = {
        "network_weights": network.state_dict(),
        "current_epoch": 1,
        "init_args": {"plans": stored, "configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "logging": {"ema_fg_dice": [np.float64(0.5)]},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(contents, folder / "fold_0" / "checkpoint_final.pth")
    return network


def imported(target: Path, *words: object) -> int:
    return main(["import-checkpoints", "--orientation", "LPS", "--output", str(target), *map(str, words)])


@pytest.mark.parametrize(
    ("labels", "outputs"), [(REGIONS, [1, 2, 0]), (LABELS, [0, 2, 1, 3])], ids=["regions", "labels"]
)
def test_mednexts_say_the_same(labels: dict[str, object], outputs: list[int], tmp_path: Path) -> None:
    """Channels and outputs are in another order than a bundle's, and no plans were unpickled."""
    networks = write_mednext(tmp_path / "mednext", labels)
    assert imported(tmp_path / "bundle", "--mednext", tmp_path / "mednext", "--mednext-patch", 32, 32, 48) == 0
    bundle = load_bundle(tmp_path / "bundle")
    (model,) = bundle.models
    assert bundle.manifest.orientation == "LPS"
    assert model.heads == ("regions" if labels is REGIONS else "labels")
    assert model.folds == (0, 1)
    assert model.plans["configurations"]["3d_fullres"]["patch_size"] == [32, 32, 48]
    assert len(bundle.manifest.provenance.ancestry) == 2
    assert bundle.manifest.provenance.ancestry[1].startswith("mednext/fold_1/model_final_checkpoint.model sha256 ")
    scan = np.random.default_rng(0).normal(size=(4, 32, 32, 48)).astype(np.float32)
    for fold, network in enumerate(networks):
        theirs = np.empty_like(scan)
        theirs[OF_SEQUENCES] = scan
        ours = build_network(model.architecture, 4, len(outputs))
        load_weights(ours, model.tensors(fold))
        with torch.inference_mode():
            expected = network(torch.from_numpy(theirs)[None])[0][0].numpy()[outputs]
            found = ours(torch.from_numpy(scan)[None])[0].numpy()
        assert expected.std() > 0.01
        assert np.abs(found - expected).max() < 1e-5


def test_mednexts_without_a_dataset_are_told_by_their_plans(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_mednext(tmp_path / "mednext", LABELS, folds=1)
    assert imported(tmp_path / "expected", "--mednext", tmp_path / "mednext", "--mednext-patch", 48, 48, 48) == 0
    (tmp_path / "mednext" / "dataset.json").unlink()
    assert imported(tmp_path / "found", "--mednext", tmp_path / "mednext") == 2
    names = {number: name.lower() for number, name in enumerate(CHANNELS.values())}
    (tmp_path / "mednext" / "plans.pkl").write_bytes(lookalike.old_plans(48, modalities=names))
    assert imported(tmp_path / "found", "--mednext", tmp_path / "mednext") == 2
    assert "expected --mednext-outputs" in caplog.messages[-1]
    assert imported(tmp_path / "found", "--mednext", tmp_path / "mednext", "--mednext-outputs", "ED", "NCR", "ET") == 0
    found, expected = (load_bundle(tmp_path / name) for name in ("found", "expected"))
    assert found.manifest.files == expected.manifest.files
    assert [model.averaging for model in found.models] == ["probabilities"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"transpose_forward": [2, 0, 1]}, "transpose_forward: found .2, 0, 1., expected 0, 1, 2"),
        ({"modalities": {0: "t1", 1: "t1c", 2: "t2", 3: "CT"}}, "channel names: found .*CT"),
        ({"normalization_schemes": {0: "CT"}}, "normalization_schemes: found .*CT.*expected nonCT"),
        ({"plans_per_stage": {0: {}, 1: {}}}, "plans_per_stage: found .*expected one stage"),
    ],
)
def test_old_plans_that_cannot_be_followed_are_refused(
    changes: dict[str, object], complaint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_mednext(tmp_path / "mednext", LABELS, folds=1)
    (tmp_path / "mednext" / "dataset.json").unlink()
    (tmp_path / "mednext" / "plans.pkl").write_bytes(lookalike.old_plans(48, **changes))
    words = ["--mednext", tmp_path / "mednext", "--mednext-outputs", "NCR", "ED", "ET"]
    assert imported(tmp_path / "bundle", *words) == 2
    assert re.search(complaint, caplog.messages[-1]), caplog.messages[-1]


@pytest.mark.parametrize("family", ["PlainConvUNet", "ResidualEncoderUNet", "BatchNorm"])
def test_plans_of_before_nnunet_2_4_are_completed(family: str, tmp_path: Path) -> None:
    """As nnU-Net's own conversion does; a trainer's batch norm is known by its tensors."""
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    old = {
        "UNet_class_name": "PlainConvUNet" if family == "BatchNorm" else family,
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "num_pool_per_axis": [2, 2, 2],
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "conv_kernel_sizes": [[3, 3, 3]] * 3,
    }
    stored = plans(UNET)
    section = stored["configurations"]["3d_fullres"]
    del section["architecture"]
    section |= old
    built = ConfigurationManager(copy.deepcopy(section)).configuration["architecture"]
    built["network_class_name"] = built["network_class_name"].replace("residual_unet", "unet")
    if family == "BatchNorm":
        built["arch_kwargs"]["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm3d"
    network = build_network(built, 4, 3, deep_supervision=True).eval()
    write_nnunet(tmp_path / "n", network, stored)
    (tmp_path / "n" / "fold_0").rename(tmp_path / "n" / "fold_all")
    assert imported(tmp_path / "bundle", "--nnunet", tmp_path / "n") == 0
    (model,) = load_bundle(tmp_path / "bundle").models
    assert model.folds == (0,)
    assert model.architecture == built
    assert "fold_all/checkpoint" in load_bundle(tmp_path / "bundle").manifest.provenance.ancestry[0]


def test_several_models_of_one_family_make_one_bundle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        write_nnunet(tmp_path / name)
    words = ["--nnunet", tmp_path / "a", "--nnunet", tmp_path / "b"]
    assert imported(tmp_path / "bundle", *words, "--weights", 3, 1) == 0
    models = load_bundle(tmp_path / "bundle").models
    assert [(model.name, model.weight) for model in models] == [("nnunet", 0.75), ("nnunet2", 0.25)]
    assert imported(tmp_path / "other", *words, "--weights", 1) == 2
    assert "expected 2 numbers above 0" in caplog.messages[-1]


def test_a_published_mednext_is_told_by_its_tensors() -> None:
    table = json.loads((Path(__file__).parents[2] / "golden" / "mednext_v1.json").read_text())
    shapes = table["M_k3"]["state_dict"]
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    found = mednext_architecture(Checkpoint(Path("m.model"), {}, tensors))
    assert found["arch_kwargs"] == {"variant": "M", "kernel_size": 3}


Damage = Callable[[Path], None]


def in_checkpoint(change: Callable[[dict], None]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "fold_0" / "checkpoint_final.pth"
        contents = torch.load(path, weights_only=False)
        change(contents)
        torch.save(contents, path)

    return damage


def of_kind(change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    def changed(contents: dict) -> None:
        contents["network_weights"][STEM] = change(contents["network_weights"][STEM])

    return in_checkpoint(changed)


def in_json(file: str, change: Callable[[dict], None]) -> Damage:
    def damage(folder: Path) -> None:
        value = json.loads((folder / file).read_text())
        change(value)
        (folder / file).write_text(json.dumps(value))

    return damage


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch /tmp/import-checkpoints-was-here",)


STEM = "encoder.stages.0.0.convs.0.conv.weight"
CONFIGURATION = "3d_fullres"


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda f: (f / "fold_0" / "checkpoint_final.pth").unlink(), "checkpoint_final.pth: is missing"),
        (lambda f: (f / "fold_0").rename(f / "fold_x"), "found fold_x, expected fold_0"),
        (lambda f: (f / "plans.json").unlink(), "plans.json"),
        (lambda f: (f / "dataset.json").unlink(), "dataset.json"),
        (lambda f: (f / "fold_0" / "checkpoint_final.pth").write_bytes(b"nothing"), "checkpoint_final.pth: found"),
        (
            lambda f: (f / "fold_0" / "checkpoint_final.pth").write_bytes(pickle.dumps(Hostile())),
            "checkpoint_final.pth: found",
        ),
        (
            in_checkpoint(lambda c: c.update(more=Hostile())),
            "found posix.system in it, expected numbers and texts",
        ),
        (in_checkpoint(lambda c: c.pop("network_weights")), "found neither network_weights nor state_dict"),
        (in_checkpoint(lambda c: c["network_weights"].pop(STEM)), f"missing {re.escape(STEM)}"),
        (in_checkpoint(lambda c: c["network_weights"].update(surprise=torch.ones(1))), "superfluous surprise"),
        (
            in_checkpoint(lambda c: c["network_weights"].update({STEM: torch.ones(4, 5, 3, 3, 3)})),
            r"found shape \(4, 5, 3, 3, 3\), expected \(4, 4, 3, 3, 3\)",
        ),
        (in_checkpoint(lambda c: c["network_weights"][STEM].fill_(torch.nan)), "values that are not finite"),
        (in_checkpoint(lambda c: c.update(inference_allowed_mirroring_axes=None)), "mirroring_axes: found None"),
        (in_checkpoint(lambda c: c["init_args"].update(configuration="2d")), "configuration '2d' is absent"),
        (in_json("plans.json", lambda p: p["configurations"]["3d_fullres"].update(batch_size=9)), "found other plans"),
        (
            in_json("plans.json", lambda p: p.update(image_reader_writer="NibabelIOWithReorient")),
            "expected --orientation RAS",
        ),
        (in_json("plans.json", lambda p: p["configurations"]["3d_fullres"].pop("architecture")), "found no architect"),
        (of_kind(lambda t: t.to_sparse()), "found a tensor that is sparse, expected one of float16"),
        (of_kind(lambda t: t.to(torch.float8_e4m3fn)), "found a tensor that is float8_e4m3fn"),
        (of_kind(lambda t: torch.quantize_per_tensor(t, 1.0, 0, torch.qint8)), "found"),
        (of_kind(lambda t: torch.empty(t.shape, device="meta")), "found"),
        (of_kind(lambda t: t.to(torch.complex64)), "found a tensor that is complex64"),
        (of_kind(lambda t: t.double() * 1e300), "not finite, or not in float32"),
        (in_json("dataset.json", lambda d: d["channel_names"].update({"1": "CT"})), "expected t1n, t1c, t2w and t2f"),
        (
            in_json("dataset.json", lambda d: d["channel_names"].update({"10": d["channel_names"].pop("3")})),
            "channel names: found .*'10': .*as 0 to 3",
        ),
        (in_json("dataset.json", lambda d: d["channel_names"].update({"1": "T2"})), "expected t1n, t1c, t2w and t2f"),
        (in_json("dataset.json", lambda d: d["labels"].update({"tumor core": [4, 5]})), "expected WT, TC, ET"),
        (in_json("dataset.json", lambda d: d.update(labels={"0": "background"})), "in the order of the network"),
        (in_json("dataset.json", lambda d: d.update(labels={"background": 0, "liver": 1})), "expected NCR, ED and ET"),
    ],
)
def test_what_is_off_is_refused_in_one_line(
    damage: Damage, complaint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_nnunet(tmp_path / "n")
    damage(tmp_path / "n")
    assert imported(tmp_path / "bundle", "--nnunet", tmp_path / "n") == 2
    assert re.search(complaint, caplog.messages[-1]), caplog.messages[-1]
    assert "\n" not in caplog.messages[-1]
    assert not (tmp_path / "bundle").exists()
    assert not Path("/tmp/import-checkpoints-was-here").exists()
