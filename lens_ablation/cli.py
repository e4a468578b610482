"""Command line: ``lens-ablation demo | stats | sweep | prune | models | cite``.

Torch and TransformerLens are imported inside the commands, so that help and mistyped options answer at once.
"""

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, ParamSpec, TypeVar

import typer

from lens_ablation.cli_study import (
    DTYPES,
    EXECUTORS,
    METHODS,
    POSITIONS,
    SITES,
    Study,
    check_data,
    load,
    require_known,
    sites_of,
    task_of,
)

if TYPE_CHECKING:
    pass

DEBUG = "LENS_ABLATION_DEBUG"
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Ablation studies of transformers: which heads, neurons and layers matter, and under which ablation.",
    epilog=f"Errors are one line; set {DEBUG}=1 to see where they come from.",
)

P = ParamSpec("P")
Number = TypeVar("Number", int, float)

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="An embedded model, a folder of save_pretrained, or a hub name.")
]
TaskName = Annotated[str | None, typer.Option("--task", help="A task that comes with the package, such as ioi.")]
DataFile = Annotated[
    Path | None, typer.Option("--data", help="Instead of a task: a Parquet, JSON, CSV or text file, or a folder.")
]
SiteKind = Annotated[str, typer.Option("--sites", help=f"What is ablated: {', '.join(SITES)}.")]
Examples = Annotated[int, typer.Option("--n", min=1, help="Number of examples.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the examples and of random replacements.")]
Where = Annotated[str, typer.Option("--positions", help=f"Which tokens are ablated: {', '.join(POSITIONS)}.")]
MetricName = Annotated[str | None, typer.Option("--metric", help="Instead of the task's own.")]
Measured = Annotated[
    Path | None,
    typer.Option(
        "--statistics",
        help="What `stats` wrote, for mean, peak and noise; otherwise measured on the task's training split.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="Where the model runs, such as cpu or cuda.")]
Output = Annotated[Path, typer.Option("--output", help="Folder of report, tables and results.")]
Store = Annotated[
    Path | None, typer.Option("--store", help="Folder that keeps finished parts, so that a killed run continues.")
]
ExecutorName = Annotated[str, typer.Option("--executor", help=f"Who computes: {', '.join(EXECUTORS)}.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Parts computed at once; not for serial.")]
DtypeName = Annotated[
    str | None, typer.Option("--dtype", help=f"Of the forward passes, instead of the model's: {', '.join(DTYPES)}.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars and no summary.")]


def run() -> None:
    """Entry point of the ``lens-ablation`` command."""
    # so that a batch system which ends the job leaves no half-written output either
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    app()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch with one thread: a second one helps tiny models little, and on a busy machine it slows them tenfold."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _reported(command: Callable[P, None]) -> Callable[P, None]:
    """The command with its errors as one line on stderr and an exit code, and no traceback."""

    @wraps(command)
    def reporting(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            _leave("interrupted; nothing was written", 130)
        except (ValueError, OSError, RuntimeError) as error:
            if os.environ.get(DEBUG):
                raise
            _leave(f"error: {_one_line(error)}", 1)

    return reporting


def _leave(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return " ".join(text.split()) or type(error).__name__


@app.command()
@_reported
def demo(output: Output = Path("lens-ablation-demo"), quiet: Quiet = False) -> None:
    """Which heads of two small models matter, under zero, mean, resample and peak ablation."""
    from lens_ablation.report.demo import run_demo
    from lens_ablation.report.output import whole_folder

    with whole_folder(output) as folder, _one_thread():
        run_demo(folder, progress=not quiet, say=_sayer(quiet))
    _show_report(output, quiet)


@app.command()
@_reported
def stats(
    model: ModelName,
    task: TaskName = None,
    data: DataFile = None,
    sites: SiteKind = "heads",
    n: Examples = 512,
    seed: Seed = 0,
    allow_small: Annotated[
        bool, typer.Option("--allow-small", help="Accept fewer than 100 values of an activation.")
    ] = False,
    device: Device = "cpu",
    output: Output = Path("lens-ablation-stats"),
    quiet: Quiet = False,
) -> None:
    """Measure activations: moments, histograms and peaks, for mean, peak and noise ablation.

    Of a task, the training split is measured, so that studies on it stay held out.
    """
    check_data(task, data)
    require_known("kind of sites", sites, SITES)
    from lens_ablation.report.html import write_report
    from lens_ablation.report.output import whole_folder
    from lens_ablation.report.sections import STATISTICS, save_statistics, statistics_section
    from lens_ablation.statistics.collect import collect_statistics

    with whole_folder(output) as folder:
        loaded = load(model, device)
        asked = task_of(loaded, task, data, n, seed, split="train")
        found = collect_statistics(loaded, asked, sites_of(loaded, sites), allow_small=allow_small, progress=not quiet)
        save_statistics(folder, STATISTICS, found)
        section = statistics_section(_title(sites, model, asked.name), found)
        write_report(folder, f"Activations of {model} on {asked.name}", [section])
    _show_report(output, quiet)


@app.command()
@_reported
def sweep(
    model: ModelName,
    task: TaskName = None,
    data: DataFile = None,
    sites: SiteKind = "heads",
    method: Annotated[
        str, typer.Option("--method", help=f"One or several with commas: {', '.join(METHODS)}.")
    ] = "zero",
    n: Examples = 64,
    seed: Seed = 0,
    positions: Where = "all",
    metric: MetricName = None,
    statistics: Measured = None,
    device: Device = "cpu",
    store: Store = None,
    executor: ExecutorName = "serial",
    workers: Workers = None,
    dtype: DtypeName = None,
    output: Output = Path("lens-ablation-sweep"),
    quiet: Quiet = False,
) -> None:
    """Ablate each site on its own, and show which ones matter."""
    wanted = Study(
        model=model,
        task=task,
        data=data,
        sites=sites,
        methods=_split(method),
        n=n,
        seed=seed,
        positions=positions,
        metric=metric,
        statistics=statistics,
        device=device,
        store=store,
        executor=executor,
        workers=workers,
        dtype=dtype,
        quiet=quiet,
    )
    wanted.check()
    from lens_ablation.report.html import write_report
    from lens_ablation.report.output import whole_folder
    from lens_ablation.report.sections import save_sweep, sweep_lines, sweep_section
    from lens_ablation.studies.sweep import sweep as run_sweep

    say = _sayer(quiet)
    with whole_folder(output) as folder:
        ready = wanted.prepare()
        results = []
        for name, replacement in zip(wanted.methods, ready.methods, strict=True):
            result = run_sweep(
                ready.model,
                ready.task,
                ready.sites,
                replacement,
                positions=positions,
                engine=wanted.engine(name),
                progress=not quiet,
            )
            save_sweep(folder, "sweep", result)
            results.append(result)
            for line in sweep_lines(result):
                say(line)
        title = _title(sites, model, ready.task.name)
        write_report(folder, title, [sweep_section("Each site ablated alone", results, _ABOUT_SWEEPS)])
    _show_report(output, quiet)


@app.command()
@_reported
def prune(
    model: ModelName,
    task: TaskName = None,
    data: DataFile = None,
    sites: SiteKind = "attention_neurons",
    methods: Annotated[
        str, typer.Option("--methods", help=f"With commas: {', '.join(METHODS)}.")
    ] = "zero,mean,peak,resample",
    fractions: Annotated[
        str, typer.Option("--fractions", help="Rising shares of the sites, with commas.")
    ] = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1",
    seeds: Annotated[str, typer.Option("--seeds", help="One removal order each, with commas.")] = "42,123,456",
    n: Examples = 64,
    seed: Seed = 0,
    positions: Where = "all",
    metric: MetricName = None,
    statistics: Measured = None,
    device: Device = "cpu",
    store: Store = None,
    executor: ExecutorName = "serial",
    workers: Workers = None,
    dtype: DtypeName = None,
    output: Output = Path("lens-ablation-prune"),
    quiet: Quiet = False,
) -> None:
    """Ablate growing random shares of a set, several methods on the same ones."""
    wanted = Study(
        model=model,
        task=task,
        data=data,
        sites=sites,
        methods=_split(methods),
        n=n,
        seed=seed,
        positions=positions,
        metric=metric,
        statistics=statistics,
        device=device,
        store=store,
        executor=executor,
        workers=workers,
        dtype=dtype,
        quiet=quiet,
    )
    wanted.check()
    shares, orders = _numbers("--fractions", fractions, float), _numbers("--seeds", seeds, int)
    from lens_ablation.report.html import write_report
    from lens_ablation.report.output import whole_folder
    from lens_ablation.report.sections import curve_lines, pruning_section, save_curve
    from lens_ablation.studies.pruning import pruning_curve

    say = _sayer(quiet)
    with whole_folder(output) as folder:
        ready = wanted.prepare()
        curve = pruning_curve(
            ready.model,
            ready.task,
            ready.sites,
            ready.methods,
            fractions=shares,
            seeds=orders,
            positions=positions,
            engine=wanted.engine(),
            progress=not quiet,
        )
        save_curve(folder, "pruning", curve)
        for line in curve_lines(curve):
            say(line)
        title = _title(sites, model, ready.task.name)
        write_report(folder, title, [pruning_section("Growing shares ablated", curve, _ABOUT_PRUNING)])
    _show_report(output, quiet)


@app.command()
@_reported
def models() -> None:
    """List the embedded models with the scores from their cards."""
    from lens_ablation import zoo

    for name in zoo.names():
        card = zoo.card(name)
        typer.echo(f"{name}  ({card['parameters']} parameters)")
        for line in textwrap.wrap(card["about"].split("\n\n")[0], 96):
            typer.echo(f"  {line}")
        for score, value in card["scores"].items():
            typer.echo(f"  {score.replace('_', ' '):<44} {value:.4f}")


@app.command()
@_reported
def cite(
    methods: Annotated[list[str], typer.Argument(metavar="METHOD...", help=f"Of: {', '.join(METHODS)}.")],
) -> None:
    """Print BibTeX of ablation methods and of this package."""
    for name in methods:
        require_known("method", name, METHODS)
    import lens_ablation as la

    typer.echo(la.cite(*(getattr(la, METHODS[name]) for name in methods)))


_ABOUT_SWEEPS = (
    "Each site is ablated alone, and the metric is compared with that of the untouched model on the same examples. "
    "A site that can be removed without effect may still matter: others can take over its work."
)
_ABOUT_PRUNING = (
    "The same nested random sets of sites are removed under every method, so that the curves differ only in what "
    "stands in the place of the removed activations."
)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in _split(text)]
    except ValueError:
        raise typer.BadParameter(f"{option} takes numbers with commas between them, got {text!r}") from None


def _title(sites: str, model: str, task: str) -> str:
    return f"{sites.replace('_', ' ').capitalize()} of {model} on {task.replace('_', ' ')}"


def _sayer(quiet: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else typer.echo


def _show_report(output: Path, quiet: bool) -> None:
    if not quiet:
        from lens_ablation.report.html import FILE_NAME

        report = output / FILE_NAME
        typer.echo(f"report: {report} ({report.stat().st_size / 1e6:.1f} MB, opens offline)")
