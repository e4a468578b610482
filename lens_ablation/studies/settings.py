"""What a result says of how it was made."""

from collections.abc import Mapping
from importlib.metadata import version

from lens_ablation.ablation import Positions
from lens_ablation.data.metrics import Metric
from lens_ablation.data.task import Task
from lens_ablation.methods.method import Method
from lens_ablation.models.fingerprint import fingerprint, model_name, weight_processing
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
        "versions": {name: version(name) for name in ("lens-ablation", "transformer-lens", "torch")},
    }


def method_settings(method: Method) -> Mapping[str, object]:
    """Name and settings of a method, as plain JSON values."""
    return {"name": method.name, "class": type(method).__name__, "settings": dict(method.settings)}
