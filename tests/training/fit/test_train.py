"""From the configuration to nnU-Net's trainer: every value, and the weights that a training starts from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.errors import BundleError, UsageError
from training.bundles.freeze import all_folds
from training.config_file import load_config, settle_config
from training.data.datasets import CaseEntry, dataset_description, dataset_name, write_json
from training.data.stratify import kept_folds
from training.fit import devices
from training.fit.planning import ancestor_plans, model_plans
from training.fit.resident import targets
from training.fit.train import case_shares, load_ancestor, make_trainer, sources_of, stage_settings, write_splits
from training.fit.trainers import trainable_parameters

CONFIGS = Path(__file__).resolve().parents[3] / "training" / "configs"
PLANNED = CONFIGS.parents[1] / "weights" / "embedded" / "nnunet" / "plans.json"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes a trainer on a CPU without data: (configuration, model, stage) → trainer."""
    for name, folder in (("raw", "raw"), ("preprocessed", "preprocessed"), ("results", "trainings")):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / "nnunet" / folder))
    monkeypatch.setattr("training.fit.train.loss_weights", lambda model, *_: [model.loss_weights])
    monkeypatch.setattr("training.fit.train.case_shares", lambda *_: {"a": 1.0, "b": 1.0})

    def make(config, name, stage):
        model = config.model(name)
        stage_folder = "Dataset001_pretraining" if stage == "pretraining" else "Dataset002_finetuning"
        folder = tmp_path / "nnunet" / "preprocessed" / stage_folder
        folder.mkdir(parents=True, exist_ok=True)
        plans = model_plans(json.loads(PLANNED.read_text()), model) | {"dataset_name": folder.name}
        write_json(plans, folder / f"{name}.json")
        write_json(dataset_description(2), folder / "dataset.json")
        return make_trainer(config, tmp_path, stage, model, 0, device="cpu")

    return make


@pytest.mark.parametrize("name", ["nnunet", "mednext"])
def test_label_heads_train(made, name, monkeypatch):
    """A model of label heads has four outputs, and learns from the same batches as one of region heads."""
    monkeypatch.setattr("training.fit.train.loss_weights", lambda *_: [1.0, 2.0, 3.0])
    config = load_config(CONFIGS / "smoke.yaml")
    models = tuple(replace(model, heads="labels") for model in config.models)
    trainer = made(replace(config, models=models), name, "pretraining")
    # nnU-Net tells by a file how the cases are stored, which are not read here.
    cases = Path(trainer.preprocessed_dataset_folder)
    cases.mkdir()
    (cases / "a.b2nd").touch()
    torch.manual_seed(0)
    trainer.initialize()
    patch = trainer.configuration_manager.patch_size
    labels = torch.zeros(1, *patch, dtype=torch.int8)
    for label, start in ((2, 4), (1, 6), (3, 8)):
        labels[:, start:-start, start:-start, start:-start] = label
    scales = trainer._get_deep_supervision_scales()
    batch = {"data": torch.randn(1, 4, *patch) + labels[:, None], "target": targets(labels, scales)}
    assert trainer.network(batch["data"])[0].shape == (1, 4, *patch)
    trainer.network.train()
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.1
    trainer.network.eval()
    with torch.no_grad():
        found = trainer.validation_step(batch)
        with trainer._forward(batch["data"]):
            labels = trainer.network(batch["data"])[0].argmax(1)
    voxels = [int(batch["target"][0][:, region].sum()) for region in range(3)]
    np.testing.assert_array_equal(found["tp_hard"] + found["fn_hard"], voxels)
    assert found["tp_hard"][0] + found["fp_hard"][0] == int((labels > 0).sum())


def test_the_released_variant_has_label_heads_for_mednext(tmp_path):
    settle_config(CONFIGS / "paper.yaml", ["gli=a", "ssa=b"], tmp_path / "config.yaml", ["released"])
    config = load_config(tmp_path / "config.yaml")
    assert [(model.name, model.heads) for model in config.models] == [("nnunet", "regions"), ("mednext", "labels")]


