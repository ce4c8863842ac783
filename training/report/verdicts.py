"""Which arm is better, by how much, and whether the cases show it: sentences made from numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.evaluation.systems import Difference, Systems, differences
from training.report.arms import MEAN, PRETRAINED, SCRATCH, Arm, model_title


@dataclass(frozen=True)
class Question:
    """Two arms, and why they are compared."""

    topic: str
    """What the difference between them is."""
    system: Arm
    """The arm that should be better."""
    against: Arm
    """The other."""


@dataclass(frozen=True)
class Verdict:
    """What the cases say to a question."""

    question: Question
    """The question."""
    difference: Difference
    """Lesion-wise Dice, mean over regions."""

    @property
    def shown(self) -> bool:
        """Whether the interval excludes zero."""
        return self.difference.low > 0 or self.difference.high < 0

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        per_case = np.array(self.difference.per_case)
        system, against, count = self.question.system.spoken, self.question.against.spoken, per_case.size
        if not per_case.any():
            return f"{_capital(system)} and {against} score the same in all {count} cases."
        mean, low, high = self.difference.mean, self.difference.low, self.difference.high
        more = "higher" if mean > 0 else "lower"
        numbers = (
            f"95 % interval {low:+.3f} to {high:+.3f}, Wilcoxon p = {self.difference.p_value:.3f}; "
            f"higher in {int((per_case > 0).sum())} of {count} cases, lower in {int((per_case < 0).sum())}"
        )
        if self.shown:
            return (
                f"{_capital(system)} scores {more} than {against} by {abs(mean):.3f}, and the interval excludes zero "
                f"({numbers})."
            )
        return (
            f"No difference is shown: {system} scores {abs(mean):.3f} {more} than {against} on average, "
            f"and the interval includes zero ({numbers})."
        )


def questions(arms: Sequence[Arm]) -> list[Question]:
    """What is asked of the arms that there are."""
    named = {arm.name: arm for arm in arms}
    ensemble, last = named["ensemble"], arms[-1]
    alone = arms[: arms.index(ensemble)]
    scratch = [arm for arm in alone if arm.name.endswith(SCRATCH)]
    models = [arm for arm in alone if not arm.name.endswith((SCRATCH, PRETRAINED))]
    against = {SCRATCH: "training from scratch", PRETRAINED: "pretraining alone"}
    asked = [
        Question(
            f"Pretraining and fine-tuning against {words}, {model_title(model.name)}",
            model,
            named[f"{model.name}{kind}"],
        )
        for kind, words in against.items()
        for model in models
        if f"{model.name}{kind}" in named
    ]
    if len(models) > 1:
        asked += [Question("The ensemble against each model alone", ensemble, model) for model in models]
    if last != ensemble:
        asked.append(Question("All of refinement against the ensemble as it is", last, ensemble))
    asked += [Question("The whole method against training from scratch", last, arm) for arm in scratch]
    return asked


def verdicts(systems: Systems, arms: Sequence[Arm]) -> list[Verdict]:
    """The answers of the cases."""
    found = {}
    for test in differences(systems):
        if (test.region, test.metric) == (MEAN, "lesionwise_dice"):
            # Pairs come as later minus earlier, and questions ask about later against earlier.
            found[test.system, test.against] = test
    return [Verdict(question, found[question.system.title, question.against.title]) for question in questions(arms)]


def _capital(text: str) -> str:
    """As the beginning of a sentence; names that begin small, such as nnU-Net, stay as they are."""
    return text if text.startswith("nnU-Net") else text[:1].upper() + text[1:]
