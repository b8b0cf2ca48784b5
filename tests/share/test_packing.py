from __future__ import annotations

import hashlib
import io
import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from tiny_model import BUNDLE, write_model, write_scan, write_visit

from monai_mvreg.predict.prediction import PURPOSE, to_json
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.share.packing import pack_bundle, unpack_bundle, verify_bundle

KEY = "Erika Mustermann 1964"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a cross-validation with predictions of 30 patients, a pack of each, and a patient."""
    home = tmp_path_factory.mktemp("home")
    write_model(home / "models")
    draw = np.random.default_rng(0)
    for at, fold in enumerate("abc"):
        write_model(home / "cv" / f"fold-{fold}_seed-0" / "models", seed=at)
    known = pd.DataFrame({"patient": [f"{KEY} {at}" for at in range(30)], "fold": ["a", "b", "c"] * 10, "unit": "mL"})
    known["volume"] = draw.normal(777, 3, 30)
    known["volume_predicted"] = known["volume"] + draw.normal(0, 1, 30)
    known.assign(group_sex="F").to_csv(home / "cv" / "predictions.csv", index=False, float_format="%.7g")
    write_visit(home / "patient" / "first", date="20200101", seed=1)
    write_scan(home / "patient" / "scan_2020-03-01.nii.gz", seed=2)
    pack_bundle(BUNDLE, home / "models", home / "model.zip")
    pack_bundle(BUNDLE, home / "cv", home / "cv.zip")
    return home


def read(pack: Path) -> Files:
    with zipfile.ZipFile(pack) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(pack: Path, files: Files) -> Path:
    with zipfile.ZipFile(pack, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return pack


def with_manifest(files: Files) -> Files:
    """The files with a manifest that fits them, as who changes a pack would write it."""
    manifest = json.loads(files["manifest.json"])
    inside = {name: content for name, content in files.items() if name != "manifest.json"}
    manifest["files"] = {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in inside.items()}
    return {**inside, "manifest.json": json.dumps(manifest).encode()}


def refused(pack: Path) -> str:
    with pytest.raises(ValueError, match=rf"^{pack.name}: expected a pack of mvreg pack, got ") as found:
        verify_bundle(pack)
    return str(found.value).partition(", got ")[2]


# ---- What a pack is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("models", "pack"), [("models", "model.zip"), ("cv", "cv.zip")])
def test_an_unpacked_bundle_gives_the_identical_prediction(models: str, pack: str, home: Path, tmp_path: Path) -> None:
    unpack_bundle(home / pack, tmp_path / "bundle")
    here = Predictor.from_bundle(BUNDLE, models=home / models).predict_folder(home / "patient")
    there = Predictor.from_bundle(tmp_path / "bundle").predict_folder(home / "patient")
    assert to_json([there]) == to_json([here])
    assert here.numbers[0].low is not None


def test_the_same_bundle_gives_the_same_bytes(home: Path, tmp_path: Path) -> None:
    for models, pack in (("models", "model.zip"), ("cv", "cv.zip")):
        shutil.copytree(home / models, tmp_path / models)
        facts = pack_bundle(BUNDLE, tmp_path / models, tmp_path / pack)
        assert (tmp_path / pack).read_bytes() == (home / pack).read_bytes()
        assert facts.sha256 == hashlib.sha256((home / pack).read_bytes()).hexdigest()
        unpack_bundle(tmp_path / pack, tmp_path / f"{pack}.bundle")
        pack_bundle(tmp_path / f"{pack}.bundle", tmp_path / f"{pack}.bundle" / "models", tmp_path / "again.zip")
        assert (tmp_path / "again.zip").read_bytes() == (home / pack).read_bytes()


def test_a_pack_holds_what_a_prediction_needs_and_no_pickle(home: Path, tmp_path: Path) -> None:
    models = Path(shutil.copytree(home / "models", tmp_path / "models"))
    for name in ("checkpoint.pt", "predictions.csv", "events.out.tfevents.1"):
        (models / name).write_text(KEY)
    pack_bundle(BUNDLE, models, tmp_path / "model.zip")
    files = read(tmp_path / "model.zip")
    assert {name.partition("/")[0] for name in files} == {"LICENSE", "configs", "docs", "manifest.json", "models"}
    assert {name for name in files if name.startswith("models")} == {
        f"models/{name}"
        for name in ("domain.json", "intervals.json", "model.safetensors", "settings.json", "survival.json")
    }
    assert set(files) >= {f"configs/{path.name}" for path in (BUNDLE / "configs").iterdir()}
    assert not any(KEY.encode() in content for content in files.values())


def test_the_manifest_has_the_hash_and_the_size_of_every_file(home: Path) -> None:
    files = read(home / "model.zip")
    manifest = json.loads(files.pop("manifest.json"))
    for name, content in files.items():
        assert manifest["files"][name] == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert manifest["files"].keys() == files.keys() and manifest["purpose"] == PURPOSE
    assert manifest["versions"]["torch"].startswith(torch.__version__.partition("+")[0])


def test_of_a_cross_validation_only_folds_and_errors_of_patients_are_kept(home: Path) -> None:
    files = read(home / "cv.zip")
    kept = pd.read_csv(io.BytesIO(files["models/residuals.csv"]))
    known = pd.read_csv(home / "cv" / "predictions.csv")
    assert list(kept.columns) == ["fold", "volume"]
    for fold, mine in known.groupby("fold"):
        expected = sorted(mine["volume"] - mine["volume_predicted"])
        np.testing.assert_allclose(kept["volume"][kept["fold"] == fold], expected, rtol=1e-12)  # ordered by their size
    assert not any(KEY.encode() in content for content in files.values())
    assert sum(name.endswith(".safetensors") for name in files) == 3


def test_facts_name_model_weights_and_software(home: Path) -> None:
    facts = verify_bundle(home / "cv.zip")
    predictor = Predictor.from_bundle(BUNDLE, models=home / "cv")
    assert (facts.name, facts.version) == (predictor.model.name, predictor.model.version)
    assert facts.weights == predictor.model.weights
    assert (facts.target, facts.unit) == (("volume",), "mL")
    assert facts.files["models/residuals.csv"] == len(read(home / "cv.zip")["models/residuals.csv"])


def test_a_model_that_cannot_predict_is_not_packed(home: Path, tmp_path: Path) -> None:
    models = Path(shutil.copytree(home / "models", tmp_path / "models"))
    (models / "domain.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"domain\.json"):
        pack_bundle(BUNDLE, models, tmp_path / "model.zip")
    assert list(tmp_path.glob("model.zip*")) == []


def test_a_folder_with_files_and_a_killed_run_are_not_mixed_with_a_pack(home: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle.part" / "configs").mkdir(parents=True)
    (tmp_path / "bundle.part" / "configs" / "old.yaml").write_text("")
    unpack_bundle(home / "model.zip", tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "configs" / "old.yaml").exists()
    with pytest.raises(ValueError, match="expected a new or an empty folder"):
        unpack_bundle(home / "model.zip", tmp_path / "bundle")


# ---- What is code ----------------------------------------------------------------------------------------------------


def changed(home: Path, place: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A pack with other settings, and a manifest that fits."""
    files = read(home / "model.zip")
    settings = json.loads(files["models/settings.json"])
    change(settings)
    return write(place / "x.zip", with_manifest({**files, "models/settings.json": json.dumps(settings).encode()}))


