"""What a result says of how it was made."""

from collections.abc import Mapping, Sequence

from lens_ablation.ablation import Positions
from lens_ablation.data.metrics import Metric
from lens_ablation.data.task import Task
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