@pytest.mark.parametrize("name", ["nnunet", "mednext"])
@pytest.mark.parametrize("stage", ["pretraining", "finetuning"])
def test_the_papers_values_reach_the_trainer(made, name, stage):
    trainer = made(load_config(CONFIGS / "paper.yaml"), name, stage)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (
        200,
        250,
        50,
    )
    assert trainer.configuration_manager.patch_size == [128, 128, 128]
    assert trainer.configuration_manager.batch_size == 2
    assert trainer.configuration_manager.spacing == [1.0, 1.0, 1.0]
    assert trainer.region_weights == ["inverse_frequency" if name == "mednext" else "uniform"]
    assert [len(region) for region in trainer.label_manager.foreground_regions] == [3, 2, 1]
    trainer.network = torch.nn.Conv3d(4, 3, 1)
    optimiser, schedule = trainer.configure_optimizers()
    group = optimiser.param_groups[0]
    assert isinstance(optimiser, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.01, 0.99, True, 3e-5)
    schedule.step(100)
    assert group["lr"] == pytest.approx(0.01 * 0.5**0.9)


def test_the_papers_networks_have_the_papers_sizes(made):
    from inference.predict.networks import build_network

    config = load_config(CONFIGS / "paper.yaml")
    for name, millions in (("nnunet", 31.2), ("mednext", 17.55)):
        trainer = made(config, name, "pretraining")
        with torch.device("meta"):
            network = build_network(trainer.configuration_manager.configuration["architecture"], 4, 3)
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_other_values_reach_the_trainer_too(made):
    config = load_config(CONFIGS / "smoke.yaml")
    trainer = made(config, "nnunet", "finetuning")
    trainer.network = torch.nn.Conv3d(4, 3, 1)
    optimiser, _ = trainer.configure_optimizers()
    assert isinstance(optimiser, torch.optim.AdamW)
    assert optimiser.param_groups[0]["lr"] == 0.001
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (1, 4)
    assert trainer.configuration_manager.patch_size == [32, 32, 32]


def test_from_scratch_is_fine_tuning_with_all_weights():
    model = load_config(CONFIGS / "beyond.yaml").model("nnunet")
    assert stage_settings(model, "finetuning").trainable == "decoder"
    assert stage_settings(model, "scratch") == replace(model.finetuning, trainable="all")


@pytest.mark.parametrize("name", ["nnunet", "mednext"])
def test_only_the_decoder_trains(embedded_bundle, name):
    network = network_of(embedded_bundle, name)
    count = len(list(network.parameters()))
    moving = trainable_parameters(network, "decoder")
    assert 0 < len(moving) < count
    frozen = [key for key, value in network.named_parameters() if not value.requires_grad]
    encoder = ("encoder.",) if name == "nnunet" else ("stem", "enc_block", "down_", "bottleneck", "dummy")
    assert all(key.startswith(encoder) for key in frozen)
    assert not [key for key, value in network.named_parameters() if key.startswith(encoder) and value.requires_grad]
    assert len(trainable_parameters(network, "all")) == count


def network_of(bundle, name):
    """The network that a training of the bundle's model makes, with its heads of deep supervision."""
    from inference.predict.networks import build_network

    plans = json.loads((bundle / name / "plans.json").read_text())
    return build_network(plans["configurations"]["3d_fullres"]["architecture"], 4, 3, deep_supervision=True)


@pytest.mark.parametrize("name", ["nnunet", "mednext"])
def test_a_training_starts_from_the_ancestors_weights_of_its_fold(embedded_bundle, name):
    from inference.bundle.store import load_bundle

    network = network_of(embedded_bundle, name)
    load_ancestor(network, str(embedded_bundle), name, 3)
    stored = next(model for model in load_bundle(embedded_bundle).models if model.name == name).tensors(3)
    state = network.state_dict()
    assert all(np.array_equal(state[key].numpy(), array) for key, array in stored.items())


