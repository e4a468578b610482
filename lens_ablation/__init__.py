"""Ablation studies of transformers on TransformerLens.

What does this part of the network do, and what happens without it? Verbs are functions, ablation methods are small
frozen objects, sites are addressed like arrays. Every public name is loaded on its first use.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lens_ablation import errors as errors
    from lens_ablation import plots as plots
    from lens_ablation import zoo as zoo
    from lens_ablation.ablation import ablate as ablate
    from lens_ablation.ablation import hooks as hooks
    from lens_ablation.attribution import edits as edits
    from lens_ablation.attribution.attribute import attribute as attribute
    from lens_ablation.attribution.attribution import Attribution as Attribution
    from lens_ablation.attribution.bake import Baked as Baked
    from lens_ablation.attribution.bake import bake as bake
    from lens_ablation.attribution.baselines import GradientTimesMask as GradientTimesMask
    from lens_ablation.attribution.baselines import LeaveOneOut as LeaveOneOut
    from lens_ablation.attribution.baselines import RandomAttribution as RandomAttribution
    from lens_ablation.attribution.coar import Coar as Coar
    from lens_ablation.attribution.correlation import CounterfactualCorrelation as CounterfactualCorrelation
    from lens_ablation.attribution.correlation import counterfactual_correlation as counterfactual_correlation
    from lens_ablation.attribution.edit_constants import fit_edit_constants as fit_edit_constants
    from lens_ablation.attribution.editing import Edit as Edit
    from lens_ablation.attribution.editing import Effect as Effect
    from lens_ablation.attribution.editing import edit as edit
    from lens_ablation.attribution.path_baselines import Conductance as Conductance
    from lens_ablation.attribution.path_baselines import InternalInfluence as InternalInfluence
    from lens_ablation.attribution.rounds import edit_in_rounds as edit_in_rounds
    from lens_ablation.citations import cite as cite
    from lens_ablation.data import metrics as metrics
    from lens_ablation.data import skills as skills
    from lens_ablation.data import tasks as tasks
    from lens_ablation.data.fact_prompts import fact_records as fact_records
    from lens_ablation.data.multiple_choice import MultipleChoice as MultipleChoice
    from lens_ablation.data.multiple_choice import multiple_choice as multiple_choice
    from lens_ablation.data.multiple_choice import multiple_choice_splits as multiple_choice_splits
    from lens_ablation.data.random_inputs import random_inputs as random_inputs
    from lens_ablation.data.records import Splits as Splits
    from lens_ablation.data.records import disjoint_splits as disjoint_splits
    from lens_ablation.data.records import leaks as leaks
    from lens_ablation.data.task import Task as Task
    from lens_ablation.empirical.activation_probe import ActivationProbe as ActivationProbe
    from lens_ablation.empirical.compare import GradientComparison as GradientComparison
    from lens_ablation.empirical.compare import compare_gradients as compare_gradients
    from lens_ablation.empirical.curves import ShiftCurves as ShiftCurves
    from lens_ablation.empirical.estimate import neuron_gradients as neuron_gradients
    from lens_ablation.empirical.estimators import Gradient as Gradient
    from lens_ablation.empirical.estimators import IntegratedGradients as IntegratedGradients
    from lens_ablation.empirical.estimators import NeurGrad as NeurGrad
    from lens_ablation.empirical.forest_probe import ForestProbe as ForestProbe
    from lens_ablation.empirical.gradients import NeuronGradients as NeuronGradients
    from lens_ablation.empirical.groups import GroupEffects as GroupEffects
    from lens_ablation.empirical.groups import group_effects as group_effects
    from lens_ablation.empirical.log_prob_probe import LogProbProbe as LogProbProbe
    from lens_ablation.empirical.log_probability import LogProbIncrease as LogProbIncrease
    from lens_ablation.empirical.measured import EmpiricalGradient as EmpiricalGradient
    from lens_ablation.empirical.probe_studies import ProbeCurve as ProbeCurve
    from lens_ablation.empirical.probe_studies import probe_agreement as probe_agreement
    from lens_ablation.empirical.probe_studies import probe_curve as probe_curve
    from lens_ablation.empirical.probe_studies import probes_of_parts as probes_of_parts
    from lens_ablation.empirical.probes import SkillProbe as SkillProbe
    from lens_ablation.empirical.probes import fit_skill_probe as fit_skill_probe
    from lens_ablation.empirical.shift import shift as shift
    from lens_ablation.empirical.shift_effect import ShiftEffect as ShiftEffect
    from lens_ablation.empirical.shift_effect import shift_effect as shift_effect
    from lens_ablation.empirical.sign_probes import MagnitudeProbe as MagnitudeProbe
    from lens_ablation.empirical.sign_probes import PolarityProbe as PolarityProbe
    from lens_ablation.engine.estimate import Estimate as Estimate
    from lens_ablation.engine.estimate import estimate as estimate
    from lens_ablation.engine.options import Engine as Engine
    from lens_ablation.methods.bias import Bias as Bias
    from lens_ablation.methods.constant import Constant as Constant
    from lens_ablation.methods.counterfactual import Counterfactual as Counterfactual
    from lens_ablation.methods.mean import Mean as Mean
    from lens_ablation.methods.method import Method as Method
    from lens_ablation.methods.noise import Noise as Noise
    from lens_ablation.methods.optimal import Optimal as Optimal
    from lens_ablation.methods.optimal_constants import OptimalConstants as OptimalConstants
    from lens_ablation.methods.peak import Peak as Peak
    from lens_ablation.methods.resample import Resample as Resample
    from lens_ablation.methods.zero import Zero as Zero
    from lens_ablation.models.checks import SiteReport as SiteReport
    from lens_ablation.models.checks import check_sites as check_sites
    from lens_ablation.models.loading import load_model as load_model
    from lens_ablation.modularity.cross import CrossPruning as CrossPruning
    from lens_ablation.modularity.cross import cross_pruning as cross_pruning
    from lens_ablation.modularity.cross import selective_neurons as selective_neurons
    from lens_ablation.modularity.enrichment import Enrichment as Enrichment
    from lens_ablation.modularity.enrichment import enrichment as enrichment
    from lens_ablation.modularity.expert_splits import CoActivation as CoActivation
    from lens_ablation.modularity.expert_splits import ParameterClustering as ParameterClustering
    from lens_ablation.modularity.expert_splits import RandomSplit as RandomSplit
    from lens_ablation.modularity.expert_splits import RoundRobin as RoundRobin
    from lens_ablation.modularity.experts import Experts as Experts
    from lens_ablation.modularity.experts import split_into_experts as split_into_experts
    from lens_ablation.modularity.importance import Importance as Importance
    from lens_ablation.modularity.importance import importance as importance
    from lens_ablation.modularity.overlap import Overlap as Overlap
    from lens_ablation.modularity.overlap import overlap as overlap
    from lens_ablation.modularity.prune import prune_selectively as prune_selectively
    from lens_ablation.modularity.pruned import SelectivePruning as SelectivePruning
    from lens_ablation.modularity.random_weights import random_weights as random_weights
    from lens_ablation.modularity.routing import RoutedQuality as RoutedQuality
    from lens_ablation.modularity.routing import routed_quality as routed_quality
    from lens_ablation.modularity.use import NeuronUse as NeuronUse
    from lens_ablation.modularity.use import neuron_use as neuron_use
    from lens_ablation.optimal.compare import MethodComparison as MethodComparison
    from lens_ablation.optimal.compare import compare_methods as compare_methods
    from lens_ablation.optimal.corruption import GaussianNoise as GaussianNoise
    from lens_ablation.optimal.corruption import OptimalVector as OptimalVector
    from lens_ablation.optimal.fit import fit_optimal as fit_optimal
    from lens_ablation.optimal.lens import Lens as Lens
    from lens_ablation.optimal.lens import fit_lens as fit_lens
    from lens_ablation.optimal.lens_strategies import LogitLens as LogitLens
    from lens_ablation.optimal.lens_strategies import MeanAttention as MeanAttention
    from lens_ablation.optimal.lens_strategies import OptimalConstantAttention as OptimalConstantAttention
    from lens_ablation.optimal.lens_strategies import TunedLens as TunedLens
    from lens_ablation.optimal.trace import TraceResult as TraceResult
    from lens_ablation.optimal.trace import trace as trace
    from lens_ablation.selectors import attention_neurons as attention_neurons
    from lens_ablation.selectors import attentions as attentions
    from lens_ablation.selectors import heads as heads
    from lens_ablation.selectors import mlps as mlps
    from lens_ablation.selectors import neurons as neurons
    from lens_ablation.selectors import patterns as patterns
    from lens_ablation.selectors import reader_rows as reader_rows
    from lens_ablation.selectors import writer_rows as writer_rows
    from lens_ablation.sites import Site as Site
    from lens_ablation.sites import SiteSet as SiteSet
    from lens_ablation.statistics.activation_statistics import ActivationStatistics as ActivationStatistics
    from lens_ablation.statistics.collect import collect_statistics as collect_statistics
    from lens_ablation.studies.pruning import PruningCurve as PruningCurve
    from lens_ablation.studies.pruning import pruning_curve as pruning_curve
    from lens_ablation.studies.sweep import SweepResult as SweepResult
    from lens_ablation.studies.sweep import sweep as sweep

_WHERE = {
    "enrichment": "lens_ablation.modularity.enrichment",
    "Enrichment": "lens_ablation.modularity.enrichment",
    "RoutedQuality": "lens_ablation.modularity.routing",
    "routed_quality": "lens_ablation.modularity.routing",
    "RoundRobin": "lens_ablation.modularity.expert_splits",
    "RandomSplit": "lens_ablation.modularity.expert_splits",
    "CoActivation": "lens_ablation.modularity.expert_splits",
    "ParameterClustering": "lens_ablation.modularity.expert_splits",
    "split_into_experts": "lens_ablation.modularity.experts",
    "Experts": "lens_ablation.modularity.experts",
    "random_weights": "lens_ablation.modularity.random_weights",
    "selective_neurons": "lens_ablation.modularity.cross",
    "cross_pruning": "lens_ablation.modularity.cross",
    "CrossPruning": "lens_ablation.modularity.cross",
    "overlap": "lens_ablation.modularity.overlap",
    "Overlap": "lens_ablation.modularity.overlap",
    "prune_selectively": "lens_ablation.modularity.prune",
    "SelectivePruning": "lens_ablation.modularity.pruned",
    "Importance": "lens_ablation.modularity.importance",
    "importance": "lens_ablation.modularity.importance",
    "NeuronUse": "lens_ablation.modularity.use",
    "neuron_use": "lens_ablation.modularity.use",
    "GradientComparison": "lens_ablation.empirical.compare",
    "compare_gradients": "lens_ablation.empirical.compare",
    "GroupEffects": "lens_ablation.empirical.groups",
    "group_effects": "lens_ablation.empirical.groups",
    "ShiftCurves": "lens_ablation.empirical.curves",
    "EmpiricalGradient": "lens_ablation.empirical.measured",
    "neuron_gradients": "lens_ablation.empirical.estimate",
    "Gradient": "lens_ablation.empirical.estimators",
    "IntegratedGradients": "lens_ablation.empirical.estimators",
    "NeurGrad": "lens_ablation.empirical.estimators",
    "NeuronGradients": "lens_ablation.empirical.gradients",
    "LogProbIncrease": "lens_ablation.empirical.log_probability",
    "Optimal": "lens_ablation.methods.optimal",
    "OptimalConstants": "lens_ablation.methods.optimal_constants",
    "fit_optimal": "lens_ablation.optimal.fit",
    "compare_methods": "lens_ablation.optimal.compare",
    "MethodComparison": "lens_ablation.optimal.compare",
    "trace": "lens_ablation.optimal.trace",
    "TraceResult": "lens_ablation.optimal.trace",
    "GaussianNoise": "lens_ablation.optimal.corruption",
    "OptimalVector": "lens_ablation.optimal.corruption",
    "fit_lens": "lens_ablation.optimal.lens",
    "Lens": "lens_ablation.optimal.lens",
    "LogitLens": "lens_ablation.optimal.lens_strategies",
    "TunedLens": "lens_ablation.optimal.lens_strategies",
    "OptimalConstantAttention": "lens_ablation.optimal.lens_strategies",
    "MeanAttention": "lens_ablation.optimal.lens_strategies",
    "ActivationStatistics": "lens_ablation.statistics.activation_statistics",
    "Bias": "lens_ablation.methods.bias",
    "Constant": "lens_ablation.methods.constant",
    "Counterfactual": "lens_ablation.methods.counterfactual",
    "Mean": "lens_ablation.methods.mean",
    "Method": "lens_ablation.methods.method",
    "Noise": "lens_ablation.methods.noise",
    "Peak": "lens_ablation.methods.peak",
    "Attribution": "lens_ablation.attribution.attribution",
    "Coar": "lens_ablation.attribution.coar",
    "Conductance": "lens_ablation.attribution.path_baselines",
    "CounterfactualCorrelation": "lens_ablation.attribution.correlation",
    "GradientTimesMask": "lens_ablation.attribution.baselines",
    "InternalInfluence": "lens_ablation.attribution.path_baselines",
    "LeaveOneOut": "lens_ablation.attribution.baselines",
    "RandomAttribution": "lens_ablation.attribution.baselines",
    "attribute": "lens_ablation.attribution.attribute",
    "counterfactual_correlation": "lens_ablation.attribution.correlation",
    "Baked": "lens_ablation.attribution.bake",
    "bake": "lens_ablation.attribution.bake",
    "fit_edit_constants": "lens_ablation.attribution.edit_constants",
    "Edit": "lens_ablation.attribution.editing",
    "Effect": "lens_ablation.attribution.editing",
    "edit": "lens_ablation.attribution.editing",
    "edit_in_rounds": "lens_ablation.attribution.rounds",
    "Engine": "lens_ablation.engine.options",
    "Estimate": "lens_ablation.engine.estimate",
    "PruningCurve": "lens_ablation.studies.pruning",
    "Resample": "lens_ablation.methods.resample",
    "Site": "lens_ablation.sites",
    "SiteReport": "lens_ablation.models.checks",
    "SiteSet": "lens_ablation.sites",
    "SweepResult": "lens_ablation.studies.sweep",
    "Task": "lens_ablation.data.task",
    "Zero": "lens_ablation.methods.zero",
    "ablate": "lens_ablation.ablation",
    "attention_neurons": "lens_ablation.selectors",
    "attentions": "lens_ablation.selectors",
    "check_sites": "lens_ablation.models.checks",
    "cite": "lens_ablation.citations",
    "collect_statistics": "lens_ablation.statistics.collect",
    "heads": "lens_ablation.selectors",
    "hooks": "lens_ablation.ablation",
    "load_model": "lens_ablation.models.loading",
    "mlps": "lens_ablation.selectors",
    "neurons": "lens_ablation.selectors",
    "patterns": "lens_ablation.selectors",
    "reader_rows": "lens_ablation.selectors",
    "writer_rows": "lens_ablation.selectors",
    "estimate": "lens_ablation.engine.estimate",
    "pruning_curve": "lens_ablation.studies.pruning",
    "random_inputs": "lens_ablation.data.random_inputs",
    "sweep": "lens_ablation.studies.sweep",
    "MultipleChoice": "lens_ablation.data.multiple_choice",
    "Splits": "lens_ablation.data.records",
    "disjoint_splits": "lens_ablation.data.records",
    "fact_records": "lens_ablation.data.fact_prompts",
    "leaks": "lens_ablation.data.records",
    "multiple_choice": "lens_ablation.data.multiple_choice",
    "multiple_choice_splits": "lens_ablation.data.multiple_choice",
    "ActivationProbe": "lens_ablation.empirical.activation_probe",
    "ForestProbe": "lens_ablation.empirical.forest_probe",
    "LogProbProbe": "lens_ablation.empirical.log_prob_probe",
    "MagnitudeProbe": "lens_ablation.empirical.sign_probes",
    "PolarityProbe": "lens_ablation.empirical.sign_probes",
    "SkillProbe": "lens_ablation.empirical.probes",
    "fit_skill_probe": "lens_ablation.empirical.probes",
    "ProbeCurve": "lens_ablation.empirical.probe_studies",
    "probe_curve": "lens_ablation.empirical.probe_studies",
    "probe_agreement": "lens_ablation.empirical.probe_studies",
    "probes_of_parts": "lens_ablation.empirical.probe_studies",
    "shift": "lens_ablation.empirical.shift",
    "ShiftEffect": "lens_ablation.empirical.shift_effect",
    "shift_effect": "lens_ablation.empirical.shift_effect",
}
_MODULES = {
    "edits": "lens_ablation.attribution.edits",
    "errors": "lens_ablation.errors",
    "tasks": "lens_ablation.data.tasks",
    "metrics": "lens_ablation.data.metrics",
    "plots": "lens_ablation.plots",
    "skills": "lens_ablation.data.skills",
    "zoo": "lens_ablation.zoo",
}

__all__ = [
    "ActivationProbe",
    "ActivationStatistics",
    "Attribution",
    "Baked",
    "Bias",
    "CoActivation",
    "Coar",
    "Conductance",
    "Constant",
    "Counterfactual",
    "CounterfactualCorrelation",
    "CrossPruning",
    "Edit",
    "Effect",
    "EmpiricalGradient",
    "Engine",
    "Enrichment",
    "Estimate",
    "Experts",
    "ForestProbe",
    "GaussianNoise",
    "Gradient",
    "GradientComparison",
    "GradientTimesMask",
    "GroupEffects",
    "Importance",
    "IntegratedGradients",
    "InternalInfluence",
    "LeaveOneOut",
    "Lens",
    "LogProbIncrease",
    "LogProbProbe",
    "LogitLens",
    "MagnitudeProbe",
    "Mean",
    "MeanAttention",
    "Method",
    "MethodComparison",
    "MultipleChoice",
    "NeurGrad",
    "NeuronGradients",
    "NeuronUse",
    "Noise",
    "Optimal",
    "OptimalConstantAttention",
    "OptimalConstants",
    "OptimalVector",
    "Overlap",
    "ParameterClustering",
    "Peak",
    "PolarityProbe",
    "ProbeCurve",
    "PruningCurve",
    "RandomAttribution",
    "RandomSplit",
    "Resample",
    "RoundRobin",
    "RoutedQuality",
    "SelectivePruning",
    "ShiftCurves",
    "ShiftEffect",
    "Site",
    "SiteReport",
    "SiteSet",
    "SkillProbe",
    "Splits",
    "SweepResult",
    "Task",
    "TraceResult",
    "TunedLens",
    "Zero",
    "ablate",
    "attention_neurons",
    "attentions",
    "attribute",
    "bake",
    "check_sites",
    "cite",
    "collect_statistics",
    "compare_gradients",
    "compare_methods",
    "counterfactual_correlation",
    "cross_pruning",
    "disjoint_splits",
    "edit",
    "edit_in_rounds",
    "edits",
    "enrichment",
    "errors",
    "estimate",
    "fact_records",
    "fit_edit_constants",
    "fit_lens",
    "fit_optimal",
    "fit_skill_probe",
    "group_effects",
    "heads",
    "hooks",
    "importance",
    "leaks",
    "load_model",
    "metrics",
    "mlps",
    "multiple_choice",
    "multiple_choice_splits",
    "neuron_gradients",
    "neuron_use",
    "neurons",
    "overlap",
    "patterns",
    "plots",
    "probe_agreement",
    "probe_curve",
    "probes_of_parts",
    "prune_selectively",
    "pruning_curve",
    "random_inputs",
    "random_weights",
    "reader_rows",
    "routed_quality",
    "selective_neurons",
    "shift",
    "shift_effect",
    "skills",
    "split_into_experts",
    "sweep",
    "tasks",
    "trace",
    "writer_rows",
    "zoo",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'lens_ablation' has no attribute {name!r}; dir(lens_ablation) lists its names")


def __dir__() -> list[str]:
    return __all__