def test_every_file_that_is_evaluated_is_named_with_what_is(home: Path) -> None:
    facts = verify_bundle(home / "model.zip")
    text = (BUNDLE / "configs" / "train.yaml").read_text()
    assert "$import ignite.distributed as idist" in facts.expressions["configs/train.yaml"]
    assert all(part in text for part in facts.expressions["configs/train.yaml"][:9])
    assert facts.expressions["models/settings.json"] == (
        json.loads(read(home / "model.zip")["models/settings.json"])["encoder"],
    )
    assert facts.foreign["configs/resnet50_mean.yaml"] == ("timm.create_model",)
    assert facts.foreign["configs/train.yaml"] == ()
    assert facts.expressions["configs/logging.conf"] == ("class=StreamHandler", "args=(sys.stdout,)")


def test_a_call_of_the_system_in_the_settings_is_shown_and_nothing_of_it_is_run(home: Path, tmp_path: Path) -> None:
    def change(settings: dict[str, Any]) -> None:
        settings["pool"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'ran'}"}
        settings["own"]["imports"] = ["$import os"]
        settings["grid"].append({"_target_": "monai.transforms.Lambdad", "func": ["%other.yaml#x", {"a": "$os.x()"}]})
        settings["loss"] = {"_target_": "torchevil.Loss"}

    facts = verify_bundle(changed(home, tmp_path, change))
    assert set(facts.foreign["models/settings.json"]) == {"os.system", "torchevil.Loss"}
    assert {"$import os", "$os.x()", "%other.yaml#x"} <= set(facts.expressions["models/settings.json"])
    unpack_bundle(tmp_path / "x.zip", tmp_path / "bundle")
    assert not (tmp_path / "ran").exists()


def test_a_call_of_what_python_itself_has_is_shown(home: Path, tmp_path: Path) -> None:
    def change(settings: dict[str, Any]) -> None:
        settings["pool"] = {"_target_": "open", "file": "x", "mode": "w"}

    assert verify_bundle(changed(home, tmp_path, change)).foreign["models/settings.json"] == ("open",)


