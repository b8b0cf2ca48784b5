from pathlib import Path

import pytest
from mistakes import mistake


def test_a_cross_validation_of_nothing_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(__file__).parents[2] / "bundle"
    arguments: list[object] = ["crossval", "--dataset_dir", tmp_path, "--out", tmp_path / "cv"]
    assert "found no configs/train.yaml: give --bundle" in mistake(capsys, *arguments, "--bundle", tmp_path)
    assert "cohort.csv" in mistake(capsys, *arguments, "--bundle", bundle)
    assert "expected --set NAME=VALUE, got 'epochs'" in mistake(
        capsys, *arguments, "--bundle", bundle, "--set", "epochs"
    )
    (tmp_path / "g.yaml").write_text("- a\n")
    compare = ["compare", tmp_path / "g.yaml", *arguments[1:], "--bundle", bundle]
    assert "expected settings, each with names" in mistake(capsys, *compare)