def test_weights_of_another_network_are_refused(embedded_bundle):
    with pytest.raises(BundleError, match="does not fit"):
        load_ancestor(network_of(embedded_bundle, "mednext"), str(embedded_bundle), "nnunet", 0)


def test_a_fold_that_the_ancestor_lacks_is_refused(embedded_bundle):
    with pytest.raises(UsageError, match="no fold 7"):
        load_ancestor(network_of(embedded_bundle, "nnunet"), str(embedded_bundle), "nnunet", 7)


def test_a_site_trains_with_the_ancestors_plans(embedded_bundle):
    config = load_config(CONFIGS / "site.yaml")
    theirs = json.loads((embedded_bundle / "nnunet" / "plans.json").read_text())["configurations"]["3d_fullres"]
    ours = ancestor_plans(config.ancestor, config.model("nnunet"))["configurations"]["3d_fullres"]
    changed = {"data_identifier", "batch_size"}
    assert {key: value for key, value in ours.items() if key not in changed} == {
        key: value for key, value in theirs.items() if key not in changed
    }


def test_another_architecture_than_the_ancestors_is_refused():
    config = load_config(CONFIGS / "site.yaml")
    other = replace(config.model("nnunet"), architecture="MedNeXt")
    with pytest.raises(UsageError, match="is a PlainConvUNet"):
        ancestor_plans(config.ancestor, other)


def ancestor_with(folder, folds, patients):
    folder.mkdir()
    write_json({"folds": folds, "patients": patients}, folder / "folds.json")
    return replace(load_config(CONFIGS / "site.yaml"), ancestor=str(folder), folds=2)


def test_a_training_from_an_ancestor_is_made_from_its_manifest(tmp_path):
    """A run that starts from a bundle has no pretraining to ask for; another bundle is another training."""
    config = ancestor_with(tmp_path / "bundle", {}, {})
    prepared = tmp_path / "nnunet" / "preprocessed" / dataset_name("finetuning")
    prepared.mkdir(parents=True)
    write_json([{"train": [], "val": []}], prepared / "splits_final.json")
    write_json({}, prepared / "nnunet.json")
    found = []
    for version in ("1", "2"):
        write_json({"version": version}, tmp_path / "bundle" / "manifest.json")
        found.append(sources_of(config, tmp_path, "finetuning", "nnunet", 0))
    assert found[0]["plans"] == found[1]["plans"]
    assert found[0]["weights"] != found[1]["weights"]


def test_patients_that_the_ancestor_knows_keep_their_fold(tmp_path):
    config = ancestor_with(
        tmp_path / "bundle", {"old-000": 1, "older-000": 0}, {"old-000": "old", "older-000": "older"}
    )
    patients = {"old-001": "old", "new-000": "new"}
    assert kept_folds(config, patients) == {"old-001": 1}


def test_a_bundle_tells_the_folds_of_its_ancestors_and_who_always_trained(tmp_path):
    """Of the ancestor's three patients one has a second time point here, which trains in every fold."""
    config = ancestor_with(tmp_path / "bundle", {"a-000": 1, "b-000": 0}, {"a-000": "a", "b-000": "b"})
    write_json({"folds": {"new": 4}, "patients": {"new": "new"}}, tmp_path / "folds.json")
    write_json(
        [
            CaseEntry("new", "site", "new", ""),
            CaseEntry("b-001", "adult", "b", "", in_folds=False),
            CaseEntry("phantom", "phantom", "phantom", "", 7, in_folds=False),
        ],
        tmp_path / "cases.json",
    )
    found = all_folds(config, tmp_path)
    assert found["folds"] == {"a-000": 1, "new": 4}
    assert found["always_trained"] == ["b-001"]
    assert found["patients"] == {"a-000": "a", "b-000": "b", "b-001": "b", "new": "new"}
    write_json(found, tmp_path / "bundle" / "folds.json")
    with pytest.raises(UsageError, match="b-002: every network of the ancestor has learnt from this patient"):
        kept_folds(config, {"b-002": "b"})