def test_a_config_of_logging_is_read_as_python_reads_it(home: Path, tmp_path: Path) -> None:
    files = read(home / "model.zip") | {"configs/logging.conf": b"[handler_x]\nARGS=(sys.stdout,)\n"}
    facts = verify_bundle(write(tmp_path / "x.zip", with_manifest(files)))
    assert facts.expressions["configs/logging.conf"] == ("ARGS=(sys.stdout,)",)


def test_settings_are_code_so_only_trusted_models_may_be_predicted_with(home: Path, tmp_path: Path) -> None:
    # What docs/export.md says: this is what "trust" is about. Should it fail one day, the docs may promise more.
    def change(settings: dict[str, Any]) -> None:
        settings["encoder"] = f"$__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"

    unpack_bundle(changed(home, tmp_path, change), tmp_path / "bundle")
    with pytest.raises(Exception):  # noqa: B017  an encoder of None is no encoder
        Predictor.from_bundle(tmp_path / "bundle")
    assert (tmp_path / "ran").exists()


def test_aliases_of_yaml_are_read_once(home: Path, tmp_path: Path) -> None:
    bomb = "a0: &a0 [$x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
    files = with_manifest({**read(home / "model.zip"), "configs/bomb.yaml": bomb.encode()})
    assert verify_bundle(write(tmp_path / "x.zip", files)).expressions["configs/bomb.yaml"] == ("$x",)


# ---- What is refused -------------------------------------------------------------------------------------------------


def test_another_file_than_its_makers_told_is_refused(home: Path, tmp_path: Path) -> None:
    right = hashlib.sha256((home / "model.zip").read_bytes()).hexdigest()
    assert verify_bundle(home / "model.zip", sha256=f" {right.upper()} ").sha256 == right
    for check in (verify_bundle, lambda pack, sha256: unpack_bundle(pack, tmp_path / "out", sha256=sha256)):
        with pytest.raises(ValueError, match=f"expected the SHA-256 {'0' * 64}, got {right}"):
            check(home / "model.zip", sha256="0" * 64)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["models/model.safetensors", "configs/inference.yaml", "models/settings.json"])
def test_one_changed_byte_is_told_by_its_file(name: str, home: Path, tmp_path: Path) -> None:
    files = read(home / "model.zip")
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    assert refused(write(tmp_path / "x.zip", files)).startswith(f"another '{name}' than its manifest says")


@pytest.mark.parametrize("at", [0.2, 0.5, 0.99])
def test_a_pack_that_was_cut_or_damaged_on_its_way_is_refused(at: float, home: Path, tmp_path: Path) -> None:
    data = (home / "model.zip").read_bytes()
    place = int(at * len(data))
    (tmp_path / "x.zip").write_bytes(data[:place])
    refused(tmp_path / "x.zip")
    (tmp_path / "x.zip").write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
    refused(tmp_path / "x.zip")


@pytest.mark.parametrize(
    "name",
    [
        "../evil.yaml",
        "configs/../../evil.yaml",
        "/configs/evil.yaml",
        "docs/./evil.md",
        "docs//evil.md",
        "docs/C:evil.md",
        "docs/a\\b.md",
        "docs/..\\..\\evil.md",
        "docs/a\x1b[2Jb.md",
        "docs/a\x00.md",
        "configs/evil.py",
        "models/model.pt",
        "models/more/model.safetensors",
        "setup.sh",
        "configs/sub/a.yaml",
    ],
)
def test_a_file_in_another_place_is_refused(name: str, home: Path, tmp_path: Path) -> None:
    files = with_manifest({**read(home / "model.zip"), name: b"a: 1"})
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for other, content in files.items():
            entry = zipfile.ZipInfo("plain")
            entry.filename = entry.orig_filename = other  # ZipInfo cuts a name at its NUL
            archive.writestr(entry, content)
    told = refused(tmp_path / "x.zip")
    assert told.startswith(("a file that is none of a bundle", "a damaged one")) and "\x1b" not in told
    with pytest.raises(ValueError, match="expected a pack"):
        unpack_bundle(tmp_path / "x.zip", tmp_path / "out" / "bundle")
    assert list(tmp_path.rglob("evil*")) == [] and not (tmp_path / "out").exists()


def test_more_fewer_and_doubled_files_are_refused(home: Path, tmp_path: Path) -> None:
    files = read(home / "model.zip")
    assert "'docs/more.md'" in refused(write(tmp_path / "a.zip", {**files, "docs/more.md": b""}))
    fewer = {name: content for name, content in files.items() if name != "docs/README.md"}
    assert refused(write(tmp_path / "b.zip", fewer)) == "no 'docs/README.md', which its manifest names"
    assert refused(write(tmp_path / "c.zip", {**files, "Docs/readme.md": b""})) == "one name twice"
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for name, content in [*files.items(), ("models/settings.json", b"{}")]:
            archive.writestr(name, content)
    assert refused(tmp_path / "d.zip") == "one name twice"
    bare = {name: content for name, content in files.items() if name != "manifest.json"}
    assert refused(write(tmp_path / "e.zip", bare)) == "no manifest.json"
    rest = {name: content for name, content in files.items() if name != "models/settings.json"}
    assert refused(write(tmp_path / "f.zip", with_manifest(rest))).startswith("models without settings")


