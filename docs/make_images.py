"""Draw the pictures of the README: ``python docs/make_images.py``. Needs Chromium, and nothing from the network."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import plotly.graph_objects as go

import lens_ablation as la

IMAGES = Path(__file__).parent / "images"
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=10000",
)


def heads() -> go.Figure:
    """Every head of tiny-lm under four methods, on indirect objects."""
    model = la.load_model("tiny-lm")
    task, sites = la.tasks.ioi(model, n=128), la.heads(model)
    stats = la.collect_statistics(model, la.tasks.ioi(model, n=512, split="train"), sites)
    methods = [la.Zero(), la.Mean(stats), la.Peak(stats), la.Resample(task, match="batch")]
    return la.plots.comparison_figure([la.sweep(model, task, sites, method) for method in methods])


def draw(figure: go.Figure, path: Path, *, width: int = 1000) -> None:
    """A figure as PNG.

    Raises:
        FileNotFoundError: there is no Chromium.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise FileNotFoundError("Chromium draws the pictures and was not found; install it, for example with apt")
    height = int(figure.to_dict()["layout"]["height"])
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        html = figure.to_html(full_html=False, config={"displayModeBar": False}, default_width=f"{width}px")
        page.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin:0">{html}', encoding="utf-8")
        command = [browser, *OPTIONS, f"--user-data-dir={folder}/profile", f"--window-size={width},{height}"]
        shot = Path(folder) / "figure.png"
        subprocess.run([*command, f"--screenshot={shot}", page.as_uri()], check=True, capture_output=True, timeout=120)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shot, path)


if __name__ == "__main__":
    draw(heads(), IMAGES / "heads.png")
