"""Results as plotly figures: each function returns a ``Figure`` and shows, writes and changes nothing else."""

from lens_ablation.plots.attribution import attribution_figure, correlation_figure
from lens_ablation.plots.comparison import comparison_figure
from lens_ablation.plots.curves import pruning_figure
from lens_ablation.plots.editing import edit_figure
from lens_ablation.plots.heatmap import sweep_heatmap
from lens_ablation.plots.histograms import activation_histogram, distribution_gallery
from lens_ablation.plots.lens import lens_tokens_figure, lenses_figure
from lens_ablation.plots.modularity import (
    cross_pruning_figure,
    enrichment_figure,
    expert_map,
    overlap_figure,
    routing_figure,
    selective_figure,
)
from lens_ablation.plots.neurons import (
    comparison_panels,
    curves_figure,
    gradients_figure,
    groups_figure,
    linearity_figure,
)
from lens_ablation.plots.optimal import descent_figure, gaps_figure
from lens_ablation.plots.probes import layers_figure, probe_curve_figure, shift_effect_figure
from lens_ablation.plots.trace import trace_figure

__all__ = [
    "activation_histogram",
    "attribution_figure",
    "comparison_figure",
    "comparison_panels",
    "correlation_figure",
    "cross_pruning_figure",
    "curves_figure",
    "descent_figure",
    "distribution_gallery",
    "edit_figure",
    "enrichment_figure",
    "expert_map",
    "gaps_figure",
    "gradients_figure",
    "groups_figure",
    "layers_figure",
    "lens_tokens_figure",
    "lenses_figure",
    "linearity_figure",
    "overlap_figure",
    "probe_curve_figure",
    "pruning_figure",
    "routing_figure",
    "selective_figure",
    "shift_effect_figure",
    "sweep_heatmap",
    "trace_figure",
]