def test_a_link_a_folder_and_a_compressed_file_are_refused(home: Path, tmp_path: Path) -> None:
    files = with_manifest({**read(home / "model.zip"), "docs/x.md": b"../../secret"})
    kinds = {"link": (stat.S_IFLNK | 0o777) << 16, "folder": 0x10, "device": (stat.S_IFCHR | 0o644) << 16}
    for name, attributes in kinds.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for other, content in files.items():
                entry = zipfile.ZipInfo(other)
                entry.external_attr = attributes if other == "docs/x.md" else 0
                archive.writestr(entry, content)
        assert refused(tmp_path / f"{name}.zip") == "a link or a folder instead of a file: 'docs/x.md'"
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("docs/x.md", bytes(10_000_000))
    assert refused(tmp_path / "bomb.zip") == "a file that is compressed or encrypted: 'docs/x.md'"


def test_an_encrypted_file_and_a_name_behind_a_name_are_refused(home: Path, tmp_path: Path) -> None:
    data = bytearray(write(tmp_path / "x.zip", read(home / "model.zip")).read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    assert refused(tmp_path / "x.zip").startswith("a file that is compressed or encrypted")
    # Python reads the name up to its NUL, other programs do not.
    files = with_manifest({**read(home / "model.zip"), "docs/a.md": b""})
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            if name == "docs/a.md":
                entry.filename = entry.orig_filename = "docs/a.md\0.sh"
            archive.writestr(entry, content)
    assert refused(tmp_path / "y.zip") == "a file that is none of a bundle: 'docs/a.md'"


def test_entries_that_lie_in_each_other_are_refused(home: Path, tmp_path: Path) -> None:
    # Two names of the central directory for one and the same entry: Fifield's zip bomb without compression.
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("docs/a.md", bytes(1000))
        archive.filelist += archive.filelist * 9
    pack = (tmp_path / "x.zip").read_bytes()
    for at in range(9):  # other names, so that only the lie about their places is left
        place = pack.rfind(b"docs/a.md")
        pack = pack[:place] + f"docs/{at}.md".encode() + pack[place + 9 :]
    (tmp_path / "x.zip").write_bytes(pack)
    assert refused(tmp_path / "x.zip") == "something else beside its files"


def test_a_pack_behind_another_file_and_with_a_comment_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"#!/bin/sh\n" + (home / "model.zip").read_bytes())
    assert refused(tmp_path / "x.zip") == "something else beside its files"
    shutil.copy(home / "model.zip", tmp_path / "y.zip")
    with zipfile.ZipFile(tmp_path / "y.zip", "a") as archive:
        archive.comment = b"x"
    assert refused(tmp_path / "y.zip") == "something else beside its files"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", b"[]"),
        ("manifest.json", b'{"format": "monai-mvreg pack 2"}'),
        ("manifest.json", b'{"format": "monai-mvreg pack 1", "files": []}'),
        ("manifest.json", b"[" * 100_000),
        ("manifest.json", b"\xff"),
        ("configs/metadata.json", b"{}"),
        ("models/settings.json", b"[" * 100_000),
        ("models/settings.json", b'{"target": 1, "unit": "mL"}'),
        ("configs/train.yaml", b"a: [b"),
        ("configs/train.yaml", b"!!python/object/apply:os.system [touch ran]"),
        ("models/model.safetensors", b"\xff" * 40),
        ("models/model.safetensors", safetensors.torch.save({"a": torch.ones(9)})[:-1]),
    ],
)
def test_a_hostile_file_is_refused_in_one_sentence(name: str, content: bytes, home: Path, tmp_path: Path) -> None:
    files = {**read(home / "model.zip"), name: content}
    told = refused(write(tmp_path / "x.zip", files if name == "manifest.json" else with_manifest(files)))
    assert len(told) < 500


def test_what_is_no_zip_and_what_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"no zip")
    assert refused(tmp_path / "x.zip").startswith("a damaged one")
    with pytest.raises(FileNotFoundError):
        verify_bundle(tmp_path / "absent.zip")


def test_a_file_that_is_too_large_is_not_even_read(tmp_path: Path) -> None:
    with (tmp_path / "x.zip").open("wb") as file:
        file.truncate(2**33 + 1)
    with pytest.raises(ValueError, match="expected a pack of at most 8589934592 bytes, got 8589934593"):
        verify_bundle(tmp_path / "x.zip")
