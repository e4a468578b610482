"""Edits: what ablating growing numbers of components does to those that should change and those that should not."""

import plotly.graph_objects as go

from lens_ablation.attribution.editing import Edit
from lens_ablation.plots.style import (
    DASHES,
    MUTED,
    PALETTE,
    SYMBOLS,
    add_note,
    new_figure,
    plain,
    setting_words,
)

HEIGHT = 460


def edit_figure(edit: Edit) -> go.Figure:
    """Shares of targets and references that are answered as judged, against the number of ablated components.

    Example:
        >>> import lens_ablation as la
        >>> found = la.edits.forget_class(la.load_model("tiny-vit"), 3, n_masks=8, progress=False)
        >>> figure = la.plots.edit_figure(found.edit)
    """
    chosen_on = str(edit.settings["k_chosen_on"])
    n = edit.effects["target"].n_examples + edit.effects["reference"].n_examples
    figure = new_figure(
        f"Ablating components to {edit.direction} the target examples",
        setting_words(edit.settings, n),
        height=HEIGHT,
    )
    for i, name in enumerate(("target", "reference")):
        figure.add_trace(
            go.Scatter(
                x=edit.scan["k"],
                y=100 * edit.scan[name],
                name=name,
                mode="lines+markers",
                line={"color": PALETTE[i], "dash": DASHES[i]},
                marker={"symbol": SYMBOLS[i]},
                hovertemplate=f"{name}: %{{y:.1f}} % with %{{x}} ablated<extra></extra>",
            )
        )
    figure.add_vline(
        x=edit.k,
        line={"color": MUTED, "dash": "dash", "width": 1.5},
        annotation={"text": f"chosen: {edit.k}", "font": {"color": MUTED, "size": 12}},
    )
    figure.update_xaxes(title_text=f"ablated components (of {len(edit.components):,})", rangemode="tozero")
    figure.update_yaxes(title_text=f"examples counted by {plain(edit.settings['judge'])} (%)", range=[-2, 102])
    figure.update_layout(legend={"title": {"text": "examples"}})
    where = "number given" if chosen_on == "given" else f"number chosen on {chosen_on} examples"
    add_note(figure, f"{where} · references may fall by {100 * float(str(edit.settings['tolerance'])):g} points")
    return figure
