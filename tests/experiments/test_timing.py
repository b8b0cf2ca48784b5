"""Times to words: the largest share of an epoch decides the advice."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_mvreg.experiments.timing import Profile, Times, advise, as_table, write_profile

KINDS = {"LoadImaged": "read and decode", "Spacingd": "prepare", "RandAffined": "augment", "collate": "pack"}
KINDS |= {"waiting for the loader": "loader"}
STEPS = ["copy to the device", "forward: encoder", "forward: pool and head", "loss", "backward", "optimizer step"]
KINDS |= dict.fromkeys(STEPS, "step") | {name: name for name in ("validation", "handlers", "everything else")}


def profile(*, workers: int = 0, cores: int = 4, inside: dict[str, float] | None = None, **parts: float) -> Profile:
    """An epoch of ten seconds; what is not named goes to everything else."""
    spent = dict.fromkeys(KINDS, 0.0) | {name.replace("_", " "): seconds for name, seconds in parts.items()}
    spent = {("forward: encoder" if name == "encoder" else name): seconds for name, seconds in spent.items()}
    spent["everything else"] = 10 - sum(spent.values())
    nothing = Times(1.0, dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0))
    warm = Times(10.0, spent, dict.fromkeys(KINDS, 0.0) | (inside or {}))
    return Profile("cpu", workers, cores, KINDS, nothing, (warm,))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            profile(LoadImaged=6, encoder=2),
            ["loader is the bottleneck: 60 %", "4 s instead of 10 s", "--cache_rate 1.0"],
        ),
        (profile(RandAffined=6, encoder=2), ["smaller prob of RandAffined", "--workers 3 loads", "3 would keep up"]),
        (profile(RandAffined=7, encoder=0.5), ["--workers 4 loads", "14 would keep up", "there are 4 cores"]),
        (
            profile(waiting_for_the_loader=7, encoder=2, workers=2, inside={"RandAffined": 16, "collate": 2}),
            [
                "loader is the bottleneck: 70 %",
                "RandAffined takes 89 % of the 18 s",
                "--workers 4 loads",
                "9 would keep",
            ],
        ),
        (
            profile(encoder=6, backward=1, RandAffined=1),
            ["the bottleneck, as it should be: 70 %", "10 % is spent", "GPU"],
        ),
        (profile(validation=6, encoder=1), ["Validation is the bottleneck: 60 %", "--val_interval 5"]),
        (profile(handlers=6, encoder=1), ["Handlers are the bottleneck: 60 %"]),
        (profile(encoder=5, validation=3), ["as it should be: 50 %", "Validation takes 30 %"]),
    ],
)
def test_the_largest_share_decides_the_advice(found: Profile, words: list[str]) -> None:
    told = " ".join(advise(found))
    assert [word for word in words if word not in told] == [], told


def test_a_loader_that_keeps_up_gives_no_advice_about_it() -> None:
    told = " ".join(advise(profile(encoder=9, waiting_for_the_loader=0.1, workers=2, inside={"RandAffined": 9})))
    assert "--workers" not in told and "--cache_rate" not in told


def test_the_shares_of_the_table_add_up_to_all() -> None:
    table = as_table(profile(LoadImaged=2, encoder=5, workers=2, inside={"RandAffined": 3.0}))
    parts, whole = table.iloc[:-1], table.iloc[-1]
    assert parts["share [%]"].sum() == pytest.approx(whole["share [%]"]) == pytest.approx(100)
    assert parts["epoch 1 [s]"].sum() == pytest.approx(whole["epoch 1 [s]"]) == pytest.approx(10)
    assert whole["in workers [s]"] == 3


def test_the_page_has_a_row_for_each_part_that_took_time(tmp_path: Path) -> None:
    write_profile(profile(LoadImaged=2, encoder=5), tmp_path)
    page = (tmp_path / "profile.html").read_text()
    assert ">LoadImaged</th>" in page and ">Spacingd</th>" not in page and "<script" not in page
