"""The verbs of ``mvreg`` that run the training: cross-validate, compare choices, profile."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_mvreg.bundle_folder import is_installed
from monai_mvreg.cli.bundle_folders import add_bundle_option, bundle_to_train

if TYPE_CHECKING:
    from monai_mvreg.experiments.crossval import Plan

# Everything else is imported inside the verbs: --help must not wait for torch.


def add_training_verbs(verbs: Any) -> None:
    """Add them to the parser of the command line."""
    crossval = verbs.add_parser("crossval", help="train and predict fold by fold; goes on where it was stopped")
    _add_plan(crossval)
    crossval.add_argument("--folds", type=int, default=5, help="where the table has no folds (default 5)")
    crossval.add_argument("--seeds", type=int, default=1, help="trainings of each fold, averaged (default 1)")
    crossval.add_argument("--permute", type=int, metavar="SEED", help="shuffle labels: what is then found is a leak")
    crossval.add_argument("--predict", type=Path, metavar="FILE", help="a table of new patients, for all models' mean")
    crossval.set_defaults(verb=_crossval)

    compare = verbs.add_parser("compare", help="cross-validate every combination of choices, beside simple baselines")
    compare.add_argument("grid", type=Path, metavar="GRID", help="YAML: setting, then name and value of each choice")
    _add_plan(compare)
    compare.add_argument("--seeds", type=int, default=1, help="trainings of each fold, averaged (default 1)")
    compare.add_argument("--trials", type=int, help="look for good settings with Optuna instead of trying all")
    compare.set_defaults(verb=_compare)

    profile = verbs.add_parser("profile", help="say where the time of an epoch of training goes, and what would help")
    _add_plan(profile)
    profile.add_argument("--epochs", type=int, default=2, help="measured ones; the last is shown (default 2)")
    profile.set_defaults(verb=_profile)


def _add_plan(verb: argparse.ArgumentParser) -> None:
    """What every verb takes that runs the bundle's training."""
    verb.add_argument("configs", nargs="*", type=Path, metavar="CONFIG", help="files of settings, as in training")
    verb.add_argument("--dataset_dir", type=Path, required=True, metavar="FOLDER", help="the scans and the table")
    verb.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for all results")
    add_bundle_option(verb)
    verb.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the bundle")


def _plan(options: argparse.Namespace) -> Plan:
    import yaml

    from monai_mvreg.experiments.crossval import Plan

    bundle = bundle_to_train(options)
    if not (bundle / "configs/train.yaml").is_file():
        raise FileNotFoundError(f"expected a bundle in {bundle}, found no configs/train.yaml: give --bundle")
    # Nothing may be written to the package.
    settings: dict[str, Any] = {"bundle_root": str(options.out.resolve())} if is_installed(bundle) else {}
    for setting in options.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"expected --set NAME=VALUE, got {setting!r}")
        settings[name] = yaml.safe_load(value)
    configs = tuple(path.resolve() for path in options.configs)
    return Plan(bundle.resolve(), configs, options.dataset_dir.resolve(), settings)


def _crossval(options: argparse.Namespace) -> None:
    from monai_mvreg.experiments.crossval import crossvalidate, predict_new

    plan = _plan(options)
    if options.permute is not None:
        plan = plan.permuted(options.out.resolve() / "permuted.csv", seed=options.permute)
    table = crossvalidate(plan, options.out, folds=options.folds, seeds=range(options.seeds))
    print(f"\n{options.out}: {len(table)} patients, each predicted by models that did not see the patient")
    if options.permute is not None:
        print("Labels were shuffled: whatever is better than the mean of the training patients comes from a leak.")
    print((options.out / "metrics.json").read_text(encoding="utf-8"))
    if options.predict is not None:
        new = predict_new(plan, options.out, options.predict.resolve())
        print(f"{options.out / 'new_predictions.csv'}: {len(new)} new patients, by the mean of all models")
    if (report := options.out / "report.html").is_file():
        print(f"Report: {report}")


def _compare(options: argparse.Namespace) -> None:
    import yaml

    from monai_mvreg.experiments.compare import choices, compare, search

    grid, plan, seeds = yaml.safe_load(options.grid.read_text(encoding="utf-8")), _plan(options), range(options.seeds)
    if not isinstance(grid, dict):
        raise ValueError(f"{options.grid}: expected settings, each with names and values of its choices")
    if options.trials is None:
        runs = choices(grid)
    else:
        runs = search(plan, grid, options.out, trials=options.trials, seeds=seeds)
    table = compare(plan, runs, options.out, seeds=seeds)
    print("\n" + table.to_string(index=False, float_format=lambda number: f"{number:.4g}"))
    print(f"\n{options.out / 'comparison.csv'}: a choice is better than no scan where its whole interval")
    print("(minus_..._low to minus_..._high) lies on one side of zero; among several, choose by `validation`")


def _profile(options: argparse.Namespace) -> None:
    from monai_mvreg.experiments.profiling import profile_training
    from monai_mvreg.experiments.timing import advise, as_table, write_profile

    found = profile_training(_plan(options), options.out, epochs=options.epochs)
    write_profile(found, options.out)
    print("\n" + as_table(found).to_string(index=False, float_format=lambda number: f"{number:.3f}"))
    print("\n" + "\n".join(advise(found)))
    print(f"\nPicture: {options.out / 'profile.html'}")
