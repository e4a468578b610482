"""Jobs as bytes for other processes of ours."""

import io
import sys
from typing import Any

import cloudpickle

from lens_ablation.engine.job import Job


class _Pickler(cloudpickle.CloudPickler):
    """Sends what is global in an imported module by its name there, wherever cloudpickle would copy it.

    Models that have run hold hooks of ``transformers`` that refer to such an object, which cannot be copied.
    """

    def reducer_override(self, obj: Any) -> Any:
        name = None if isinstance(obj, type) else _global_name(obj)
        if name is not None:
            return getattr, (sys.modules[type(obj).__module__], name)
        return super().reducer_override(obj)


def dumps(job: Job) -> bytes:
    """The job, to be read by ``pickle.loads`` in a process that was started for it."""
    out = io.BytesIO()
    _Pickler(out).dump(job)
    return out.getvalue()


def _global_name(obj: Any) -> str | None:
    """The name of ``obj`` among the globals of the module of its type; ``None`` if it is none of them."""
    home = type(obj).__module__
    if home in ("builtins", "__main__") or home not in sys.modules or not hasattr(obj, "__dict__"):
        return None
    return next((name for name, value in vars(sys.modules[home]).items() if value is obj), None)
