"""The provenance of a frozen bundle."""

from inference.bundle.manifest import DataSet
from training.bundles.freeze import _merged


def test_a_data_set_of_several_rounds_is_named_once_with_all_its_stages():
    terms = "terms; and more"
    found = [
        DataSet("a", 9, f"finetuning; {terms}"),
        DataSet("phantom", 6, "pretraining"),
        DataSet("a", 9, f"pretraining and finetuning; {terms}"),
        DataSet("a", 10, f"finetuning; {terms}"),
        DataSet("phantom", 6, "finetuning"),
        DataSet("theirs", 60, "trained by its authors; and tuned"),
    ]
    assert _merged(found) == (
        DataSet("a", 9, f"pretraining and finetuning; {terms}"),
        DataSet("phantom", 6, "pretraining and finetuning"),
        DataSet("a", 10, f"finetuning; {terms}"),
        DataSet("theirs", 60, "trained by its authors; and tuned"),
    )
