"""The verbs of ``mvreg`` for a trained bundle that shall leave the house: pack, verify, export."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_mvreg.cli.bundle_folders import add_trained_options, bundle_of_model

if TYPE_CHECKING:
    from monai_mvreg.share.packing import PackFacts

# Everything else is imported inside the verbs: --help must not wait for torch.


def add_bundle_verbs(verbs: Any) -> None:
    """Add them to the parser of the command line."""
    pack = verbs.add_parser("pack", help="write a trained bundle as one file, with hashes")
    pack.add_argument("pack", type=Path, metavar="PACK", help="the file to write, such as model.zip")
    add_trained_options(pack)
    pack.add_argument("--json", action="store_true", help="print what is in it as JSON, and nothing else")
    pack.set_defaults(verb=_pack)

    verify = verbs.add_parser("verify", help="check a pack, say what of it is code, and unpack it")
    verify.add_argument("pack", type=Path, metavar="PACK", help="what mvreg pack wrote")
    verify.add_argument("--sha256", metavar="HASH", help="refuse a file of another hash than its makers told")
    verify.add_argument("--out", type=Path, metavar="FOLDER", help="write the checked bundle there, for --bundle")
    verify.add_argument("--json", action="store_true", help="print what is in it, every expression too, as JSON")
    verify.set_defaults(verb=_verify)

    export = verbs.add_parser("export", help="write a trained model for other programs, and compare it")
    add_trained_options(export)
    export.add_argument("--onnx", type=Path, metavar="FILE", help="for onnxruntime and others")
    export.add_argument(
        "--torchscript",
        type=Path,
        metavar="FILE",
        help="for torch without this package (torch has deprecated TorchScript: prefer ONNX)",
    )
    export.set_defaults(verb=_export)


def _pack(options: argparse.Namespace) -> None:
    from monai_mvreg.share.packing import pack_bundle

    bundle = bundle_of_model(options).resolve()
    _tell(pack_bundle(bundle, options.models or bundle / "models", options.pack), options)
    if not options.json:
        print(f"Written: {options.pack}. Tell who gets it the SHA-256 by another way, for mvreg verify --sha256.")


def _verify(options: argparse.Namespace) -> None:
    if options.sha256 is not None and not re.fullmatch(r"\s*[0-9a-fA-F]{64}\s*", options.sha256):
        raise ValueError(f"expected a SHA-256, 64 digits of 0 to 9 and a to f, got {options.sha256!r}")
    from monai_mvreg.share.packing import unpack_bundle, verify_bundle

    if options.out is not None:
        facts = unpack_bundle(options.pack, options.out, sha256=options.sha256)
    else:
        facts = verify_bundle(options.pack, sha256=options.sha256)
    _tell(facts, options)
    if options.json:
        return
    if options.sha256 is None:
        print("Hashes in a pack say that it is whole, not whose it is: compare the SHA-256, or give it by --sha256.")
    if options.out is not None:
        print(f"Unpacked: mvreg predict PATIENT --bundle {options.out}")


def _export(options: argparse.Namespace) -> None:
    from monai_mvreg.predict.predictor import Predictor
    from monai_mvreg.share.exporting import export_onnx, export_torchscript

    if options.onnx is None and options.torchscript is None:
        raise ValueError("expected a file to write, --onnx FILE or --torchscript FILE, got none")
    predictor = Predictor.from_bundle(bundle_of_model(options).resolve(), models=options.models)
    unit = "" if predictor.trained.survival else f" {predictor.trained.settings.unit}"
    for file, write in ((options.onnx, export_onnx), (options.torchscript, export_torchscript)):
        if file is not None:
            print(f"{file}: says what the model says, at most {write(predictor, file):.1g}{unit} apart on random scans")


def _tell(facts: PackFacts, options: argparse.Namespace) -> None:
    """Print what a pack holds."""
    import json
    from dataclasses import asdict

    if options.json:
        print(json.dumps(asdict(facts), indent=1))
        return
    size = sum(facts.files.values()) / 1e6
    lines = [
        f"{options.pack}: {len(facts.files)} files, {size:.1f} MB, each with the size and the hash of the manifest",
        f"SHA-256 of the pack: {facts.sha256}",
        f"{facts.name} {facts.version}: predicts {', '.join(facts.target)} [{facts.unit}]",
        f"networks: {len(facts.weights)}, SHA-256 of their tensors: {', '.join(facts.weights)}",
        f"packed with {', '.join(f'{name} {release}' for name, release in facts.versions.items())}",
        "",
        "Weights are tensors alone (safetensors). These files are code, run as Python when the bundle is used:",
    ]
    for name, expressions in facts.expressions.items():
        foreign = ", ".join(dict.fromkeys(facts.foreign[name]))
        if expressions or foreign:
            lines.append(f"  {name}: {len(expressions)} expressions{f'; calls {foreign}' if foreign else ''}")
    lines += [
        "mvreg reads configs/inference.yaml and every settings.json; monai.bundle all that it is given. A call of",
        "torch or MONAI can do harm too: take packs only from whom you trust. --json prints every expression.",
    ]
    for line in lines:  # a pack of somebody else may hold what a terminal would obey
        print("".join(sign if sign.isprintable() else "?" for sign in line))
