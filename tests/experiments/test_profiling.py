"""The profile of a training: known delays are found in the right part with the right seconds, and give the advice."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import time
from collections.abc import Hashable, Mapping, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.transforms import MapTransform, Randomizable, RandomizableTrait
from torch import Tensor, nn

from monai_mvreg.cli.main import main
from monai_mvreg.experiments.profiling import Stopwatch, _time_transform, profile_training
from monai_mvreg.experiments.timing import Profile, advise
from monai_mvreg.training.batches import collate_scans
from tests.experiments.test_crossval import BUNDLE, plan_of, study

PATIENTS, BATCHES = 12, 3  # of training; 6 validate


class SlowLoadd(MapTransform):
    """Prepares in a known time."""

    def __init__(self, keys: str, seconds: float) -> None:
        super().__init__(keys)
        self.seconds = seconds

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        time.sleep(self.seconds)
        return data


class RandSlowd(SlowLoadd, Randomizable):
    """Augments in a known time."""


class SlowEncoder(nn.Flatten):
    """Encodes in a known time, and goes back in another."""

    def __init__(self, forth: float, back: float = 0.0) -> None:
        super().__init__()
        self.forth, self.back = forth, back
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        time.sleep(self.forth)
        embedding = super().forward(image) * self.scale
        if embedding.requires_grad:
            embedding.register_hook(lambda _: time.sleep(self.back))
        return embedding


class SlowLoss(nn.MSELoss):
    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        time.sleep(0.03)
        return super().forward(pred, target)


class SlowAdam(torch.optim.AdamW):
    def step(self, closure: Any = None) -> Any:
        time.sleep(0.07)
        return super().step(closure)


class SlowHandler:
    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: time.sleep(0.04))


def slow_collate(patients: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    time.sleep(0.06)
    return collate_scans(patients)


def slow(name: str, **values: Any) -> dict[str, Any]:
    return {"_target_": f"tests.experiments.test_profiling.{name}", **values}


def measured(tmp_path: Path, **settings: Any) -> Profile:
    return profile_training(plan_of(study(tmp_path / "data"), **settings), tmp_path / "out")


def near(seconds: float) -> Any:
    """A sleep lasts as long as asked for, and somewhat longer on a busy machine."""
    return pytest.approx(1.25 * seconds + 0.02, abs=0.25 * seconds + 0.02)


def test_every_delay_is_found_in_its_part_and_the_parts_make_up_the_epoch(tmp_path: Path) -> None:
    found = measured(
        tmp_path,
        encoder=slow("SlowEncoder", forth=0.05, back=0.08),
        loss=slow("SlowLoss"),
        **{"optimizer#_target_": "tests.experiments.test_profiling.SlowAdam"},
        augmentation=[slow("RandSlowd", keys="image", seconds=0.02)] * 2,
        **{
            "train#dataloader#collate_fn": slow("slow_collate", _mode_="callable"),
            "slow_handler": slow("SlowHandler"),
            "train#trainer#train_handlers": "$@train#handlers + [@slow_handler]",
            "validate#evaluator#val_handlers": "$@validate#handlers + [@slow_handler]",
        },
    )
    assert found.before.parts["LoadImaged"] > 0
    for epoch in found.epochs:
        assert sum(epoch.parts.values()) == pytest.approx(epoch.seconds, rel=0.01)
        parts = epoch.parts
        assert parts["forward: encoder"] == near(0.05 * BATCHES)
        assert parts["backward"] == near(0.08 * BATCHES)
        assert parts["loss"] == near(0.03 * BATCHES)
        assert parts["optimizer step"] == near(0.07 * BATCHES)
        assert parts["handlers"] == near(0.04 * BATCHES)
        assert parts["collate"] == near(0.06 * BATCHES)
        assert parts["RandSlowd 1"] == near(0.02 * PATIENTS)
        assert parts["RandSlowd 2"] == near(0.02 * PATIENTS)
        assert parts["validation"] == near((0.05 + 0.04) * 2)
        assert parts["LoadImaged"] == 0


def test_a_slow_loader_gives_the_advice_about_the_loader(tmp_path: Path) -> None:
    found = measured(tmp_path, augmentation=[slow("RandSlowd", keys="image", seconds=0.05)])
    told = " ".join(advise(found))
    assert told.startswith("The loader is the bottleneck: ") and re.search(r"RandSlowd takes (9\d|100) %", told)
    assert "a smaller prob of RandSlowd" in told and "cache_rate" not in told
    assert found.kinds["RandSlowd"] == "augment" and ("--workers" in told) == (found.cores > 1)


def test_with_workers_the_wait_is_in_the_epoch_and_the_work_beside_it(tmp_path: Path) -> None:
    slow_transform = slow("RandSlowd", keys="image", seconds=0.05)
    warm = measured(tmp_path, augmentation=[slow_transform], workers=2).epochs[-1]
    assert warm.workers["RandSlowd"] == near(0.05 * PATIENTS)
    assert warm.parts["RandSlowd"] == 0 and warm.parts["collate"] == 0 < warm.workers["collate"]
    assert 0.05 * PATIENTS / 2 * 0.5 < warm.parts["waiting for the loader"] < warm.seconds
    assert sum(warm.parts.values()) == pytest.approx(warm.seconds, rel=0.01)


def test_scans_that_are_prepared_again_give_the_advice_to_keep_them(tmp_path: Path) -> None:
    folder = study(tmp_path / "data")
    settings: dict[str, Any] = {"intensity": [slow("SlowLoadd", keys="image", seconds=0.03)], "cache_rate": 0.0}
    again = profile_training(plan_of(folder, **settings), tmp_path / "out")
    assert again.epochs[-1].parts["SlowLoadd"] == near(0.03 * PATIENTS)
    assert "--cache_rate 1.0 keeps them in memory, --cache_dir FOLDER on disk" in " ".join(advise(again))

    settings |= {"cache_dir": str(tmp_path / "kept"), "intensity": [slow("SlowLoadd", keys="image", seconds=0.04)]}
    once = profile_training(plan_of(folder, **settings), tmp_path / "out")
    first, second = (epoch.parts for epoch in once.epochs)
    assert first["SlowLoadd"] == near(0.04 * PATIENTS) and second["SlowLoadd"] == second["LoadImaged"] == 0
    assert 0 < second["CachedScand"] < 0.1 and "--cache_dir" not in " ".join(advise(once))


def test_a_slow_encoder_gives_the_advice_about_the_step_and_the_bundle_stays_as_it_is(tmp_path: Path) -> None:
    before = subprocess.run(["git", "status", "--ignored", "--short"], cwd=BUNDLE, capture_output=True).stdout
    folder = study(tmp_path / "data")
    (tmp_path / "slow.yaml").write_text(
        "encoder: {_target_: tests.experiments.test_profiling.SlowEncoder, forth: 0.2}\n"
    )
    arguments = ["profile", str(folder / "tiny.yaml"), str(tmp_path / "slow.yaml"), "--dataset_dir", str(folder)]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--bundle", str(BUNDLE)]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["profile.html", "profile.json"]
    stored = json.loads((tmp_path / "out/profile.json").read_text())
    assert stored["advice"][0].startswith("The step of the network is the bottleneck, as it should be: ")
    assert "'forward: encoder'" in stored["advice"][1]
    assert stored["epochs"][-1]["parts"]["forward: encoder"] == near(0.2 * BATCHES)
    page = (tmp_path / "out/profile.html").read_text()
    assert "data:image/svg+xml;base64," in page and stored["advice"][0] in page and "http" not in page
    assert subprocess.run(["git", "status", "--ignored", "--short"], cwd=BUNDLE, capture_output=True).stdout == before


def test_a_mistyped_setting_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = study(tmp_path / "data")
    arguments = ["profile", str(folder / "tiny.yaml"), "--dataset_dir", str(folder), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--bundle", str(BUNDLE), "--set", "worker=2"]) == 2
    assert "got 'worker': did you mean 'workers'?" in capsys.readouterr().err
    assert main([*arguments, "--bundle", str(BUNDLE), "--epochs", "0"]) == 2
    assert "at least one epoch to measure, got 0" in capsys.readouterr().err


def test_a_timed_transform_stays_what_it_is_and_counts_in_a_process_that_gets_it_by_pickle() -> None:
    watch = Stopwatch({"RandSlowd": "augment"}, 0, torch.device("cpu"))
    transform = RandSlowd("image", 0.02)
    _time_transform(transform, "RandSlowd", watch)
    sent = pickle.loads(ForkingPickler.dumps(transform))
    for one in (transform, sent):
        assert isinstance(one, RandomizableTrait) and type(one).__name__ == "RandSlowd"
        one({"image": 1})
    assert watch.take(1.0).parts["RandSlowd"] == near(0.04)


def test_a_part_inside_another_is_taken_off_it_and_validation_is_whole() -> None:
    watch = Stopwatch({"loader": "", "transform": "", "validation": ""}, 0, torch.device("cpu"))
    with watch.part("loader"):
        time.sleep(0.02)
        with watch.part("transform"):
            time.sleep(0.05)
    with watch.part("validation"), watch.part("transform"):
        time.sleep(0.03)
    parts = watch.take(1.0).parts
    assert [parts[name] for name in ("loader", "transform", "validation")] == [near(0.02), near(0.05), near(0.03)]
    assert set(watch.take(1.0).parts.values()) == {0.0}
