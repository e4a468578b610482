"""What a measurement was made on, so that it is found again by it and never used for anything else."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from typing import Any

from lens_ablation.errors import StatisticsMismatch
from lens_ablation.models.fingerprint import (
    fingerprint,
    model_name,
    tokenizer_fingerprint,
    weight_processing,
)
from lens_ablation.models.protocol import LensModel

LIBRARIES = ("lens-ablation", "transformer-lens", "transformers", "torch")

MODEL_FIELDS = ("model", "weight_processing", "tokenizer", "dtype")
"""What must agree before statistics are used on a model."""

_LABELS = ("model_name",)
_KINDS = {"data": list, "hook_names": list, "measurement": dict, "versions": dict}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What activations were measured, on which model and data.

    Attributes:
        model: SHA-256 of the model's weights.
        model_name: What the model is called; a label, not compared.
        weight_processing: ``raw``, or what was folded into the weights.
        tokenizer: SHA-256 of the tokenizer's vocabulary.
        dtype: Data type of the model's weights.
        data: SHA-256 of the inputs, one to a shard.
        positions: Which tokens were counted: ``all``, ``all_but_first`` or ``answer``.
        hook_names: The hooks, in order.
        measurement: What was measured there: peak estimator, histograms, per-position means.
        versions: Versions of the libraries.
    """

    model: str
    model_name: str
    weight_processing: str
    tokenizer: str
    dtype: str
    data: tuple[str, ...]
    positions: str
    hook_names: tuple[str, ...]
    measurement: Mapping[str, Any]
    versions: Mapping[str, str]

    @classmethod
    def of_model(
        cls,
        model: LensModel,
        *,
        data: Sequence[str],
        positions: str,
        hook_names: Sequence[str],
        measurement: Mapping[str, Any],
    ) -> "Provenance":
        """The provenance of a measurement made on ``model`` now."""
        return cls(
            **model_identity(model),
            model_name=model_name(model),
            data=tuple(data),
            positions=positions,
            hook_names=tuple(hook_names),
            measurement=dict(measurement),
            versions={library: version(library) for library in LIBRARIES},
        )

    @property
    def digest(self) -> str:
        """SHA-256 over everything that is compared: the key under which a measurement is found again."""
        compared = {name: value for name, value in self.to_json().items() if name not in _LABELS}
        return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()

    def differences(self, other: "Provenance") -> dict[str, tuple[object, object]]:
        """Fields in which the two disagree, with both values; the model's name is a label and left out."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return {name: pair for name, pair in pairs.items() if name not in _LABELS and pair[0] != pair[1]}

    def require_model(
        self,
        model: LensModel,
        what: str = "these statistics",
        fix: str = "Collect again on this model with collect_statistics",
    ) -> None:
        """Refuse a model other than the measured one, or the same one with other weight processing.

        Library versions are part of what a measurement is found again by, and are not compared here.

        Args:
            model: The model that is about to be run.
            what: What was measured, for the message.
            fix: What to do, for the message.

        Raises:
            StatisticsMismatch: weights, weight processing, tokenizer or dtype differ.
        """
        found = model_identity(model)
        wrong = [name for name in MODEL_FIELDS if getattr(self, name) != found[name]]
        if wrong:
            # of a model loaded in another way the weights differ too, and the way is the better explanation
            first = "weight_processing" if "weight_processing" in wrong else wrong[0]
            measured, given = shortened(getattr(self, first)), shortened(found[first])
            raise StatisticsMismatch(
                f"{what} were measured on {self.model_name} with {first.replace('_', ' ')} {measured!r}, and this "
                f"model is {model_name(model)} with {given!r}. {fix}, or load the model as it was then."
            )

    def with_data_of(self, other: "Provenance") -> "Provenance":
        """The provenance of both shards' measurements merged.

        Raises:
            StatisticsMismatch: the shards differ in more than their data, or share data.
        """
        differences = self.differences(other)
        differences.pop("data", None)
        if differences:
            raise StatisticsMismatch(f"these statistics cannot be merged: {described(differences)}")
        shared = set(self.data) & set(other.data)
        if shared:
            raise StatisticsMismatch(
                f"both hold the data {shortened(shared.pop())!r}, which would be counted twice. Merge shards of "
                "different data."
            )
        return replace(self, data=self.data + other.data)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {"data": list(self.data), "hook_names": list(self.hook_names)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Provenance":
        """The provenance that ``to_json`` gave.

        Raises:
            ValueError: a field is missing, unknown or of another type.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(plain, Mapping) or set(plain) != names:
            raise ValueError("a provenance has other fields than " + ", ".join(sorted(names)))
        fitting = dict(plain)
        for name, value in plain.items():
            wanted = _KINDS.get(name, str)
            if not isinstance(value, wanted):
                raise ValueError(f"the provenance's {name} is a {type(value).__name__}")
            if wanted is list:
                fitting[name] = tuple(str(entry) for entry in value)
        return cls(**fitting)


def model_identity(model: LensModel) -> dict[str, str]:
    """What identifies a model: fingerprint of weights, weight processing, fingerprint of tokenizer, dtype."""
    return {
        "model": fingerprint(model),
        "weight_processing": weight_processing(model),
        "tokenizer": tokenizer_fingerprint(model),
        "dtype": str(next(iter(model.parameters())).dtype),
    }


def shortened(value: object) -> str:
    """A value for a message; of a digest its beginning."""
    text = str(value)
    return text[:12] if len(text) == 64 else text


def described(differences: Mapping[str, tuple[object, object]]) -> str:
    """Differing fields as a sentence for a message."""
    return "; ".join(
        f"{name.replace('_', ' ')} {shortened(ours)!r} and {shortened(theirs)!r}"
        for name, (ours, theirs) in differences.items()
    )
