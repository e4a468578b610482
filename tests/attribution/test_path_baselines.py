"""Internal influence and conductance against Captum on the plain models, NumPy, and what they must add up to."""

import captum.attr
import numpy as np
import pytest
import torch
from torch import Tensor

import lens_ablation as la
from lens_ablation.attribution.outputs import Setting
from lens_ablation.attribution.path_baselines import AlongPath, PathJob
from lens_ablation.components import as_components
from tests.families import D_HEAD, FAMILIES, N_HEADS, N_LAYERS, Family, build

pytestmark = pytest.mark.model

WAYS = [
    la.InternalInfluence(n_steps=5),
    la.Conductance(n_steps=5),
    # Captum has its even points from float32, where eighths are exact
    la.Conductance(n_steps=8, spacing="even", start=0.3),
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return build(request.param, dtype=torch.float64)


@pytest.fixture(scope="module")
def gpt2() -> Family:
    return build("gpt2", dtype=torch.float64)


class Plain(torch.nn.Module):
    """The metric as a function of pixels, or of token embeddings, of the plain Hugging Face model."""

    def __init__(self, family: Family, task: la.Task):
        super().__init__()
        self.name, self.inner, self.task = family.name, family.plain, task

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        rows = torch.arange(len(inputs)) % self.task.n_examples
        if self.name == "vit":
            logits = self.inner(inputs).logits
        elif self.name == "bert":
            # the bridge's embedding is that with positions, after its norm
            handle = self.inner.bert.embeddings.register_forward_hook(lambda *_: inputs)
            logits = self.inner(self.task.inputs[rows], attention_mask=mask).logits
            handle.remove()
        else:
            logits = self.inner(inputs_embeds=inputs, attention_mask=mask).logits
        return self.task.select(rows).score(logits)


def a_task(family: Family, n: int = 3) -> la.Task:
    inputs = family.inputs(n=n)
    mask = None
    if family.name != "vit":
        mask = torch.ones_like(inputs, dtype=torch.bool)
        mask[1, 4:] = False  # padded on the right
    return la.Task(inputs=inputs, answers=torch.arange(n) % 5, attention_mask=mask)


def weights_of(family: Family, task: la.Task, sites: object, way: AlongPath, **options: object) -> Tensor:
    """Weights in float64, before they are put into an attribution."""
    components = as_components(sites, family.model)
    methods = (la.Zero(),) * len(components.sets)
    job = PathJob.of(Setting(model=family.model, task=task, components=components, methods=methods, **options), way)
    return torch.cat([job.run(shard)["weights"] for shard in range(len(job.shards))])


def by_captum(family: Family, task: la.Task, way: AlongPath, module: torch.nn.Module) -> Tensor:
    """Captum at the input of a linear map of the plain model, ``[example, pos, width]``."""
    inputs = task.inputs
    if family.name != "vit":
        embedding = family.plain.bert.embeddings if family.name == "bert" else family.plain.get_input_embeddings()
        inputs = embedding(inputs).detach()
    chosen = {"baselines": way.start, "n_steps": way.n_steps, "attribute_to_layer_input": True}
    if task.attention_mask is not None:
        chosen["additional_forward_args"] = (task.attention_mask.long(),)
    function = Plain(family, task)
    if isinstance(way, la.InternalInfluence):
        return captum.attr.InternalInfluence(function, module).attribute(inputs, **chosen).detach()
    rule = "gausslegendre" if way.spacing == "gauss_legendre" else "riemann_trapezoid"
    return captum.attr.LayerConductance(function, module).attribute(inputs, method=rule, **chosen).detach()


@pytest.mark.parametrize("way", WAYS, ids=repr)
def test_weights_are_those_of_captum_on_the_plain_model(family: Family, way: AlongPath):
    """Heads at the input of the output projection, neurons at that of the MLP's second map."""
    task = a_task(family)
    kinds = [(la.heads(family.model), (N_HEADS, D_HEAD), family.output_projection)]
    if family.name != "opt":  # its MLP knows no rows, so that Captum cannot tell steps apart in it
        kinds.append((la.neurons(family.model), (-1, 1), family.down_projection))
    found = weights_of(family, task, [sites for sites, _, _ in kinds], way)
    real = torch.ones(1, 1) if task.attention_mask is None else task.attention_mask
    expected = []
    for _, width, module_of in kinds:
        for layer in range(N_LAYERS):
            at_input = by_captum(family, task, way, module_of(family.plain, layer))
            expected.append((at_input * real[:, :, None]).sum(dim=1).unflatten(1, width).sum(dim=2))
    assert float((found - torch.cat(expected, dim=1)).abs().max()) < 1e-8
    assert float(found.abs().max()) > 1e-3


def test_hook_points_are_modules_that_captum_can_watch(gpt2: Family):
    """The same again on the hook modules of the bridge, with the path at the embedding's own hook."""
    task, way = la.Task(inputs=gpt2.inputs(n=2), answers=torch.tensor([1, 2])), la.Conductance(n_steps=4)
    model = gpt2.model
    embedded = gpt2.plain.get_input_embeddings()(task.inputs).detach()

    def metric(inputs: Tensor) -> Tensor:
        repeats = len(inputs) // 2
        logits = model.run_with_hooks(
            task.inputs.repeat(repeats, 1), fwd_hooks=[("hook_embed", lambda activation, hook: inputs)]
        )
        return task.select(torch.arange(len(inputs)) % 2).score(logits)

    layer = captum.attr.LayerConductance(metric, model.hook_dict["blocks.1.mlp.hook_post"])
    expected = layer.attribute(embedded, n_steps=4).detach().sum(dim=1)
    torch.testing.assert_close(weights_of(gpt2, task, la.neurons(model)[1], way), expected, atol=1e-8, rtol=0)


def test_one_head_is_recomputed_with_numpy_from_activations_and_differences(gpt2: Family):
    task = la.Task(inputs=gpt2.inputs(n=1, n_pos=3), answers=torch.tensor([7]))
    model, name, t = gpt2.model, "blocks.1.attn.hook_z", np.linspace(0, 1, 3)
    embedded = gpt2.plain.get_input_embeddings()(task.inputs).detach()

    def run(share: float, shift: np.ndarray | None = None) -> tuple[float, np.ndarray]:
        seen = {}

        def at_head(z: Tensor, hook: object) -> Tensor:
            seen["z"] = z[0, :, 2].detach().numpy().copy()
            if shift is not None:
                z = z.clone()
                z[0, :, 2] += torch.from_numpy(shift)
            return z

        hooks = [("hook_embed", lambda activation, hook: share * embedded), (name, at_head)]
        with torch.no_grad():
            return float(task.score(model.run_with_hooks(task.inputs, fwd_hooks=hooks))), seen["z"]

    def slope(share: float) -> np.ndarray:
        found = np.zeros((3, D_HEAD))
        for place in np.ndindex(found.shape):
            shift = np.zeros_like(found)
            shift[place] = 1e-5
            found[place] = (run(share, shift)[0] - run(share, -shift)[0]) / 2e-5
        return found

    z = [run(share)[1] for share in t]
    expected = sum((slope(t[k]) * (z[k + 1] - z[k])).sum() for k in range(2))
    found = weights_of(gpt2, task, la.heads(model)[1, 2], la.Conductance(n_steps=2, spacing="even"))
    np.testing.assert_allclose(float(found), expected, rtol=1e-6)


def test_conductance_of_all_that_the_output_flows_through_adds_up(gpt2: Family):
    """Only the last MLP's output is left in the last residual, so that everything flows through its neurons."""
    task, model = a_task(gpt2), gpt2.model
    last, seen = N_LAYERS - 1, {}

    def keep(residual: Tensor, hook: object) -> None:
        seen["middle"] = residual

    def without(residual: Tensor, hook: object) -> Tensor:
        return residual - seen["middle"]

    hooks = [(f"blocks.{last}.hook_resid_mid", keep), (f"blocks.{last}.hook_resid_post", without)]
    neurons = la.neurons(model)[last]
    with model.hooks(fwd_hooks=hooks):
        whole = [
            weights_of(gpt2, task, neurons, la.Conductance(n_steps=n, spacing="even")).sum(dim=1) for n in (50, 100)
        ]
        with torch.no_grad():
            full = task.score(model(task.inputs, attention_mask=task.attention_mask.long()))
            zero = [("hook_embed", lambda activation, hook: activation * 0)]
            options = {"fwd_hooks": zero, "attention_mask": task.attention_mask.long()}
            empty = task.score(model.run_with_hooks(task.inputs, **options))
    coarse, fine = ((found - (full - empty)).abs() for found in whole)
    assert bool((fine < 0.02 * (full - empty).abs()).all())
    # the error of the sum falls as the steps
    torch.testing.assert_close(coarse / fine, torch.full_like(fine, 2), atol=0.1, rtol=0)


def test_influence_of_coordinates_adds_up_to_that_of_their_head(gpt2: Family):
    task, way = a_task(gpt2), la.InternalInfluence(n_steps=3)
    heads, coordinates = la.heads(gpt2.model), la.attention_neurons(gpt2.model)
    both = weights_of(gpt2, task, [heads, coordinates], way)
    by_head, by_coordinate = both.split([len(heads), len(coordinates)], dim=1)
    torch.testing.assert_close(by_coordinate.unflatten(1, (-1, D_HEAD)).sum(dim=2), by_head)


@pytest.mark.parametrize("way", WAYS[:2], ids=repr)
def test_passes_of_any_size_and_chosen_tokens_give_the_same_weights(gpt2: Family, way: AlongPath):
    task = a_task(gpt2)
    parts = [la.heads(gpt2.model), la.mlps(gpt2.model), la.attentions(gpt2.model)]
    whole = weights_of(gpt2, task, parts, way)
    for size in (1, 2, 7):
        torch.testing.assert_close(weights_of(gpt2, task, parts, way, batch_size=size), whole)
    later = weights_of(gpt2, task, parts, way, positions="all_but_first")
    first = weights_of(gpt2, task, parts, way, positions=torch.zeros(3, 1, dtype=torch.int64))
    torch.testing.assert_close(first + later, whole)


def test_an_attribution_counts_its_passes_and_is_kept_in_a_store(gpt2: Family, tmp_path):
    task, heads = a_task(gpt2), la.heads(gpt2.model)
    done: list[int] = []
    for way, n_passes in ((la.InternalInfluence(n_steps=5), 16), (la.Conductance(n_steps=5), 19)):
        part = la.Engine(store=tmp_path / way.name)
        found = la.attribute(
            gpt2.model, task, heads, way, engine=part, progress=lambda n, total: done.append(total - n)
        )
        again = la.attribute(gpt2.model, task, heads, way, engine=part, progress=False)
        assert done[-1] == 0
        assert found.n_passes == n_passes
        assert torch.equal(found.weights, again.weights)
        torch.testing.assert_close(found.weights.double(), weights_of(gpt2, task, heads, way), atol=1e-6, rtol=1e-5)
        loaded = la.Attribution.load(found.save(tmp_path / f"saved {way.name}"))
        assert loaded.settings == found.settings


def test_what_has_no_path_or_no_gradient_is_refused(gpt2: Family):
    task, heads, way = a_task(gpt2), la.heads(gpt2.model), la.Conductance(n_steps=2)

    def counted(logits: Tensor, batch: la.Task) -> Tensor:
        return logits[:, -1].argmax(dim=1).double()

    for metric in (la.metrics.top1, counted):
        with pytest.raises(ValueError, match="no gradient"):
            la.attribute(gpt2.model, task, heads, way, metric=metric, progress=False)
    with pytest.raises(ValueError, match="leave out method"):
        la.attribute(gpt2.model, task, heads, way, method=la.Constant(0.1), progress=False)
    with pytest.raises(ValueError, match=r"take heads\(model\)"):
        la.attribute(gpt2.model, task, la.patterns(gpt2.model), way, progress=False)
    with pytest.raises(ValueError, match="at least 1"):
        la.InternalInfluence(n_steps=0)


def test_on_a_trained_classifier_they_predict_ablations_in_the_order_of_the_paper():
    model = la.load_model("tiny-vit")
    task = la.tasks.digits(model, n=16).with_metric(la.metrics.correct_margin)
    parts = [la.attention_neurons(model), la.neurons(model)]
    ways = {
        "gradient": la.GradientTimesMask(),
        "conductance": la.Conductance(n_steps=8),
        "influence": la.InternalInfluence(n_steps=8),
    }
    found = {name: la.attribute(model, task, parts, way, progress=False) for name, way in ways.items()}
    judged = la.counterfactual_correlation(found, model, task, 0.1, n_masks=40, progress=False)
    gradient, conductance, influence = judged.mean[:, 0].tolist()
    assert gradient > conductance + 0.2 > influence + 0.3
    assert abs(influence) < 0.15
