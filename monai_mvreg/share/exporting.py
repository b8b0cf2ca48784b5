"""A trained model -> one file that other programs run without this package: ONNX, or TorchScript.

The file maps prepared scans to the number that :class:`~monai_mvreg.predict.predictor.Predictor` predicts. It holds
neither the preparation of scans nor intervals, curves or warnings. It is compared with the model before it is written.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_mvreg.cache.atomic import atomic_write
from monai_mvreg.predict.prediction import PURPOSE
from monai_mvreg.predict.predictor import Predictor

_SHAPES = ((1, 1), (1, 4), (3, 2))  # patients and scans that a file is tested with; it is made with 2 and 3
_TOLERANCE = 1e-4  # of the largest number, or of 0.01 where all are smaller


class _Whole(nn.Module):
    """All networks of a model and what their outputs mean: prepared scans to numbers ``(B, T)``."""

    def __init__(self, predictor: Predictor, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks, self.loss = nn.ModuleList(networks), predictor.trained.task.loss
        self.readout = predictor.readout

    def forward(
        self, image: Tensor, mask: Tensor, time: Tensor, view: Tensor | None = None, covariates: Tensor | None = None
    ) -> Tensor:
        outputs = [self.readout(network(image, mask, time, view, covariates)) for network in self.networks]
        return torch.stack(outputs).mean(0).to(torch.float32)


class _PlainAttention(nn.MultiheadAttention):
    """Self-attention by plain products: torch's own is exported to ONNX for only one number of scans."""

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        projected = nn.functional.linear(query, self.in_proj_weight, self.in_proj_bias)
        heads = [query.shape[0], query.shape[1], self.num_heads, self.head_dim]
        q, k, v = (part.reshape(heads).transpose(1, 2) for part in projected.chunk(3, 2))
        scores = q @ k.transpose(2, 3) * self.head_dim**-0.5
        if key_padding_mask is not None:  # 0, or minus infinity for padding
            scores = scores + key_padding_mask[:, None, None, :]
        return self.out_proj((scores.softmax(3) @ v).transpose(1, 2).flatten(2)), None


def describe_export(predictor: Predictor) -> dict[str, str]:
    """Describe an exported file: target, unit, model, preprocessing, weights, and what it may be used for.

    Args:
        predictor: the trained model.

    Returns:
        The metadata that is written into the file.

    Example:
        >>> describe_export(Predictor.from_bundle("study"))["unit"]
        'mm/a'
    """
    trained, model = predictor.trained, predictor.model
    return {
        "target": json.dumps(list(trained.settings.target)),
        "output": "log risk of the event: higher is sooner" if trained.survival else "the target in its unit",
        "unit": "1" if trained.survival else trained.settings.unit,
        "inputs": json.dumps(list(_example(predictor, 1, 1))),
        "covariates": json.dumps(list(trained.covariates)),
        "views": json.dumps(list(trained.views)),
        "name": model.name,
        "version": model.version,
        "software": model.software,
        "weights": json.dumps(list(model.weights)),
        "preprocessing": model.preprocessing,
        "purpose": PURPOSE,
    }


def export_onnx(predictor: Predictor, path: str | Path) -> float:
    """Write a trained model as ONNX, for any number of patients and scans, and test it with onnxruntime.

    Inputs are ``image`` ``(patients, scans, C, *spatial)``, each scan as :meth:`Predictor.prepare` makes it, ``mask``
    ``(patients, scans)``, true where a scan exists, and ``time`` ``(patients, scans)`` in days; and, where the model
    has them, ``view`` ``(patients, scans)`` and ``covariates`` ``(patients, V)``, NaN where missing. The output
    ``number`` is ``(patients, T)``. The models of a cross-validation are averaged in one file. Its ``metadata_props``
    are those of :func:`describe_export`.

    Args:
        predictor: the trained model, on the CPU.
        path: the file to write.

    Returns:
        The largest difference from the model for random scans, in target units.

    Raises:
        ValueError: if onnx is not installed, the network cannot be written as ONNX, or the file gives other numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_onnx(Predictor.from_bundle("study"), f"{folder}/study.onnx") < 1e-3
        True
    """
    path = Path(path)
    try:
        import onnx
        import onnxruntime  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise ValueError('ONNX is not installed: pip install "monai-mvreg[deploy]"') from None
    example = _example(predictor, 2, 3)
    axes = {name: {0: "patients"} if name == "covariates" else {0: "patients", 1: "scans"} for name in example}
    networks = [_attending_plainly(network) for network in predictor.members]
    with atomic_write(path) as part:
        with _quietly(), _in_one_sentence("ONNX"):
            torch.onnx.export(
                _Whole(predictor, networks).eval(),
                (),
                part,
                kwargs=example,
                input_names=list(example),
                output_names=["number"],
                dynamic_axes={**axes, "number": {0: "patients"}},
                dynamo=False,
            )
        whole = onnx.load(part)
        taken = {entry.name for entry in whole.graph.input}
        for name in [name for name in example if name not in taken]:
            # Some pools read no dates: the file takes them nevertheless, so that all files take the same.
            kind = onnx.helper.np_dtype_to_tensor_dtype(example[name].numpy().dtype)
            whole.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, list(axes[name].values())))
        onnx.helper.set_model_props(whole, describe_export(predictor))
        onnx.checker.check_model(whole)
        onnx.save(whole, part)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(part, options, providers=["CPUExecutionProvider"])

        def run(given: Mapping[str, Tensor]) -> Tensor:
            return torch.as_tensor(session.run(None, {name: value.numpy() for name, value in given.items()})[0])

        return _compared(predictor, run)


