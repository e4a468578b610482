"""What a model must offer: the structural protocol of TransformerLens, never a class."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

HookFn = Callable[..., Tensor | None]
"""``(activation, hook) -> replacement`` or ``None``, as TransformerLens calls it."""

FwdHook = tuple[str, HookFn]
"""A ``(hook name, function)`` pair for ``run_with_hooks(fwd_hooks=[...])``."""


@runtime_checkable
class LensModel(Protocol):
    """The surface of ``TransformerBridge`` and ``HookedTransformer`` that this package uses."""

    training: bool

    @property
    def cfg(self) -> Any: ...

    @property
    def hook_dict(self) -> Any: ...

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any: ...

    def hooks(self, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]: ...

    def parameters(self, *args: Any, **kwargs: Any) -> Iterator[torch.nn.Parameter]: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


def require_lens_model(model: object) -> None:
    """Refuse anything that is not a TransformerLens model, naming what it lacks.

    Raises:
        ValueError: ``model`` has no ``cfg``, ``run_with_hooks``, ``hooks`` or ``hook_dict``.
    """
    needed = ("cfg", "hook_dict", "run_with_hooks", "hooks", "parameters")
    missing = [name for name in needed if not hasattr(model, name)]
    if missing:
        raise ValueError(
            f"{type(model).__name__} is not a TransformerLens model (it has no {', '.join(missing)}). Pass a "
            "TransformerBridge or HookedTransformer, or load one with lens_ablation.load_model(name_or_path)."
        )


def require_evaluation_mode(model: LensModel) -> None:
    """Refuse a model in training mode, where dropout would make every number random.

    Raises:
        ValueError: the model, or a module inside it, is in training mode.
    """
    roots = (model, getattr(model, "original_model", None))
    if not any(module.training for module in modules_in(*roots)):
        return
    seen: set[torch.nn.Module] = set()
    training = sorted(
        {name or type(root).__name__ for root in roots for name, module in _modules(root, seen) if module.training}
    )
    raise ValueError(
        f"the model is in training mode (at {', '.join(training[:3])}"
        f"{' and others' if len(training) > 3 else ''}). Call model.eval() first."
    )


def modules_in(*roots: object) -> Iterator[torch.nn.Module]:
    """Every module once, in no stated order; several times as fast as ``torch.nn.Module.modules``."""
    waiting = [root for root in roots if isinstance(root, torch.nn.Module)]
    seen: set[torch.nn.Module] = set()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting.extend(child for child in module._modules.values() if child is not None)
            yield module


def _modules(root: object, seen: set[torch.nn.Module]) -> Iterable[tuple[str, torch.nn.Module]]:
    return root.named_modules(seen) if isinstance(root, torch.nn.Module) else ()


def input_device(model: LensModel) -> torch.device:
    """The device of the model's first parameter, where its inputs belong."""
    return next(iter(model.parameters())).device
