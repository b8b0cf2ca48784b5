"""Several sites -> one model: what ``monai.fl.client.MonaiAlgo`` and NVFlare lack for this bundle.

Averaging weights makes sense only if all sites mean the same by them, so the sites first agree on their settings and on
one mean and spread of targets and covariates: :func:`add_summary` at each site, :func:`join_sites` once for all.
With NVFlare, :func:`fedavg_recipe` is the job and :func:`main` one site of it; see ``docs/federated.md``.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor, nn

from monai_mvreg.cache.atomic import atomic_write, atomic_write_text
from monai_mvreg.trained.model_files import UNFINISHED
from monai_mvreg.trained.model_settings import OF_EVALUATION, read_settings, setting_differences

LEAST_PATIENTS = 5
"""A mean over fewer patients of a site says too much about one of them to leave it."""

_MOMENTS = ("label", "covariates")
_SCALING = {"scaling.mean", "scaling.std", "covariates.mean", "covariates.std"}


def add_summary(path: str, label: Tensor, covariates: Tensor) -> None:
    """Add to the settings of a site what the others need to know about its training patients.

    Args:
        path: what :func:`monai_mvreg.training.workflow.save_settings` wrote; number of patients, mean and standard
            deviation (over ``P``, in units of the table) are added.
        label: ``(P, K)``.
        covariates: ``(P, V)``, NaN where missing; ``V`` may be 0.

    Raises:
        ValueError: if a mean would be over fewer than :data:`LEAST_PATIENTS` patients.
    """
    summary = read_settings(Path(path)).content()
    summary |= {"sites": 1, "patients": len(label), "label": _moments(label), "covariates": _moments(covariates)}
    atomic_write_text(Path(path), json.dumps(summary, indent=1))


def _moments(rows: Tensor) -> list[dict[str, float]]:
    """Count, mean and standard deviation of every column of ``(P, K)``, without what is missing."""
    found = []
    for column in rows.double().T:
        known = column[column.isfinite()]
        if 0 < len(known) < LEAST_PATIENTS:
            raise ValueError(f"expected a mean over at least {LEAST_PATIENTS} training patients, got {len(known)}")
        mean, std = (known.mean().item(), known.std(unbiased=False).item()) if len(known) else (0.0, 0.0)
        found.append({"patients": len(known), "mean": mean, "std": std})
    return found


def join_sites(summaries: Sequence[str], path: str) -> None:
    """Join the summaries of all sites into the one file that each of them trains with.

    The mean and standard deviation are those of all patients together, exactly.

    Args:
        summaries: the files that the sites wrote.
        path: the file to write.

    Raises:
        ValueError: naming the settings in which sites differ, with both values, or if fewer than one summary is given.

    Source: Chan, Golub, LeVeque, Updating formulae for computing sample variances, 1982.
        https://doi.org/10.1007/978-3-642-51461-6_3
    """
    if not summaries:
        raise ValueError("expected the summary of at least one site, got none")
    sites, settings = [_read(summary) for summary in summaries], [read_settings(Path(file)) for file in summaries]
    for file, other in zip(summaries, settings, strict=True):
        if found := setting_differences(settings[0], other, OF_EVALUATION, labels=("there", "here")):
            raise ValueError(f"{file}: expected the settings of {summaries[0]}, these differ: {', '.join(found)}")
    joined: dict[str, Any] = settings[0].content()
    joined |= {name: sum(site[name] for site in sites) for name in ("sites", "patients")}
    joined |= {key: [_join(column) for column in zip(*(site[key] for site in sites), strict=True)] for key in _MOMENTS}
    atomic_write_text(Path(path), json.dumps(joined, indent=1))


def _join(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    count = sum(part["patients"] for part in parts)
    shares = [part["patients"] / max(count, 1) for part in parts]
    mean = sum(share * part["mean"] for share, part in zip(shares, parts, strict=True))
    squares = sum(
        share * (part["std"] ** 2 + (part["mean"] - mean) ** 2) for share, part in zip(shares, parts, strict=True)
    )
    return {"patients": count, "mean": mean, "std": squares**0.5}


def _read(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected what sites agreed on in {path}, found no such file: see docs/federated.md")
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    if not {"sites", "patients", *_MOMENTS} <= set(content):
        raise ValueError(f"{Path(path).name}: expected the summary of sites, got something else")
    return content


def stand_ins(path: str, key: str) -> Tensor:
    """Make two stand-in patients with the mean and the standard deviation of the patients of all sites.

    Whatever is fitted by mean and standard deviation to these two is fitted to all patients, without seeing one.

    Args:
        path: what :func:`join_sites` wrote.
        key: ``"label"`` or ``"covariates"``.

    Returns:
        ``(2, K)`` in float64: mean less and plus one standard deviation; NaN where nobody's value is known.
    """
    columns = _read(path)[key]
    mean, std = (torch.tensor([column[name] for column in columns], dtype=torch.float64) for name in ("mean", "std"))
    known = torch.tensor([column["patients"] > 0 for column in columns])
    return torch.stack([mean - std, mean + std]).masked_fill(~known, torch.nan)


def check_rounds(rounds: int, local_epochs: int, *, weight_averaging: float, resume: bool) -> None:
    """Refuse settings that a federated training cannot follow.

    Raises:
        ValueError: for less than one round or epoch; for a running mean of the weights, which would mix rounds; for
            going on with a training, of which MONAI's client keeps no state.
    """
    if min(rounds, local_epochs) < 1:
        raise ValueError(f"expected at least 1 of rounds and local_epochs, got {rounds} and {local_epochs}")
    if weight_averaging:
        raise ValueError(f"expected weight_averaging of 0 where sites are averaged, got {weight_averaging}")
    if resume:
        raise ValueError("expected resume False, got True: a federated training cannot go on where it stopped")


class AgreedScaling:
    """Refuse a global model with another scaling than the sites agreed on, and rounds beyond those agreed on.

    A model that nobody scaled, or that was scaled by one site, would be trained without an error and be wrong.

    Args:
        network: the :class:`~monai_mvreg.networks.multiscan.MultiScanNet`, scaled as agreed.
        epochs: of all rounds together; None: not checked.
    """

    def __init__(self, network: nn.Module, epochs: int | None = None) -> None:
        self.network, self.epochs = network, epochs
        self.agreed = {name: buffer.clone() for name, buffer in self._scaling().items()}

    def _scaling(self) -> dict[str, Tensor]:
        return {name: buffer for name, buffer in self.network.named_buffers() if name in _SCALING}

    def attach(self, engine: Engine) -> None:
        """Register the handler with the trainer or the evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Compare.

        Raises:
            ValueError: naming what differs.
        """
        # Averages of equal numbers differ by rounding, a little more every round.
        differ = [
            name
            for name, buffer in self._scaling().items()
            if not torch.allclose(buffer, self.agreed[name].to(buffer.device), rtol=1e-4, atol=0.0)
        ]
        if differ:
            raise ValueError(f"expected a global model with the scaling that the sites agreed on, got other {differ}")
        if self.epochs is not None and engine.state.max_epochs > self.epochs:
            raise ValueError(
                f"expected at most rounds x local_epochs = {self.epochs} epochs, got {engine.state.max_epochs}: "
                "give the rounds and local_epochs of the federation"
            )


def save_initial(network: nn.Module, path: str) -> None:
    """Save the weights that round 0 starts from, as a bare state dict."""
    with atomic_write(Path(path)) as unfinished:
        torch.save(network.state_dict(), unfinished)


def site_algo(bundle_root: str, config_file: Sequence[str], folders: Mapping[str, str]) -> MonaiAlgo:
    """Make MONAI's client out of the bundle, for one site; it has yet to be initialised.

    Args:
        bundle_root: the folder of the bundle.
        config_file: the files, ``federated.yaml`` among them; the first of them stands in the bundle's ``configs``.
        folders: ``dataset_dir``, ``output_dir`` and ``model_dir`` of the site.
    """
    root = str(Path(bundle_root).resolve())
    files = [str(Path(file).resolve()) for file in config_file]
    parser = ConfigParser()
    parser.read_config(files)
    settings = {"bundle_root": root, **{name: str(Path(folder).resolve()) for name, folder in folders.items()}}
    return MonaiAlgo(
        bundle_root=root,
        local_epochs=parser.get_parsed_content("local_epochs"),
        # A difference says as much as the weights do, and gains nothing where all of them are sent.
        send_weight_diff=False,
        config_train_filename=files,
        train_kwargs=dict(settings),
        # The evaluator of training, in a workflow of its own, so that it has its own copy of the network.
        config_evaluate_filename=files,
        eval_kwargs=dict(settings),
        best_model_filepath=str(Path(settings["model_dir"]) / UNFINISHED / "model.pt"),
    )


def fedavg_recipe(
    script: str, initial_file: str, sites: Mapping[str, Sequence[str]], *, rounds: int, metric: str
) -> Any:
    """Make a job of NVFlare that averages this bundle over sites, for its simulator or for production.

    Args:
        script: a file that calls :func:`main`, relative to the working folder; the job carries it to the sites.
        initial_file: what :func:`save_initial` wrote, relative to the working folder; goes to the server with the job.
        sites: names of the sites, each with the arguments of :func:`main` there.
        rounds: as in the settings.
        metric: of the validation patients, lower is better: chooses the best global model; every site counts alike.

    Returns:
        The ``nvflare.recipe.spec.Recipe``. Weights are averaged by the number of training patients of each site.

    Raises:
        ValueError: for an argument with a space, at which NVFlare would cut it.

    Source: McMahan et al., AISTATS 2017. https://arxiv.org/abs/1602.05629
    """
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.recipe.utils import set_per_site_config

    if spaced := [part for line in sites.values() for part in line if len(part.split()) != 1]:
        raise ValueError(f"expected arguments without spaces for NVFlare, got {spaced}")
    recipe = FedAvgRecipe(
        name="mvreg",
        min_clients=len(sites),
        num_rounds=rounds,
        # The server averages numbers by name: it needs neither the network nor this package.
        model={"class_path": "torch.nn.Identity", "args": {}},
        initial_ckpt=initial_file,
        train_script=script,
        key_metric=metric,
        key_metric_mode="min",
    )
    set_per_site_config(recipe, {name: {"train_args": " ".join(line)} for name, line in sites.items()})
    return recipe


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one site of a job of NVFlare: judge the global model, train it, send it back, every round."""
    from nvflare import client
    from nvflare.app_opt.monai import decomposers

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bundle_root", required=True)
    parser.add_argument("--config_file", required=True, nargs="+")
    for folder in ("dataset_dir", "output_dir", "model_dir"):
        parser.add_argument(f"--{folder}", required=True)
    given = parser.parse_args(arguments)
    folders = {name: getattr(given, name) for name in ("dataset_dir", "output_dir", "model_dir")}
    client.init()
    decomposers.register_monai_types()
    algo = site_algo(given.bundle_root, given.config_file, folders)
    algo.initialize({ExtraItems.CLIENT_NAME: client.get_site_name()})
    while client.is_running():
        received = client.receive()
        if received is None:
            break
        weights = ExchangeObject(weights=received.params)
        metrics = {name: float(value) for name, value in algo.evaluate(weights).metrics.items()}
        algo.train(weights)
        patients = len(algo.trainer.data_loader.dataset)
        # What NVFlare calls steps is the weight of the site in the average.
        meta = {"NUM_STEPS_CURRENT_ROUND": patients}
        client.send(client.FLModel(params=algo.get_weights().weights, metrics=metrics, meta=meta))
    algo.finalize()