def export_torchscript(predictor: Predictor, path: str | Path) -> float:
    """Write a trained model as TorchScript, with inputs and output as in :func:`export_onnx`.

    Its metadata is the extra file ``metadata.json``, as MONAI's ``load_net_with_metadata`` reads it. A TorchScript file
    is a program: load only those that you trust.

    Args:
        predictor: the trained model, on the CPU.
        path: the file to write.

    Returns:
        The largest difference from the model for random scans, in target units.

    Raises:
        ValueError: if the network cannot be written as TorchScript, or the file gives other numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_torchscript(Predictor.from_bundle("study"), f"{folder}/study.ts") < 1e-3
        True
    """
    path = Path(path)
    example = _example(predictor, 2, 3)
    with atomic_write(path) as part:
        with _quietly(), _in_one_sentence("TorchScript"):
            # Networks are compiled, for a trace would keep the device; what their outputs mean is a few plain steps.
            networks = [torch.jit.script(copy.deepcopy(network)) for network in predictor.members]
            whole = _Whole(predictor, networks).eval()
            script = torch.jit.trace(  # type: ignore[no-untyped-call]
                whole, example_kwarg_inputs=example, check_trace=False
            )
            told = json.dumps(describe_export(predictor), indent=1)
            torch.jit.save(script, part, _extra_files={"metadata.json": told})
            script = torch.jit.load(part)  # type: ignore[no-untyped-call]
        return _compared(predictor, lambda given: script(**given))


def _example(predictor: Predictor, patients: int, scans: int) -> dict[str, Tensor]:
    """Random patients with 1, 2, 3 ... of the scans, in no order of time."""
    trained, draw = predictor.trained, torch.Generator().manual_seed(10 * patients + scans)
    shape = (trained.settings.channels, *trained.settings.spatial_size)
    given = {
        "image": torch.rand(patients, scans, *shape, generator=draw),
        "mask": torch.arange(scans) < torch.arange(1, patients + 1).clamp(max=scans)[:, None],
        "time": (1000 * torch.rand(patients, scans, generator=draw)).round(),
    }
    if trained.views:
        given["view"] = torch.randint(len(trained.views), (patients, scans), generator=draw)
    if trained.covariates:
        given["covariates"] = torch.rand(patients, len(trained.covariates), generator=draw)
        given["covariates"][0, 0] = torch.nan
    return given


def _attending_plainly(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for module in network.get_submodule("pool").modules():
        if isinstance(module, nn.MultiheadAttention):
            module.__class__ = _PlainAttention
    return network


def _compared(predictor: Predictor, run: Callable[[Mapping[str, Tensor]], Tensor]) -> float:
    """The largest difference from the model; a file that differs is refused."""
    whole = _Whole(predictor, predictor.members).eval()
    with torch.inference_mode():
        given = [_example(predictor, *shape) for shape in _SHAPES]
        expected = torch.cat([whole(**batch) for batch in given])
        try:
            found = torch.cat([run(batch) for batch in given])
        except Exception as error:  # onnxruntime has its own
            raise ValueError(f"expected a file for any number of scans, got one that fails: {_first(error)}") from error
    apart = float((found - expected).abs().max())
    if not apart <= _TOLERANCE * float(expected.abs().max().clamp(min=0.01)):
        raise ValueError(f"expected a file with the numbers of the model, got one that is {apart:.2g} apart")
    return apart


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the warnings of tracing, and turn off fused attention, which cannot be exported."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _in_one_sentence(kind: str) -> Iterator[None]:
    """Say in one sentence that a network cannot be exported: what torch raises has pages."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        raise ValueError(f"expected a network that {kind} can express, got another: {_first(error)}") from error


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
