"""Measure gradients of neurons on small models: ``python -m docs.measure_neurons [PART ...]``.

Writes ``docs/neurons.json``; ``python docs/make_neurons.py`` makes tables and figures of it. Parts: ``estimators`` (the
table of estimators), ``ranges`` (agreement and linearity over growing shifts), ``groups`` (many neurons at once). All
take some five minutes on two cores.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

import lens_ablation as la
from docs.measured import measure
from lens_ablation.data.task import Task
from lens_ablation.empirical.curves import ShiftCurves, slope
from lens_ablation.empirical.question import family_neurons
from lens_ablation.models.protocol import LensModel
from lens_ablation.sites import SiteSet
from lens_ablation.studies.correlations import pearson

MEASURED = Path(__file__).parent / "neurons.json"
N_EXAMPLES = 50
N_NEURONS = 256
SMALL, LARGE = (0.1, 0.05), (2.0, 0.2)
"""Range and step of shifts."""
EXACT = la.Engine(dtype=torch.float64)
"""Small shifts change probabilities by less than float32 rounds them."""
AMOUNTS = (0.05, 0.2, 1.0)
N_GROUPS = 24

Row = dict[str, object]


@dataclass(frozen=True, eq=False)
class Case:
    """A model with examples, and a sample of its neurons."""

    name: str
    model: LensModel
    task: Task

    @property
    def neurons(self) -> SiteSet:
        """Neurons of the family, evenly many left out."""
        every = family_neurons(self.model)
        return every.take(range(0, len(every), max(1, len(every) // N_NEURONS)))


def cases() -> Iterator[Case]:
    """Facts, digits, and random weights."""
    lm, vit = la.load_model("tiny-lm"), la.load_model("tiny-vit")
    yield Case("tiny-lm, facts", lm, la.tasks.facts(lm, N_EXAMPLES, split="train"))
    yield Case("tiny-vit, digits", vit, la.tasks.digits(vit, N_EXAMPLES))
    yield Case("random Llama, random tokens", *random_llama())


def random_llama() -> tuple[LensModel, Task]:
    """Four layers of random weights, large enough for probabilities that differ; grouped queries, gated MLPs."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.15,
    )
    plain = transformers.LlamaForCausalLM(config).eval()
    plain.set_attn_implementation("eager")
    model = build_bridge_from_module(plain, "LlamaForCausalLM", hf_config=config, dtype=torch.float32, device="cpu")
    model.eval()
    inputs = torch.randint(0, 200, (N_EXAMPLES, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        likeliest = model(inputs)[:, -1].topk(2).indices
    return model, Task(inputs=inputs, answers=likeliest[:, 0], wrong_answers=likeliest[:, 1], name="random tokens")


def measure_estimators() -> list[Row]:
    """Every estimator against shifts up to two, in both conventions."""
    rows: list[Row] = []
    for case in cases():
        found = la.compare_gradients(
            case.model, case.task, case.neurons, measured=la.EmpiricalGradient(*LARGE), progress=False
        )
        rows += [
            {
                "setup": case.name,
                **about(case, found.measured, found.of("NeurGrad")),
                **row,
                "seconds_measured": found.seconds["Empirical gradient"],
            }
            for row in found.to_dataframe().to_dict("records")
        ]
        print(found.to_dataframe().query("probabilities == 'all'").round(4).to_string(), flush=True)
    return rows


def about(case: Case, found: la.NeuronGradients, estimate: la.NeuronGradients) -> Row:
    """What a setup is made of, and r of NeurGrad over all neurons, those at exactly 0 too."""
    return {
        "neurons": len(case.neurons),
        "hook": found.settings["hook"],
        "examples": case.task.n_examples,
        "zeros": float((found.activations == 0).double().mean()),
        "negative": float((found.activations < 0).double().mean()),
        "saturated": float(found.saturated.double().mean()),
        "r_with_zeros": float(pearson(*(one.signed.values.flatten() for one in (found, estimate)), constant=0.0)),
    }


def measure_ranges() -> list[Row]:
    """Agreement of NeurGrad with signed shifts, and linearity, over growing ranges, raw and in deviations."""
    rows: list[Row] = []
    for case in cases():
        estimate = la.neuron_gradients(
            case.model, case.task, case.neurons, dtype=torch.float64, engine=EXACT, progress=False
        )
        deviation = float(estimate.activations.double().std(dim=0, correction=0).median())
        for in_deviations in (False, True):
            for size, step in (SMALL, LARGE):
                way = la.EmpiricalGradient(size, step, in_deviations=in_deviations)
                found = la.neuron_gradients(
                    case.model, case.task, case.neurons, way, dtype=torch.float64, engine=EXACT, progress=False
                )
                curves = found.curves
                shares = curves.linear_share(ranges=curves.ranges()).to_dict("records")
                for share in shares:
                    part = curves.within(float(share["range"]))
                    rows.append(
                        {
                            "setup": case.name,
                            "unit": "deviations" if in_deviations else "raw",
                            "median_deviation": deviation,
                            **share,
                            **agreement(part, estimate, in_deviations=in_deviations),
                        }
                    )
        for row in rows[-24:]:
            print({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
    return rows


def agreement(curves: ShiftCurves, estimate: la.NeuronGradients, *, in_deviations: bool) -> Row:
    """Pearson correlation of slopes with NeurGrad, over neurons that were moved: all, and by probability."""
    values = slope(curves.shifts, curves.outputs, curves.baseline)
    deviations = curves.activations.double().std(dim=0, correction=0)
    moved = (curves.activations != 0)[:, None].expand(values.shape)
    if in_deviations:
        values = values / deviations.where(deviations > 0, torch.inf)
        moved = moved & (deviations > 0)
    saturated = estimate.saturated[:, :, None].expand(moved.shape)
    groups = {
        "r": moved,
        "r_live": moved & ~saturated,
        "r_saturated": moved & saturated,
    }
    return {
        name: float(pearson(values[rows], estimate.values[rows], constant=0.0)) if int(rows.sum()) > 1 else None
        for name, rows in groups.items()
    }


def measure_groups() -> list[Row]:
    """Sum of NeurGrad against the effect of shifting random groups of all neurons."""
    rows: list[Row] = []
    for case in cases():
        task = case.task.select(slice(20))
        gradients = la.neuron_gradients(case.model, task, dtype=torch.float64, engine=EXACT, progress=False)
        for amount in AMOUNTS:
            found = la.group_effects(
                case.model, task, gradients, amount=amount, n_groups=N_GROUPS, engine=EXACT, progress=False
            )
            rows.append(
                {
                    "setup": case.name,
                    "amount": amount,
                    "of": len(gradients.sites),
                    "rows": found.to_dataframe().to_dict("records"),
                }
            )
            print(case.name, amount, found.to_dataframe().round(3).to_string(), sep="\n", flush=True)
    return rows


PARTS = {"estimators": measure_estimators, "ranges": measure_ranges, "groups": measure_groups}


def main(parts: list[str]) -> None:
    """Measure these parts, and keep what was measured of the others."""
    makers = {part: lambda make=make: rounded(make()) for part, make in PARTS.items()}
    measure(MEASURED, makers, parts, {"examples": N_EXAMPLES, "shifts": LARGE})


def rounded(value: object) -> object:
    """Numbers to five digits; those that are not finite as nothing."""
    if isinstance(value, list):
        return [rounded(one) for one in value]
    if isinstance(value, dict):
        return {str(key): rounded(one) for key, one in value.items()}
    if isinstance(value, float):
        return float(f"{value:.5g}") if value == value and abs(value) != float("inf") else None
    return value


if __name__ == "__main__":
    main(sys.argv[1:])
