"""A trained model and its evaluation -> a model card, as HTML and as Markdown, filled only from the files of the run.

The headings are those of model cards, and a table says where each item of TRIPOD+AI is answered. What no file says is
not invented: the card asks the authors, who may answer in a separate file.

Source: Mitchell et al., FAT* 2019. https://doi.org/10.1145/3287560.3287596
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monai_mvreg.cache.atomic import atomic_write_text
from monai_mvreg.cache.typed_json import read_json
from monai_mvreg.report import tripod
from monai_mvreg.report.card_data import UNRECORDED, RunRecord, evaluation_data, read_record, training_data, whose
from monai_mvreg.report.evaluation import evaluation_sections
from monai_mvreg.report.page import RESEARCH, Section, as_markdown, must_not, rounded, write_report
from monai_mvreg.report.settings_in_words import part_in_words, resolve, steps_in_words
from monai_mvreg.report.survival import survival_sections
from monai_mvreg.results.calibration import Baseline
from monai_mvreg.results.units import readable_unit
from monai_mvreg.trained.weights import read_weights, weights_hash

_RESULTS = "The sections from here to “Ethical considerations”, as in the report of the evaluation."
_log = logging.getLogger(__name__)
# Training settings that a reader looks for, in this order.
_LEARNING = (
    "loss#_target_",
    "epochs",
    "batch_size",
    "max_scans",
    "learning_rate",
    "encoder_learning_rate",
    "weight_decay",
    "optimizer#_target_",
    "schedule#_target_",
    "max_gradient_norm",
    "weight_averaging",
    "dropout",
    "patience",
    "val_interval",
    "metric",
    "seed",
    "validation_folds",
    "test_folds",
    "amp",
    "bfloat16",
)


def write_card(
    models: str | Path,
    out: str | Path,
    *,
    evaluation: str | Path | None = None,
    metadata: str | Path | None = None,
    answers: str | Path | None = None,
) -> Path:
    """Write a model card as ``MODEL_CARD.md`` and, with the same content, as ``model_card.html``.

    Args:
        models: the folder of the trained model, with ``settings.json``, ``model.pt`` and its other files.
        out: the folder to write to; it is made if it does not exist.
        evaluation: the output folder of an evaluation or a cross-validation, with ``predictions.csv`` and
            ``metrics.json``; None: the card says that there was none.
        metadata: ``metadata.json`` of the bundle; None: the card asks the authors for name, version and intended use.
        answers: YAML, number of an item of TRIPOD+AI -> answer of the authors: ``5b: "2011 to 2019"``.

    Returns:
        The path of the Markdown file.

    Raises:
        FileNotFoundError: if a folder lacks a required file.
        ValueError: if an answer belongs to no item, or a file is not what it should be.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_card("study/models", folder).read_text("utf-8").splitlines()[0]
        '# Model card: growth'
    """
    out = Path(out)
    evaluation, metadata, answers = (None if one is None else Path(one) for one in (evaluation, metadata, answers))
    run = read_record(Path(models), evaluation=evaluation, metadata=metadata, answers=answers)
    title = f"Model card: {run.metadata.get('name', ', '.join(run.target))}"
    sections = _sections(run)
    out.mkdir(parents=True, exist_ok=True)
    write_report(out / "model_card.html", title=title, sections=sections)
    path = out / "MODEL_CARD.md"
    atomic_write_text(path, as_markdown(sections, title=title, pictures="model_card.html"))
    _log.info("model card: %s; %d questions are left to its authors", path, len(tripod.open_questions(run.answers)))
    return path


def _sections(run: RunRecord) -> list[Section]:
    results = _results(run)
    evaluated = bool(results)
    sections = [
        _details(run),
        _use(run),
        _out_of_scope(run),
        Section(tripod.FACTORS, _factors(run)),
        training_data(run),
        evaluation_data(run),
        Section(tripod.METRICS, _metrics(run)),
        Section(tripod.RESULTS, _RESULTS if evaluated else "There is no evaluation: how good it is, is not known."),
        *results,
        Section(tripod.ETHICS, _ethics(run)),
        Section(tripod.CAVEATS, _caveats(run)),
        _reproduce(run),
    ]
    topics = {item.number: item.topic for item in tripod.ITEMS}
    if run.answers:
        said = "\n".join(f"- {number}, {topics[number].lower()}: {text}" for number, text in run.answers.items())
        sections.append(Section("From the authors", said))
    left = tripod.open_questions(run.answers)
    asked = "\n".join(f"- {item.number}, {item.topic.lower()}: {item.question}" for item in left)
    text = "No file of the run knows these, and nothing here is guessed. Numbers are items of TRIPOD+AI.\n\n" + asked
    sections += [Section("To be filled in by the authors", text)] if left else []
    text = (
        "TRIPOD+AI (Collins et al., BMJ 2024, doi.org/10.1136/bmj-2023-078378): where each item is answered in this "
        "card. The headings are those of model cards (Mitchell et al., FAT* 2019, doi.org/10.1145/3287560.3287596)."
    )
    return [*sections, Section("TRIPOD+AI", text, table=tripod.items_table(run.answers, evaluated=evaluated))]


def _details(run: RunRecord) -> Section:
    settings, training, meta = run.settings, run.training, run.metadata
    unit = f" in {words}" if (words := readable_unit(settings.unit)) else ""
    said = ", ".join(run.target[:1]) if run.survival else ", ".join(run.target) + unit
    output = f"for each patient: {said}"
    if run.survival:
        days = [key.removeprefix("auc_") for key in run.metrics.get(run.target[0], {}) if key.startswith("auc_")]
        output = f"for each patient a log risk for {said} (higher is sooner), and the chance of the event by a day"
        output += f" ({', '.join(days)})" if days else ""
    elif (run.models / "intervals.json").exists():
        output += ", with an interval that holds the value of 90 % of new patients of the same kind"
    versions = training.get("versions", {})
    digest = weights_hash(read_weights(run.models))
    changed = " (not those that the training wrote)" if training.get("weights", digest) != digest else ""
    parameters = training.get("parameters")
    parts = {**settings.own, **settings.entries}
    covariates, views = parts.get("columns#covariates"), parts.get("columns#views")
    rows = [
        ("Name", meta.get("name", UNRECORDED)),
        ("Version", meta.get("version", UNRECORDED)),
        ("Task", meta.get("task", UNRECORDED)),
        ("Output", output),
        ("Input", f"all scans of a patient, any number from one, {parts['channels']} channel(s) each"),
        ("Covariates", ", ".join(covariates) if covariates else "none"),
        ("Kinds of scans told apart", ", ".join(views) if views else "none"),
        ("Trained until", training.get("finished", UNRECORDED)),
        ("Encoder, for every scan", part_in_words(parts["encoder"], parts)),
        ("Pool, over the scans", part_in_words(parts["pool"], parts)),
        ("Balancing", "events are spread over the batches; none counts more" if run.survival else "none"),
        ("Parameters", f"{parameters['all']}, {parameters['learned']} of them learned" if parameters else UNRECORDED),
        ("Software", ", ".join(f"{name} {version}" for name, version in versions.items()) or UNRECORDED),
        ("SHA-256 of the weights", digest + changed),
        ("Authors of the bundle", meta.get("authors", UNRECORDED)),
    ]
    steps = [*steps_in_words(parts["grid"], parts), *steps_in_words(parts["intensity"], parts)]
    text = "What is done to every scan, in this order:\n\n" + "\n".join(f"- {step}" for step in steps)
    return Section(tripod.DETAILS, text, table=pd.DataFrame(rows, columns=["What", "Is"]))


def _use(run: RunRecord) -> Section:
    meta, kind = run.metadata, "a time to an event" if run.survival else "a number"
    said = [meta[name] for name in ("description", "intended_use") if meta.get(name)]
    text = [
        f"The model predicts {kind} ({', '.join(run.target)}) for a patient from all scans of the patient. {RESEARCH}",
        f"The bundle says: {' '.join(said)}" if said else "No purpose is recorded with the model.",
        "Intended users: researchers who can read the intervals and limits below. Which patients, which question and "
        "which users it was made for, the authors alone can say (items 3a to 4 below).",
    ]
    return Section(tripod.USE, "\n\n".join(text))


def _out_of_scope(run: RunRecord) -> Section:
    if run.known is not None:
        section = must_not(run.known, run.target[0], unit=run.unit, time=run.survival)
        return replace(section, title=tripod.NOT_USE)
    text = f"{RESEARCH} Without an evaluation there is no use in which the model was shown to hold."
    return Section(tripod.NOT_USE, text)


def _results(run: RunRecord) -> list[Section]:
    """The parts of the evaluation's report, but for what the card says elsewhere."""
    found: list[Section] = []
    if run.evaluation is None or run.table is None:
        return found
    if run.table.is_time_to_event:
        stored = run.metrics[run.target[0]]
        if "d_calibration_p" not in stored:
            return [_table_of(stored)]
        days = [float(key.removeprefix("auc_")) for key in stored if key.startswith("auc_")]
        baseline = read_json(Baseline, run.models / "survival.json")
        found = survival_sections(run.table, baseline, stored, horizons=days)
    else:
        for name in run.target:
            mean = run.training.get("patients", {}).get("training", {}).get("target", {}).get(name, {}).get("mean")
            known = (
                {}
                if mean is None or run.learned_from
                else {"Mean of the training patients": np.full(len(run.table), mean)}
            )
            parts = evaluation_sections(run.table, run.evaluation, name, baselines=known)
            several = len(run.target) > 1
            found += [replace(part, title=f"{name}: {part.title.lower()}") if several else part for part in parts]
    said_elsewhere = ("what the model must not be used for", "limits", "training")
    return [part for part in found if not part.title.lower().endswith(said_elsewhere)]


