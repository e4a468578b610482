"""One HTML file with figures, tables and settings that opens offline and loads nothing from anywhere."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from lens_ablation.report.output import write_whole

FILE_NAME = "report.html"

_CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["sendChartToCloud"]}
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_STYLE = """
:root { color: #1f2430; background: #fff; line-height: 1.5;
  font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif; }
body { max-width: 1080px; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid #e4e7ec; }
p { max-width: 46rem; margin: .5rem 0 1rem; }
nav { margin: 1rem 0 0; font-size: .95rem; } nav a { margin-right: 1.1rem; color: #0b5cad; }
.figure { margin: 1rem 0; overflow-x: auto; } .figure > div { min-width: 820px; }
.table { overflow: auto; max-height: 32rem; margin: 1rem 0; border: 1px solid #e4e7ec; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem; text-align: left; border-bottom: 1px solid #eef0f3; white-space: nowrap; }
th { position: sticky; top: 0; background: #f6f7f9; } td.number, th.number { text-align: right; }
tr:last-child td { border-bottom: 0; }
details { margin: 1rem 0; } summary { cursor: pointer; color: #5b6472; }
pre { overflow: auto; max-height: 28rem; background: #f6f7f9; padding: .75rem 1rem; border-radius: 6px;
  font-size: .82rem; }
"""

Part = str | go.Figure | pd.DataFrame | Mapping[str, object]
"""A paragraph, a figure, a table, or settings that are folded away."""


@dataclass(frozen=True, eq=False)
class Section:
    """A titled part of a report; its parts stand in their order.

    Attributes:
        title: Heading.
        parts: Paragraphs (``str``), figures, tables (``DataFrame``) and settings (mappings).
    """

    title: str
    parts: Sequence[Part]


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Write a report as one file with plotly.js inside, about 5 MB, and give its path.

    Text is shown as it is: nothing in it is taken for markup.

    Args:
        path: A file that ends in ``.html``, or a folder, in which it becomes ``report.html``.
        title: Heading of the page.
        sections: What it shows.

    Raises:
        OSError: the file cannot be written.
        TypeError: a part is nothing that a report can show.

    Example:
        >>> import tempfile
        >>> from lens_ablation.report.html import Section, write_report
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(folder, "Nothing yet", [Section("Empty", ["No results."])]).name
        'report.html'
    """
    file = Path(path).expanduser()
    file = file if file.suffix.lower() == ".html" else file / FILE_NAME
    return write_whole(file, _page(title, sections))


def _page(title: str, sections: Sequence[Section]) -> str:
    links = [f'<a href="#section-{i}">{html.escape(s.title)}</a>' for i, s in enumerate(sections)]
    contents = f"<nav>{''.join(links)}</nav>" if len(links) > 1 else ""
    body = "\n".join(_section(i, section) for i, section in enumerate(sections))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<h1>{html.escape(title)}</h1>
{contents}
{body}
</body>
</html>
"""


def _section(number: int, section: Section) -> str:
    parts = "\n".join(_part(part, f"figure-{number}-{i}") for i, part in enumerate(section.parts))
    return f'<section id="section-{number}">\n<h2>{html.escape(section.title)}</h2>\n{parts}\n</section>'


def _part(part: Part, name: str) -> str:
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    if isinstance(part, go.Figure):
        figure = to_html(part, config=_CONFIG, include_plotlyjs=False, full_html=False, div_id=name)
        return f'<div class="figure">{figure}</div>'
    if isinstance(part, pd.DataFrame):
        return _table(part)
    if isinstance(part, Mapping):
        text = html.escape(json.dumps(part, indent=2, ensure_ascii=False, default=str))
        return f"<details><summary>Settings</summary><pre>{text}</pre></details>"
    raise TypeError(f"a report shows text, figures, tables and settings, got {type(part).__name__}")


def _table(table: pd.DataFrame) -> str:
    kinds = ["number" if pd.api.types.is_numeric_dtype(kind) else "text" for kind in table.dtypes]
    names = [f'<th class="{kind}">{html.escape(str(name))}</th>' for name, kind in zip(table, kinds, strict=True)]
    rows = [
        "".join(f'<td class="{kind}">{_cell(value)}</td>' for value, kind in zip(row, kinds, strict=True))
        for row in table.itertuples(index=False, name=None)
    ]
    body = "".join(f"<tr>{row}</tr>\n" for row in rows)
    return (
        f'<div class="table"><table>\n<thead><tr>{"".join(names)}</tr></thead>\n<tbody>{body}</tbody>\n</table></div>'
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    return html.escape(str(value))
