"""The items of TRIPOD+AI -> where a model card answers each, and what is left to ask its authors.

Topics are told in our words; the items, with explanations, are in the source.

Source: Collins et al., BMJ 2024. https://doi.org/10.1136/bmj-2023-078378
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pandas as pd

DETAILS, USE, NOT_USE = "Model details", "Intended use", "Out-of-scope uses"
TRAINING, EVALUATION, METRICS = "Training data", "Evaluation data", "Metrics"
FACTORS, RESULTS, ETHICS, CAVEATS = (
    "Factors",
    "Quantitative analyses",
    "Ethical considerations",
    "Caveats and recommendations",
)
REPRODUCE = "How to reproduce"


@dataclass(frozen=True)
class TripodItem:
    """One item.

    Args:
        number: ``5b``.
        topic: what it asks for, in short.
        where: title of the section of the card that answers it, as far as a run can tell; empty for none.
        question: what the authors alone know; empty where nothing is left.
    """

    number: str
    topic: str
    where: str = ""
    question: str = ""


ITEMS = (
    TripodItem("1", "Title", DETAILS, "name of the model, target population and outcome in one line"),
    TripodItem("2", "Abstract", "", "a summary after TRIPOD+AI for abstracts"),
    TripodItem("3a", "Health care context", "", "what the number is for, diagnosis or prognosis, and existing models"),
    TripodItem("3b", "Target population, purpose, users", USE, "for which patients, at which step of care, for whom"),
    TripodItem("3c", "Known inequalities in health", "", "between which groups of people the outcome or care differs"),
    TripodItem("4", "Objectives", USE, "development, evaluation or both"),
    TripodItem("5a", "Sources of data", "", "trial, cohort, registry or routine care, why, and how representative"),
    TripodItem("5b", "Dates of data", "", "first and last inclusion, end of follow-up: the run keeps days, no dates"),
    TripodItem("6a", "Setting", "", "kind, number and places of the centres"),
    TripodItem("6b", "Eligibility", "", "who was included and who was not"),
    TripodItem("6c", "Treatments", "", "treatments received, and how they were dealt with"),
    TripodItem("7", "Data preparation", DETAILS, "checks of quality before the table was made, and in which groups"),
    TripodItem("8a", "Outcome", TRAINING, "definition, time horizon, how and when it was measured, why this one"),
    TripodItem("8b", "Assessors of the outcome", "", "who they were, if it needs judgement"),
    TripodItem("8c", "Blinding for the outcome", "", "what the assessors of the outcome knew"),
    TripodItem("9a", "Choice of predictors", DETAILS, "why these scans and covariates"),
    TripodItem("9b", "Definition of predictors", FACTORS, "scanners, protocols, and how covariates were measured"),
    TripodItem("9c", "Assessors of predictors", "", "who they were, if it needs judgement"),
    TripodItem("10", "Sample size", TRAINING, "how it was arrived at, and why it is enough"),
    TripodItem("11", "Missing data", TRAINING, "patients and scans left out before the table was made, and why"),
    TripodItem("12a", "Use of the data, splits", TRAINING),
    TripodItem("12b", "Handling of predictors", DETAILS),
    TripodItem("12c", "Model, training, tuning, validation", REPRODUCE, "choices tried before this one"),
    TripodItem("12d", "Differences between clusters", FACTORS, "how hospitals or countries were dealt with"),
    TripodItem("12e", "Measures of performance", METRICS),
    TripodItem("12f", "Updating of the model", CAVEATS),
    TripodItem("12g", "How predictions are calculated", REPRODUCE),
    TripodItem("13", "Imbalance of classes", DETAILS),
    TripodItem("14", "Fairness", ETHICS, "what was done for it, and why"),
    TripodItem("15", "Output of the model", DETAILS),
    TripodItem("16", "Training against evaluation data", EVALUATION, "differences in setting, eligibility and outcome"),
    TripodItem("17", "Ethical approval", ETHICS, "committee, number, and consent or its waiver"),
    TripodItem("18a", "Funding", "", "sources, and the role of the funders"),
    TripodItem("18b", "Conflicts of interest", "", "of every author"),
    TripodItem("18c", "Protocol", "", "where it is, or that there was none"),
    TripodItem("18d", "Registration", "", "number, or that the study was not registered"),
    TripodItem("18e", "Sharing of data", "", "where the data are, and for whom"),
    TripodItem("18f", "Sharing of code", REPRODUCE, "where the code of the study is"),
    TripodItem("19", "Patients and public", "", "how they took part, or that they did not"),
    TripodItem("20a", "Flow of patients", TRAINING, "how many were screened, and why others were left out"),
    TripodItem("20b", "Characteristics of patients", TRAINING, "key dates, demographics and treatments not shown here"),
    TripodItem("20c", "Comparison with the training data", EVALUATION),
    TripodItem("21", "Numbers of patients and events", TRAINING),
    TripodItem("22", "The full model", REPRODUCE, "where the weights are, for whom, under which licence"),
    TripodItem("23a", "Performance, also of groups", RESULTS),
    TripodItem("23b", "Heterogeneity between clusters", RESULTS),
    TripodItem("24", "Results of updating", CAVEATS),
    TripodItem("25", "Interpretation", "", "what the results mean, with fairness and earlier studies in mind"),
    TripodItem("26", "Limitations", CAVEATS, "of the sample and the outcome, and what they do to the results"),
    TripodItem("27a", "Poor or missing input", NOT_USE, "what a user should do with scans of poor quality"),
    TripodItem("27b", "What is asked of users", USE, "skills needed, and what a user has to do with the input"),
    TripodItem("27c", "Next steps", "", "what research should follow, above all for other places"),
)
_EVALUATED = {EVALUATION, METRICS, RESULTS}


def check_answers(answers: Mapping[str, str]) -> dict[str, str]:
    """Refuse answers that belong to no item.

    Args:
        answers: number of the item -> what the authors say.

    Raises:
        ValueError: naming the keys that are no item, or an item without a text.
    """
    known = {item.number for item in ITEMS}
    found = {str(number): answer for number, answer in answers.items()}
    if wrong := sorted(set(found) - known):
        raise ValueError(f"answers: expected items of TRIPOD+AI such as 5b, got {', '.join(wrong)}")
    if empty := sorted(number for number, answer in found.items() if not str(answer or "").strip()):
        raise ValueError(f"answers: expected a text for each item, got none for {', '.join(empty)}")
    return {number: " ".join(str(answer).split()) for number, answer in found.items()}


def open_questions(answered: Collection[str]) -> list[TripodItem]:
    """Items that leave something to ask, but for the answered ones."""
    return [item for item in ITEMS if item.question and item.number not in answered]


def items_table(answered: Collection[str], *, evaluated: bool) -> pd.DataFrame:
    """Where each item is answered, or that it is open.

    Args:
        answered: items that the authors answered.
        evaluated: whether there is an evaluation in the card.
    """
    rows = []
    for item in ITEMS:
        places = [f"“{item.where}”"] if item.where and (evaluated or item.where not in _EVALUATED) else []
        if item.number in answered:
            places.append("“From the authors”")
        elif item.question:
            places.append(f"open: {item.question}")
        rows.append((item.number, item.topic, "; ".join(places) or "open: there is no evaluation"))
    return pd.DataFrame(rows, columns=["Item", "Topic", "Answer"])