def _table_of(stored: Mapping[str, Any]) -> Section:
    """The metrics of a cross-validation of a time to an event, whose models have no curves in common."""
    rows = [
        (name.replace("_", " "), rounded(entry["value"]), f"{rounded(entry['low'])} to {rounded(entry['high'])}")
        for name, entry in stored.items()
        if isinstance(entry, Mapping) and None not in entry.values()
    ]
    text = f"Of {stored['patients']} patients with {stored['events']} events; what each measure is: docs/survival.md."
    return Section("Summary", text, table=pd.DataFrame(rows, columns=["Measure", "Value", "95 % interval"]))


def _metrics(run: RunRecord) -> str:
    measures = (
        "Size of the errors: mean absolute error, root mean squared error, and their share of the variance between "
        "patients (R²). Calibration: bias, slope, and the integrated calibration index (mean distance between a "
        "prediction and what is measured on average where it is made). Limits of agreement (Bland and Altman). "
        "Prediction intervals: how many patients they hold, and their width."
    )
    if run.survival:
        measures = (
            "Order: concordance (Harrell, Uno) and the AUC over time. Calibration: observed over expected events and "
            "the integrated calibration index at each horizon, the slope of the log risk, D-calibration. Both: the "
            "Brier score. What censoring hides is weighed in."
        )
    return (
        f"{measures}\n\nIntervals of 95 % are percentiles of 2,000 resamples of the patients (bootstrap). Groups of "
        "patients are compared by one permutation test for all of them. No threshold was chosen, so there is no "
        "sensitivity or specificity, and usefulness for decisions was not examined."
    )


