"""What an evaluation does not show: what the model must not be used for, said from the patients that were seen."""

from __future__ import annotations

import pandas as pd

from monai_mvreg.report.page import Section, rounded, value

RESEARCH = "For research use only. This is not a medical device: nothing here may guide the care of a patient."


def must_not(table: pd.DataFrame, target: str, *, unit: str, time: bool) -> Section:
    """Name the uses that the evaluation does not support.

    Args:
        table: predictions of patients with a measured value, with ``scans`` and ``days`` where these are known.
        target: name of the column with the measured values.
        unit: its unit, ``"1"`` for none.
        time: true for a time to an event.
    """
    low, high = (value(float(end), unit) for end in (table[target].min(), table[target].max()))
    seen = f"followed for {low} to {high}" if time else f"with values from {low} to {high}"
    if "scans" in table:
        few, many = int(table["scans"].min()), int(table["scans"].max())
        seen += f", {few} scan{'s' * (few > 1)} each" if few == many else f", {few} to {many} scans each"
    if "days" in table:
        span = max(max(map(float, str(days).split(";"))) for days in table["days"])
        seen += f", {rounded(span)} days at most from the first scan to the last" if span else ", all of one day"
    alone = "A patient's number taken as certain: many lie further off than the mean error says."
    if time:
        alone = "Chances beyond the last horizon, or the median day of a patient: neither was judged."
    uses = [
        "Diagnosis, treatment, triage or follow-up of a patient, or any step that leads to these without a person.",
        f"Patients unlike the {len(table)} seen here ({seen}), and other hospitals, scanners or protocols.",
        "Groups that are marked as few or not shown at all under “Groups of patients”.",
        alone,
        "What a treatment would change, or why: the model says what goes together, not what causes what.",
        "A decision above or below a threshold: none was examined.",
    ]
    text = f"{RESEARCH} Above all it must not be used for:\n\n" + "\n".join(f"- {use}" for use in uses)
    return Section("What the model must not be used for", text)
