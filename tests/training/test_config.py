"""Configurations: the committed ones are valid, and a wrong one says which key is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from inference.errors import UsageError
from training.config import TRAININGS
from training.config_file import load_config, settle_config
from training.fit.train import checkpoint_path

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"
SMOKE = CONFIGS / "smoke.yaml"


def altered(tmp_path, change):
    content = yaml.safe_load(SMOKE.read_text())
    change(content)
    path = tmp_path / "altered.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_configurations_are_valid(path):
    config = load_config(path)
    assert {model.name for model in config.models} == {"nnunet", "mednext"}
    for stage in config.stages:
        for source in config.dataset(stage).sources:
            assert config.source(source)


def test_the_defaults_are_the_papers_training():
    from training.config import ModelConfig

    model = ModelConfig("nnunet", "PlainConvUNet", {})
    optimiser = model.pretraining.optimiser
    assert (model.patch, model.pretraining.epochs, model.finetuning.epochs) == ((128, 128, 128), 200, 200)
    assert (optimiser.name, optimiser.learning_rate, optimiser.momentum, optimiser.weight_decay) == (
        "sgd",
        0.01,
        0.99,
        3e-5,
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(folds="five"), ["folds", '"five"', "a whole number"]),
        (lambda c: c.update(fold=5), ["fold: found an unknown key", "did you mean folds?"]),
        (lambda c: c.pop("models"), ["models: found nothing"]),
        (lambda c: c["models"][0].update(patch=[32, 32]), ["models[0].patch", "[32, 32]", "3 values"]),
        (lambda c: c["models"][1]["pretraining"].update(epochs=1.5), ["epochs", "1.5"]),
        (lambda c: c["sources"][0].update(folder="x"), ["either a folder or a number of phantoms"]),
        (lambda c: c.update(comparison={"scratch": ["unet"]}), ["'unet'", "nnunet, mednext"]),
        (lambda c: c.update(tuning={"groups": ["region"]}), ["groups[0]", '"region"', "components, confidence, ratio"]),
        (lambda c: c.update(tuning={"metric": 2025}), ["metric", "2025", "2023, 2024"]),
        (lambda c: c.update(tuning={"weights": "guess"}), ['"guess"', "paper, rank, score_share, search"]),
        (lambda c: c["bundle"].update(name="my bundle"), ["bundle.name", '"my bundle"', "letters"]),
        (lambda c: c["sources"][0].update(name="../x"), ["sources[0].name", '"../x"', "letters"]),
        (lambda c: c["models"][0].update(name="a;b"), ["models[0].name", '"a;b"', "letters"]),
        (lambda c: c["models"][1].update(name="NNUnet"), ["models", "different names"]),
        (lambda c: c["models"][0].update(precision="float8"), ['"float8"', "float32, bfloat16"]),
        (lambda c: c["models"][0].update(batch=0), ["models[0].batch", "0", "at least 1"]),
        (lambda c: c["models"][0].update(architecture="UNet"), ['"UNet"', "PlainConvUNet"]),
        (lambda c: c.update(folds=0), ["folds: found 0", "at least 2"]),
        (lambda c: c.update(finetuning={"sources": ["other"]}), ["'other'", "phantom"]),
        (lambda c: c.update(pretraining={"sources": []}), ["pretraining.sources", "one or more"]),
        (lambda c: c["subtypes"].update(variance=0), ["subtypes.variance", "above 0"]),
        (lambda c: c["models"][0]["pretraining"].update(optimiser={"name": "adam"}), ['"adam"', "adamw, sgd"]),
    ],
)
def test_a_wrong_key_is_named(tmp_path, change, words):
    with pytest.raises(UsageError) as caught:
        load_config(altered(tmp_path, change))
    assert all(word in str(caught.value) for word in words)


def test_tumours_are_mixed_by_the_resident_loader_alone(tmp_path):
    path = altered(tmp_path, lambda content: content["models"][0].update(mixing=0.3, loading="workers"))
    with pytest.raises(UsageError, match=r"nnunet: mixing 0.3 needs loading: resident, found workers"):
        load_config(path)


def test_no_two_trainings_share_a_folder(tmp_path):
    config = load_config(altered(tmp_path, lambda c: c.update(comparison={"scratch": ["nnunet", "mednext"]})))
    folders = [
        checkpoint_path(config, tmp_path, training, model, fold).parent
        for training in TRAININGS
        for model in ("nnunet", "mednext")
        for fold in range(2)
    ]
    assert len(set(folders)) == 12


def test_only_models_of_the_comparison_are_trained_from_scratch(tmp_path):
    config = load_config(altered(tmp_path, lambda c: c.update(comparison={"scratch": ["nnunet"]})))
    assert config.trainings("nnunet") == ("pretraining", "finetuning", "scratch")
    assert config.trainings("mednext") == ("pretraining", "finetuning")


def test_what_is_not_yaml_is_named(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: [")
    with pytest.raises(UsageError, match=r"broken\.yaml"):
        load_config(path)


def test_what_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "sixteen.yaml"
    path.write_bytes(SMOKE.read_text().encode("utf-16"))
    with pytest.raises(UsageError, match=r"sixteen\.yaml: cannot be read as YAML"):
        load_config(path)


def test_folders_are_relative_to_the_configuration(tmp_path):
    def change(content):
        content["sources"] = [{"name": "phantom", "folder": "cases"}]

    assert load_config(altered(tmp_path, change)).source("phantom").folder == str(tmp_path / "cases")


def settled(path, tmp_path, *variants):
    settle_config(path, [], tmp_path / "settled.yaml", variants)
    return load_config(tmp_path / "settled.yaml")


def test_a_variant_changes_what_it_names_and_nothing_else(tmp_path):
    text, released = (settled(CONFIGS / "paper.yaml", tmp_path, *names) for names in ((), ("released",)))
    assert text == load_config(CONFIGS / "paper.yaml")
    stages = [(model.name, stage) for model in text.models for stage in ("pretraining", "finetuning")]
    found = {key: [getattr(config.model(key[0]), key[1]) for config in (text, released)] for key in stages}
    epochs = {key: [stage.epochs for stage in both] for key, both in found.items()}
    assert epochs == {key: [200, 150 if key[1] == "finetuning" else 200] for key in stages}
    optimisers = {key: [stage.optimiser.name for stage in both] for key, both in found.items()}
    assert optimisers == {key: ["sgd", "adamw" if key[0] == "mednext" else "sgd"] for key in stages}
    rates = [found["mednext", "finetuning"][1].optimiser.learning_rate, text.model("mednext").finetuning.iterations]
    assert rates == [0.001, 250]
    assert (released.tuning, released.model("nnunet").size) == (text.tuning, text.model("nnunet").size)


def test_variants_add_up(tmp_path):
    both = settled(CONFIGS / "paper.yaml", tmp_path, "released", "published-weights")
    assert both.tuning.weights == "paper"
    assert both.tuning.profile == "paper"
    assert both.model("mednext").finetuning.epochs == 150


def test_an_unknown_variant_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(UsageError, match=r"--variant other: paper\.yaml has released, published-weights"):
        settled(CONFIGS / "paper.yaml", tmp_path, "other")
    with pytest.raises(UsageError, match=r"smoke\.yaml has no variants"):
        settled(SMOKE, tmp_path, "released")


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ({"small": {"folds": "two"}}, ["folds", '"two"']),
        ({"small": {"models": {"unet": {"batch": 1}}}}, ["variant small", "unet", "nnunet, mednext"]),
        ({"small": {"fold": {"x": 1}}}, ["fold: found an unknown key"]),
        (["small"], ["variants", "an object"]),
    ],
)
def test_a_wrong_variant_is_named_before_it_is_asked_for(tmp_path, variants, words):
    with pytest.raises(UsageError) as caught:
        load_config(altered(tmp_path, lambda c: c.update(variants=variants)))
    assert all(word in str(caught.value) for word in words)
