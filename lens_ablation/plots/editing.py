"""Edits: what ablating growing numbers of components does to those that should change and those that should not."""

import plotly.graph_objects as go

from lens_ablation.attribution.editing import Edit
from lens_ablation.plots.style import (
    FONT_SIZE,
    MUTED,
    NOTE_SIZE,
    SYMBOLS,
    add_note,
    line,
    new_figure,
    plain,
    setting_words,
)

HEIGHT = 460


def edit_figure(edit: Edit) -> go.Figure:
    """Shares of targets and references that are answered as judged, against the number of ablated components.

    Example:
        >>> import lens_ablation as la
        >>> vit = la.load_model("tiny-vit-typographic")
        >>> found = la.edits.withstand_labels(vit, n_masks=8, progress=False)
        >>> figure = la.plots.edit_figure(found.edit)
    """
    chosen_on = str(edit.settings["k_chosen_on"])
    shown = {name: edit.effects.get(f"validation {name}", edit.effects[name]) for name in ("target", "reference")}
    figure = new_figure(
        f"Ablating components to {edit.direction} the target examples",
        setting_words(edit.settings, sum(effect.n_examples for effect in shown.values())),
        height=HEIGHT,
    )
    for i, (name, effect) in enumerate(shown.items()):
        symbols = [SYMBOLS[i] if spares else f"{SYMBOLS[i]}-open" for spares in edit.scan["spares_reference"]]
        figure.add_trace(
            line(
                edit.scan["k"].to_numpy(),
                100 * edit.scan[name].to_numpy(),
                f"{name} ({effect.n_examples:,})",
                i,
                marker={"symbol": symbols, "size": 8},
                hovertemplate=f"{name}: %{{y:.1f}} % with %{{x}} ablated<extra></extra>",
            )
        )
    figure.add_vline(x=edit.k, line={"color": MUTED, "dash": "dash", "width": 1.5})
    figure.add_annotation(
        text=f"{edit.k:,} ablated",
        x=edit.k,
        y=1,
        yref="paper",
        yanchor="bottom",
        showarrow=False,
        font={"color": MUTED, "size": NOTE_SIZE},
    )
    figure.update_xaxes(title_text=f"ablated components (of {len(edit.components):,})", rangemode="tozero")
    figure.update_yaxes(title_text=f"examples counted by {plain(edit.settings['judge'])} (%)", range=[-3, 103])
    figure.update_layout(legend={"title": {"text": "examples", "font": {"size": FONT_SIZE}}})
    tolerance = 100 * float(str(edit.settings["tolerance"]))
    where = "number given" if chosen_on == "given" else f"number chosen on {chosen_on} examples"
    add_note(figure, f"{where} · hollow: references fall by more than {tolerance:g} percentage points")
    return figure
