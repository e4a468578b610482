"""What a result says of how it was made."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from lens_ablation.ablation import Positions
from lens_ablation.data.metrics import Metric
from lens_ablation.data.task import Task
from lens_ablation.errors import DamagedFile
from lens_ablation.methods.method import Method
from lens_ablation.models.fingerprint import fingerprint, model_name, versions, weight_processing
from lens_ablation.models.protocol import LensModel


def study_settings(model: LensModel, task: Task, positions: Positions) -> dict[str, object]:
    """Model, data, metric and versions behind a result, as plain JSON values."""
    assert isinstance(task.metric, Metric)
    return {
        "model": model_name(model),
        "model_fingerprint": fingerprint(model),
        "weight_processing": weight_processing(model),
        "dtype": str(next(iter(model.parameters())).dtype),
        "task": task.name,
        "task_fingerprint": task.fingerprint,
        "metric": task.metric.name,
        "unit": task.metric.unit,
        "higher_is_better": task.metric.higher_is_better,
        "positions": positions if isinstance(positions, str) else positions.tolist(),
        "versions": versions(),
    }


@contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """Report whatever is wrong with the content of a result's files as ``DamagedFile``."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, DamagedFile):
            raise
        raise DamagedFile(
            f"the result in {folder} was changed after it was written: {error}. Make it again."
        ) from error


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a stored tensor of another shape than the rest of the result implies.

    Raises:
        ValueError: the shape is another.
    """
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)} and should have {shape}")


def method_settings(method: Method) -> Mapping[str, object]:
    """Name and settings of a method, as plain JSON values."""
    return {"name": method.name, "class": type(method).__name__, "settings": dict(method.settings)}


def named_methods(methods: Method | Sequence[Method] | Mapping[str, Method]) -> dict[str, Method]:
    """The methods by name; two of one name are refused, because nobody could tell their numbers apart.

    Raises:
        ValueError: two methods have one name, or there are none.
    """
    if isinstance(methods, Mapping):
        found = dict(methods)
    else:
        listed = [methods] if isinstance(methods, Method) else list(methods)
        names = [method.name for method in listed]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"several methods are called {twice[0]!r}; name them, for example {{'first': ..., 'second': ...}}"
            )
        found = dict(zip(names, listed, strict=True))
    if not found:
        raise ValueError("no methods were given; pass one or several, for example [Zero(), Mean(stats)]")
    return found
