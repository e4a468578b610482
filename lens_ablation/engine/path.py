"""By which shortcuts a model may be run, proved once for each model by comparison with plain forward passes."""

from collections.abc import Mapping
from dataclasses import dataclass

from lens_ablation.engine.tail import Tail


@dataclass(frozen=True, kw_only=True)
class Path:
    """How variants are run.

    Attributes:
        prefix: Blocks before a variant's first ablated layer are answered from the clean pass.
        linears: So are linear maps that an ablation leaves untouched; in the last block they run at the positions
            only that the metric reads.
        attention: Rows attend in no block before they are changed in it: what attention gives them is known.
        tail: How logits are made of the last residual.
        class_position: The position that class logits of images read; ``None`` if not known.
        note: Why shortcuts are missing; empty if none is.
        difference: Largest difference to the plain forward pass seen in the proof, over the largest logit.
    """

    prefix: bool = False
    linears: bool = False
    attention: bool = False
    tail: Tail = "model"
    class_position: int | None = None
    note: str = ""
    difference: float = 0.0

    @property
    def settings(self) -> Mapping[str, object]:
        """What a result says about how it was computed."""
        if not self.prefix:
            return {"path": "plain", "why": self.note}
        return {
            "path": "prefix",
            "untouched linear maps": "reused" if self.linears else "computed",
            "attention of joining rows": "reused" if self.attention else "computed",
            "tail": self.tail,
            **({"why": self.note} if self.note else {}),
        }


def plain(note: str) -> Path:
    """The path without shortcuts."""
    return Path(note=note)
