"""Several sites, one model: what they agree on, MONAI's client with two of them, and NVFlare's simulator."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
from monai.utils import set_determinism
from torch import Tensor

from monai_mvreg.losses import GaussianLoss
from monai_mvreg.networks.multiscan import Covariates, TargetScaling
from monai_mvreg.share import federated
from tests.test_bundle import BUNDLE, KEY
from tests.test_bundle import TINY as BRIGHT
from tests.tiny_model import SETTINGS

# How many epochs there are, the federation says.
TINY: dict[str, Any] = {name: value for name, value in BRIGHT.items() if name != "epochs"} | {
    "columns#covariates": {"age": "number"},
    "device": "$torch.device('cpu')",
    "dropout": 0.0,
    "rounds": 4,
}
COHORTS = [(36, (45.0, 80.0)), (18, (20.0, 60.0))]  # patients, and their brightness
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Site:
    """One hospital: its patients, its settings and where its results go."""

    data: Path
    settings: Path
    results: Path

    def files(self, *presets: str) -> list[str]:
        return [*(str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", *presets)), str(self.settings)]

    @property
    def folders(self) -> dict[str, str]:
        names = {"dataset_dir": self.data, "output_dir": self.results, "model_dir": self.results}
        return {name: str(path) for name, path in names.items()}

    @property
    def federation(self) -> Path:
        return self.results / "federation.json"

    def workflow(self, *presets: str, **overrides: Any) -> ConfigWorkflow:
        given = {"bundle_root": str(BUNDLE), **self.folders, **overrides}
        return ConfigWorkflow(self.files(*presets), logging_file=False, workflow_type="train", **given)

    def summarise(self, *presets: str, **overrides: Any) -> str:
        flow = self.workflow(*presets, "site_summary", **overrides)
        flow.initialize()
        flow.run()
        return str(self.results / "summary.json")

    def algo(self, *presets: str) -> MonaiAlgo:
        algo = federated.site_algo(str(BUNDLE), self.files(*presets, "federated"), self.folders)
        algo.initialize({ExtraItems.CLIENT_NAME: self.data.parent.name})
        return algo

    def labels(self, fold: Sequence[int]) -> np.ndarray[Any, Any]:
        with (self.data / "cohort.csv").open(newline="", encoding="utf-8") as file:
            rows = {row["patient"]: row for row in csv.DictReader(file)}
        return np.array([float(row["target"]) for row in rows.values() if int(row["fold"]) in fold])


def make_site(folder: Path, patients: int, levels: tuple[float, float], **settings: Any) -> Site:
    """Patients in 3 folds with one to three scans; the target is the brightness, which differs between sites."""
    data = folder / "data"
    data.mkdir(parents=True)
    draw = np.random.default_rng(patients)
    rows = []
    for patient in range(patients):
        level = draw.uniform(*levels)
        for visit in range(1 + patient % 3):
            voxels = draw.normal(level, 5, (20, 18, 16)).astype(np.float32)
            nib.save(nib.Nifti1Image(voxels, np.diag([3.0, 3.0, 3.0, 1.0])), data / f"{len(rows):02d}.nii")
            row = {"patient": f"{KEY}-{patient}", "path": f"{len(rows):02d}.nii", "day": 100 * visit, "unit": "mL"}
            row |= {"time_to_event": f"{6 * (100 - level):.3f}", "event": int(patient % 4 > 0)}
            rows.append(
                row | {"target": f"{level:.3f}", "age": 40 + patient if patient % 4 else "", "fold": patient % 3}
            )
    with (data / "cohort.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "mine.yaml").write_text(yaml.safe_dump(TINY | settings))
    return Site(data, folder / "mine.yaml", folder / "results")


@pytest.fixture
def sites(tmp_path: Path) -> list[Site]:
    """A large site with bright scans and a small one with dark ones, which agreed on a scaling."""
    both = [make_site(tmp_path / name, *cohort) for name, cohort in zip("ab", COHORTS, strict=True)]
    for site in both:
        federated.join_sites([one.summarise() for one in both], str(site.federation))
    return both


def write_settings(path: str, **entries: Any) -> None:
    """Settings of a model as a site writes them."""
    Path(path).write_text(json.dumps({**SETTINGS, **entries}))


def copied(weights: Weights) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def average(parts: Sequence[Weights], patients: Sequence[int]) -> Weights:
    """FedAvg: weights of sites, weighed by their patients."""
    total = sum(patients)
    return {
        name: sum(part[name] * (count / total) for part, count in zip(parts, patients, strict=True))
        for name in parts[0]
    }


# ---- What sites agree on ---------------------------------------------------------------------------------------------


def test_joined_summaries_are_the_mean_and_spread_of_all_patients(sites: list[Site]) -> None:
    joined = json.loads(sites[0].federation.read_text())
    labels = np.concatenate([site.labels([1, 2]) for site in sites])
    assert joined["sites"] == 2 and joined["patients"] == len(labels) == 36
    assert joined["label"][0]["mean"] == pytest.approx(labels.mean(), rel=1e-6)
    assert joined["label"][0]["std"] == pytest.approx(labels.std(), rel=1e-6)
    assert joined["covariates"][0]["patients"] == 27  # a quarter is missing
    assert joined["unit"] == "mL" and joined["spatial_size"] == [16, 16, 16]


def test_what_leaves_a_site_names_no_patient_and_grows_with_no_patient(sites: list[Site]) -> None:
    found = [json.loads((site.results / "summary.json").read_text()) for site in sites]
    assert KEY not in json.dumps(found)
    assert [[len(summary[key]) for key in ("label", "covariates")] for summary in found] == [[1, 1], [1, 1]]


def test_fitting_to_the_stand_ins_is_fitting_to_all_patients(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    parts = [100 + 30 * torch.rand(rows, 3, generator=draw, dtype=torch.float64) for rows in (7, 50, 12)]
    parts[0][:, 1] = torch.nan  # one site knows nothing of it
    parts[1][2:5, 0] = torch.nan
    paths = []
    for number, part in enumerate(parts):
        paths.append(str(tmp_path / f"{number}.json"))
        write_settings(paths[-1])
        federated.add_summary(paths[-1], part[:, 2:], part)
    # Joining some first and the rest later comes to the same.
    federated.join_sites(paths[:2], str(tmp_path / "two.json"))
    federated.join_sites([str(tmp_path / "two.json"), paths[2]], str(tmp_path / "all.json"))
    everyone = torch.cat(parts)
    fitted, expected = Covariates(3), Covariates(3)
    fitted.fit(federated.stand_ins(str(tmp_path / "all.json"), "covariates"))
    expected.fit(everyone)
    torch.testing.assert_close(fitted.state_dict(), expected.state_dict())
    label = federated.stand_ins(str(tmp_path / "all.json"), "label")
    scaling, whole = TargetScaling(1), TargetScaling(1)
    scaling.fit(label)
    whole.fit(everyone[:, 2:])
    torch.testing.assert_close(scaling.state_dict(), whole.state_dict())
    scaling, whole = TargetScaling(2), TargetScaling(2)
    GaussianLoss().fit_scaling(scaling, label)
    GaussianLoss().fit_scaling(whole, everyone[:, 2:])
    torch.testing.assert_close(scaling.state_dict(), whole.state_dict())


def test_a_covariate_that_nobody_knows_changes_nothing_whatever_its_value(tmp_path: Path) -> None:
    path = str(tmp_path / "site.json")
    write_settings(path)
    federated.add_summary(path, torch.rand(9, 1), torch.full((9, 1), math.nan))
    federated.join_sites([path], str(tmp_path / "all.json"))
    covariates = Covariates(1)
    covariates.fit(federated.stand_ins(str(tmp_path / "all.json"), "covariates"))
    assert covariates(torch.tensor([[5.0], [-1e6]]))[:, 0].abs().max() < 1e-30


def test_a_mean_over_four_patients_does_not_leave_a_site(tmp_path: Path) -> None:
    write_settings(str(tmp_path / "site.json"))
    with pytest.raises(ValueError, match="at least 5 training patients, got 4"):
        federated.add_summary(str(tmp_path / "site.json"), torch.rand(4, 1), torch.rand(4, 0))


# ---- MONAI's client --------------------------------------------------------------------------------------------------


def test_two_sites_train_one_model_that_predicts_better_than_the_mean_at_both(sites: list[Site]) -> None:
    algos = [site.algo() for site in sites]
    patients = [len(algo.trainer.data_loader.dataset) for algo in algos]
    assert patients == [24, 12]
    starts = [copied(algo.get_weights().weights) for algo in algos]
    torch.testing.assert_close(starts[0], starts[1], rtol=0, atol=0)  # one seed, one scaling
    everyone = np.concatenate([site.labels([1, 2]) for site in sites])
    assert starts[0]["scaling.mean"].item() == pytest.approx(everyone.mean(), rel=1e-6)
    weights = starts[0]
    for _ in range(TINY["rounds"]):
        parts = []
        for algo in algos:
            algo.train(ExchangeObject(weights=copied(weights)))
            parts.append(copied(algo.get_weights().weights))
        # The sites went apart, but not in what they mean by a number.
        assert not torch.equal(parts[0]["head.weight"], parts[1]["head.weight"])
        weights = average(parts, patients)
    for name in ("scaling.mean", "scaling.std", "covariates.mean", "covariates.std"):
        torch.testing.assert_close(weights[name], starts[0][name])
    for site, algo in zip(sites, algos, strict=True):
        error = algo.evaluate(ExchangeObject(weights=copied(weights))).metrics["mae"]
        validated = site.labels([0])
        # Beside the mean of the site itself, which knows more than the mean of all.
        assert error < 0.7 * np.abs(validated - site.labels([1, 2]).mean()).mean()
        assert len(list(csv.DictReader((site.results / "history.csv").open()))) == TINY["rounds"]
        algo.finalize()


def test_one_site_and_one_round_are_an_ordinary_training(tmp_path: Path) -> None:
    site = make_site(tmp_path, 18, (20, 60), rounds=1, local_epochs=3)
    federated.join_sites([site.summarise(rounds=1)], str(site.federation))
    algo = site.algo()
    start = copied(algo.get_weights().weights)
    set_determinism(3)
    algo.train(ExchangeObject(weights=copied(start)))
    trained = copied(algo.get_weights().weights)
    # The same without any of it: fitted to its own patients, trained, validated after the last epoch.
    flow = site.workflow(epochs=3, val_interval=3)
    flow.initialize()
    for number, line in enumerate(flow.parser["run"]):
        if "fit" in line.partition("_")[0] or "covariates.fit" in line:
            flow.parser.get_parsed_content(f"run#{number}")
    torch.testing.assert_close(dict(flow.network_def.state_dict()), start, rtol=1e-6, atol=0)
    trainer = flow.trainer
    set_determinism(3)
    trainer.run()
    ordinary = dict(flow.network_def.state_dict())
    assert not torch.equal(ordinary["head.weight"], start["head.weight"])
    torch.testing.assert_close(trained, ordinary, rtol=1e-6, atol=1e-6)


# ---- What is mixed up ------------------------------------------------------------------------------------------------


def test_sites_with_other_settings_are_told_which(tmp_path: Path) -> None:
    sites = [make_site(tmp_path / "a", 18, (20, 60)), make_site(tmp_path / "b", 18, (20, 60), spatial_size=[16, 16, 8])]
    with pytest.raises(
        ValueError,
        match=r"b/results/summary.json: expected the settings of .*a/results/summary.json, these "
        r"differ: spatial_size \(there: \[16, 16, 16\], here: \[16, 16, 8\]\)$",
    ):
        federated.join_sites([site.summarise(encoder=TINY["encoder"]) for site in sites], str(tmp_path / "all.json"))


def test_sites_with_other_units_are_refused(tmp_path: Path) -> None:
    paths = []
    for unit in ("mL", "L"):
        paths.append(str(tmp_path / f"{unit}.json"))
        write_settings(paths[-1], unit=unit)
        federated.add_summary(paths[-1], torch.rand(9, 1), torch.rand(9, 0))
    with pytest.raises(ValueError, match=r"these differ: unit \(there: mL, here: L\)$"):
        federated.join_sites(paths, str(tmp_path / "all.json"))


def test_a_site_that_changed_its_network_after_agreeing_is_refused(sites: list[Site]) -> None:
    mean = {"_target_": "monai_mvreg.networks.pools.MeanPool", "size": "@embedding_size"}
    sites[1].settings.write_text(yaml.safe_dump(TINY | {"pool": mean}))
    with pytest.raises(RuntimeError) as error:
        sites[1].algo()
    assert str(error.value.__cause__).endswith("trained with: pool (trained: GatedAttentionPool, now: MeanPool)")


def test_a_site_without_what_was_agreed_on_is_refused(sites: list[Site]) -> None:
    sites[0].federation.unlink()
    with pytest.raises(RuntimeError) as error:
        sites[0].algo()
    assert "found no such file" in str(error.value.__cause__)


@pytest.mark.parametrize("name", ["scaling.mean", "scaling.std", "covariates.mean"])
def test_a_global_model_with_another_scaling_is_refused(sites: list[Site], name: str) -> None:
    algo = sites[1].algo()
    weights = copied(algo.get_weights().weights)
    weights[name] = weights[name] + 1
    for judged in (algo.train, algo.evaluate):
        with pytest.raises(ValueError, match=rf"scaling that the sites agreed on, got other \['{name}'\]"):
            judged(ExchangeObject(weights=copied(weights)))


def test_more_rounds_than_agreed_on_are_refused(tmp_path: Path) -> None:
    site = make_site(tmp_path, 18, (20, 60), rounds=1)
    federated.join_sites([site.summarise()], str(site.federation))
    algo = site.algo()
    weights = copied(algo.get_weights().weights)
    algo.train(ExchangeObject(weights=copied(weights)))
    with pytest.raises(ValueError, match="at most rounds x local_epochs = 1 epochs, got 2"):
        algo.train(ExchangeObject(weights=copied(weights)))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"rounds": 0}, "at least 1 of rounds and local_epochs, got 0 and 1"),
        ({"weight_averaging": 0.002}, "weight_averaging of 0"),
        ({"resume": True}, "cannot go on where it stopped"),
    ],
)
def test_settings_that_a_federation_cannot_follow_are_refused(
    tmp_path: Path, setting: dict[str, Any], told: str
) -> None:
    site = make_site(tmp_path, 18, (20, 60))
    federated.join_sites([site.summarise()], str(site.federation))
    with pytest.raises(RuntimeError) as error:
        site.workflow("federated", **setting).initialize()
    assert told in str(error.value.__cause__)


def test_no_summaries_and_other_files_are_no_federation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one site, got none"):
        federated.join_sites([], "unused.json")
    (tmp_path / "settings.json").write_text('{"unit": "mL"}')
    with pytest.raises(ValueError, match=r"settings.json: expected the summary of sites, got something else"):
        federated.stand_ins(str(tmp_path / "settings.json"), "label")


def test_an_argument_that_nvflare_would_cut_in_two_is_refused() -> None:
    pytest.importorskip("nvflare", reason='needs the extra "fl": pip install -e ".[fl]"')
    with pytest.raises(ValueError, match=r"without spaces for NVFlare, got \['my data'\]"):
        line = ["--dataset_dir", "my data"]
        federated.fedavg_recipe("one_site.py", "initial.pt", {"a": line}, rounds=1, metric="mae")


@pytest.mark.parametrize("preset", ["spread", "survival"])
def test_presets_of_the_bundle_are_federated_too(tmp_path: Path, preset: str) -> None:
    site = make_site(tmp_path, 18, (20, 60))
    federated.join_sites([site.summarise(preset)], str(site.federation))
    algo = site.algo(preset)
    start = copied(algo.get_weights().weights)
    std = site.labels([1, 2]).std()
    expected = {"spread": ([site.labels([1, 2]).mean(), math.log(std)], [std, 1.0]), "survival": ([0.0], [1.0])}
    for name, numbers in zip(("scaling.mean", "scaling.std"), expected[preset], strict=True):
        torch.testing.assert_close(start[name], torch.tensor(numbers), rtol=1e-5, atol=0, check_dtype=False)
    algo.train(ExchangeObject(weights=copied(start)))
    trained = algo.get_weights().weights
    assert not torch.equal(trained["head.weight"], start["head.weight"])
    metrics = algo.evaluate(ExchangeObject(weights=copied(trained))).metrics
    assert metrics.keys() == {"concordance" if preset == "survival" else "mae"}


# ---- NVFlare ---------------------------------------------------------------------------------------------------------


def code_of_the_docs(name: str) -> str:
    """The block of docs/federated.md that begins with the name of a file."""
    text = (BUNDLE.parent / "docs" / "federated.md").read_text(encoding="utf-8")
    return next(block.split("```")[0] for block in text.split("```python\n") if block.startswith(f"# {name}\n"))


def run_bundle(files: Sequence[str], where: Path, *arguments: str) -> None:
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        str(list(files)),
        "--bundle_root",
        "bundle",
    ]
    done = subprocess.run([*command, *arguments], cwd=where, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.slow
def test_the_job_of_the_docs_trains_two_sites_in_the_simulator_of_nvflare(tmp_path: Path) -> None:
    """As docs/federated.md says it, its two files word for word but for the number of rounds."""
    pytest.importorskip("nvflare", reason='needs the extra "fl": pip install -e ".[fl]"')
    (tmp_path / "bundle").symlink_to(BUNDLE)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(TINY | {"rounds": 2, "local_epochs": 2}))
    train, more = "bundle/configs/train.yaml", ["bundle/configs/federated.yaml", "mine.yaml"]
    names = ["hospital_a", "hospital_b"]
    sites = [make_site(tmp_path / name, *cohort) for name, cohort in zip(names, COHORTS, strict=True)]
    for name in names:
        folders = ("--dataset_dir", f"{name}/data", "--output_dir", f"{name}/results")
        run_bundle([train, "bundle/configs/site_summary.yaml", "mine.yaml"], tmp_path, *folders)
    federated.join_sites([str(site.results / "summary.json") for site in sites], str(tmp_path / "federation.json"))
    for name in names:
        (tmp_path / name / "models").mkdir()
        shutil.copy(tmp_path / "federation.json", tmp_path / name / "models")
    run_bundle([train, *more], tmp_path, "--federation_file", "federation.json", "--initial_file", "initial.pt")
    for file in ("one_site.py", "job.py"):
        (tmp_path / file).write_text(code_of_the_docs(file).replace("rounds=10", "rounds=2"))
    command = [sys.executable, "job.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert KEY not in done.stdout + done.stderr
    server = tmp_path / "runs/mvreg/server/simulate_job"
    start = torch.load(tmp_path / "initial.pt", weights_only=True)
    final = torch.load(server / "app_server/FL_global_model.pt", weights_only=True)["model"]
    assert final.keys() == start.keys() and not torch.equal(final["head.weight"], start["head.weight"])
    torch.testing.assert_close(final["scaling.mean"], start["scaling.mean"])
    rounds = [json.loads(line) for line in (server / "metrics/round_metrics.jsonl").read_text().splitlines()]
    assert [{site["name"]: site["weight"] for site in each["sites"]} for each in rounds] == 2 * [
        {"hospital_a": 24, "hospital_b": 12}
    ]
    for name, site in zip(names, sites, strict=True):
        folders = ("--dataset_dir", f"{name}/data", "--output_dir", f"{name}/results", "--model_dir", f"{name}/models")
        given = ("--run_id", "adopt", "--global_file", str(server / "app_server/FL_global_model.pt"))
        run_bundle([train, *more], tmp_path, *given, *folders)
        torch.testing.assert_close(
            dict(torch.load(tmp_path / name / "models/model.pt", weights_only=True)), dict(final)
        )
        run_bundle(["bundle/configs/evaluate.yaml", "mine.yaml"], tmp_path, *folders)
        metrics = json.loads((tmp_path / name / "results/metrics.json").read_text())["target"]
        assert metrics["patients"] == len(site.labels([0]))
        means = np.abs(site.labels([0]) - site.labels([1, 2]).mean()).mean()
        assert metrics["mae"]["value"] < 0.7 * means