def test_shares_of_sources_are_divided_among_their_cases(tmp_path):
    config = load_config(CONFIGS / "embedded.yaml")
    sources = {"a1": "ssa", "a2": "ssa", "a3": "ssa", "b1": "gli", "c1": "glioma", "c2": "glioma"}
    write_json([CaseEntry(case, source, case, "") for case, source in sources.items()], tmp_path / "cases.json")
    labels = tmp_path / "nnunet" / "raw" / dataset_name("finetuning") / "labelsTr"
    labels.mkdir(parents=True)
    for case in sources:
        (labels / f"{case}.nii.gz").touch()
    shares = case_shares(config, tmp_path, "finetuning")
    assert shares == pytest.approx({"a1": 0.2, "a2": 0.2, "a3": 0.2, "b1": 0.25, "c1": 0.075, "c2": 0.075})
    assert set(case_shares(load_config(CONFIGS / "smoke.yaml"), tmp_path, "finetuning").values()) == {1.0}


def test_shares_need_cases_that_are_resident(made, monkeypatch):
    monkeypatch.setattr("training.fit.train.case_shares", lambda *_: {"a": 1.0, "b": 2.0})
    with pytest.raises(UsageError, match="mednext: shares of sources need loading: resident"):
        made(load_config(CONFIGS / "smoke.yaml"), "mednext", "finetuning")


def test_one_pretraining_serves_all_folds_where_no_case_of_it_is_in_one():
    shared, own = load_config(CONFIGS / "embedded.yaml"), load_config(CONFIGS / "smoke.yaml")
    assert shared.is_shared("pretraining")
    assert not shared.is_shared("finetuning")
    assert [shared.start_fold(fold) for fold in range(3)] == [0, 0, 0]
    assert [own.start_fold(fold) for fold in range(3)] == [0, 1, 2]


def test_a_fold_without_a_case_is_refused(tmp_path):
    config = replace(load_config(CONFIGS / "smoke.yaml"), folds=3)
    entries = [CaseEntry(name, "phantom", name, "") for name in ("a", "b")]
    write_json(entries, tmp_path / "cases.json")
    write_json({"folds": {"a": 0, "b": 2}}, tmp_path / "folds.json")
    for stage in config.stages:
        labels = tmp_path / "nnunet" / "raw" / dataset_name(stage) / "labelsTr"
        labels.mkdir(parents=True)
        for name in ("a", "b"):
            (labels / f"{name}.nii.gz").touch()
    with pytest.raises(UsageError, match="fold 1 has no case"):
        write_splits(config, tmp_path)


def test_a_patient_whom_every_network_has_seen_is_refused(tmp_path):
    config = ancestor_with(tmp_path / "bundle", {"old-000": 3}, {"old-000": "old"})
    with pytest.raises(UsageError, match=r"old-001.*fold 3"):
        kept_folds(config, {"old-001": "old"})


JOB = """
import os, pathlib, sys
from training.fit.devices import own_gpu
with own_gpu(pathlib.Path(sys.argv[1])):
    sys.stdout.write(os.environ["CUDA_VISIBLE_DEVICES"] + "\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""


def test_jobs_on_one_machine_take_a_gpu_each(tmp_path):
    def begin():
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "4,7"}
        words = [sys.executable, "-c", JOB, str(tmp_path)]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    first = begin()
    assert first.stdout.readline() == "4\n"
    second = begin()
    assert second.stdout.readline() == "7\n"
    first.kill()
    first.wait()
    third = begin()
    assert third.stdout.readline() == "4\n"
    for job in (second, third):
        job.communicate("")


def test_what_a_scheduler_gave_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with devices.own_gpu(tmp_path), devices.own_gpu(tmp_path):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert not list(tmp_path.iterdir())
