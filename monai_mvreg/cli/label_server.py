"""The verb of ``mvreg`` that starts MONAI Label with the app."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from monai_mvreg.cli.bundle_folders import add_trained_options, bundle_of_model

# Everything else is imported inside the verb: --help must not wait for torch.


def add_label_verb(verbs: Any) -> None:
    """Add it to the parser of the command line."""
    label = verbs.add_parser("label", help="serve a trained bundle by MONAI Label, for 3D Slicer and other clients")
    label.add_argument("--studies", required=True, metavar="PLACE", help="a folder of images or a DICOMweb address")
    add_trained_options(label)
    label.add_argument(
        "--kept", type=Path, metavar="FOLDER", help="keeps what was seen of each scan for the next visit"
    )
    label.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    label.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: there is no authentication")
    label.add_argument("--port", type=int, default=8000, help="default 8000")
    told = "what the server writes of patients; by default a folder that is deleted at the end"
    label.add_argument("--work", type=Path, metavar="FOLDER", help=told)
    label.add_argument("others", nargs="*", metavar="-- OPTION", help="more options of monailabel start_server")
    label.set_defaults(verb=_label)


def _label(options: argparse.Namespace) -> None:
    from monai_mvreg.label.serve import prepare_work, run_label_server

    if not options.studies.startswith(("http://", "https://")) and not Path(options.studies).is_dir():
        raise FileNotFoundError(f"expected a folder of images or a DICOMweb address, got {options.studies}")
    bundle = bundle_of_model(options)
    if not (bundle / "configs").is_dir():
        raise FileNotFoundError(f"expected a bundle in {bundle}, found no configs in it: give --bundle")
    if not (models := options.models or bundle / "models").is_dir():
        raise FileNotFoundError(f"expected a trained model in {models}, there is no such folder: give --models")
    with socket.socket() as probe:  # before all that takes time
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            raise OSError(f"expected a free port, got {options.host}:{options.port}: {error.strerror}") from None
    conf = {"bundle": bundle.resolve(), "device": options.device}
    conf |= {name: place.resolve() for name in ("models", "kept") if (place := getattr(options, name)) is not None}
    # Also when a service manager ends it, the folder with patients' data must go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    passing = nullcontext(options.work) if options.work else tempfile.TemporaryDirectory(prefix="mvreg-label-")
    with passing as place:
        work = Path(place).resolve()
        arguments = ["start_server", "--app", str(prepare_work(work)), "--studies", options.studies]
        arguments += ["--host", options.host, "--port", str(options.port), "--verbose", "ERROR"]
        arguments += ["--log_config", str(work / "logging.json")]
        arguments += [part for name, value in conf.items() for part in ("--conf", name, str(value))]
        run_label_server([*arguments, *options.others])