def _factors(run: RunRecord) -> str:
    groups = run.table.groups if run.table is not None else {}
    told = ", ".join([*groups, "number of scans", "days from the first scan to the last", "fold"])
    saw = run.domain
    modalities = ", ".join(saw.get("modalities", [])) or UNRECORDED
    spacing = ", ".join(f"{rounded(low)} to {rounded(high)} mm" for low, high in saw.get("spacing", []))
    return (
        f"Patients: groups are told apart by {told}, as far as patients differ in them. Others, such as origin or "
        "comorbidity, are not known to the run.\n\nInstrumentation: DICOM modalities of the training scans: "
        f"{modalities}; spacing, from the finest axis to the coarsest: {spacing or UNRECORDED}. Makers and models of "
        "scanners are not recorded; name their column as a subgroup to tell them apart.\n\nEnvironment: hospitals, "
        "protocols and years are known only as far as columns of the table tell them."
    )


def _ethics(run: RunRecord) -> str:
    groups = run.table.groups if run.table is not None else {}
    told = (
        f"Errors were told apart by {', '.join(groups)}"
        if groups
        else "Errors were not told apart by sex, age or origin"
    )
    return (
        "The model learned from images of patients. This card names no patient, and values of fewer than 5 patients "
        "are taken together. Whether the weights give away pictures of the training was not examined: share them as "
        f"carefully as the images.\n\n{told}. Nothing was done in the training to make errors alike between groups, "
        "and groups that no column names cannot be seen. Approval and consent: item 17 below."
    )


def _caveats(run: RunRecord) -> str:
    parts = run.training.get("patients", {})
    learned = parts.get("training", {}).get("patients")
    caveats = [
        f"{learned} patients were learned from: how good it would be with more is not known." if learned else "",
        f"One training, with seed {run.training['seed']}: another would give other numbers." if run.training else "",
        whose(run) if run.known is not None else "The model was not evaluated.",
        "All scans were prepared in one way; scans that were not, or of another kind, are outside what it learned.",
        "The model was not updated after its evaluation."
        + (" Chances come from curves fitted on the validation patients." if run.survival else ""),
        "Intervals speak of other patients of the same kind, not of other hospitals, scanners or protocols.",
        "Before any other use: evaluate it on patients of the place where it is to be used, of all groups there.",
    ]
    return "\n".join(f"- {caveat}" for caveat in caveats if caveat)


def _reproduce(run: RunRecord) -> Section:
    training = run.training
    text = (
        "Predictions are calculated from the files beside the weights, by inference.yaml of the bundle or by mvreg "
        "predict; settings.json holds the preprocessing and the network whole, training.json every setting of the "
        "training. The same table, folds, settings and software give the same training."
    )
    if not training:
        return Section(tripod.REPRODUCE, f"{text}\n\nThe training left no record of its settings (training.json).")
    settings, epochs = training["settings"], training["epochs"]
    listed = {
        name: [v for key, v in settings.items() if key.split("#")[0] == name and "#" in key] for name in _LEARNING
    }
    found = {name: settings.get(name, ", ".join(map(str, listed[name])) or None) for name in _LEARNING}
    told = {name: str(resolve(entry, settings)) for name, entry in found.items() if entry is not None}
    rows = [(name.removesuffix("#_target_"), entry) for name, entry in told.items() if not entry.startswith(("$", "@"))]
    rows += [
        ("epochs run", f"{epochs['run']}, the best was {epochs['best']}"),
        ("seconds", f"{rounded(training['seconds'])}, since the start or the last interruption"),
        ("device", f"{training['device']}, {training['processes']} process(es)"),
        ("hash of the cohort", str(settings.get("cohort", UNRECORDED))),
    ]
    return Section(tripod.REPRODUCE, text, table=pd.DataFrame(rows, columns=["Setting", "Value"]))
