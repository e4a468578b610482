"""The command line: what it writes, and how it fails."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import lens_ablation as la
from lens_ablation import cli, zoo
from lens_ablation.errors import UnknownName
from lens_ablation.report import demo

pytestmark = pytest.mark.model

SWEEP = ["sweep", "tiny-vit", "--task", "digits", "--n", "4"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it a failure to load a model: what is refused is refused before."""
    monkeypatch.setattr("lens_ablation.models.loading.load_model", lambda *_, **__: pytest.fail("a model was loaded"))


def failed(result: Result, code: int = 1) -> str:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    if code == 1:
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
    return result.stderr


def test_help_needs_no_torch():
    code = "import sys; from lens_ablation import cli, __main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_models_are_listed_with_their_scores():
    result = invoke("models")
    assert result.exit_code == 0
    for name in zoo.names():
        assert name in result.stdout
    assert "held out accuracy" in result.stdout


def test_cite_prints_bibtex():
    assert invoke("cite", "peak", "counterfactual").stdout.strip() == la.cite(la.Peak, la.Counterfactual)


def test_sweep_writes_report_tables_and_results_that_load_again(tmp_path: Path):
    result = invoke(*SWEEP, "--method", "zero,peak,noise", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "Zero: change of correct margin (logits)" in result.stdout
    assert (tmp_path / "run" / "report.html").exists()
    loaded = la.SweepResult.load(tmp_path / "run" / "results" / "sweep-zero")
    model = la.load_model("tiny-vit")
    again = la.sweep(model, la.tasks.digits(model, 4), la.heads(model), la.Zero(), progress=False)
    assert torch.equal(loaded.values, again.values)
    assert len(pd.read_csv(tmp_path / "run" / "tables" / "sweep-peak.csv")) == len(la.heads(model))


def test_statistics_of_an_earlier_command_are_used(tmp_path: Path):
    stats = invoke("stats", "tiny-vit", "--task", "digits", "--n", 40, "--output", tmp_path / "s", "--quiet")
    assert (stats.exit_code, stats.output) == (0, "")
    kept = la.ActivationStatistics.load(tmp_path / "s" / "results" / "statistics")
    for given in (tmp_path / "s", tmp_path / "s" / "results" / "statistics"):
        out = tmp_path / "run"
        result = invoke(*SWEEP, "--method", "mean", "--statistics", given, "--output", out, "--quiet")
        assert (result.exit_code, result.output) == (0, "")
        method = la.SweepResult.load(out / "results" / "sweep-mean").settings["method"]
        assert method["settings"]["statistics"] == kept.provenance.digest


def test_statistics_of_another_model_are_refused(tmp_path: Path):
    invoke("stats", "tiny-vit", "--task", "digits", "--n", 40, "--output", tmp_path / "s", "--quiet")
    other = shutil.copytree(zoo.path("tiny-vit"), tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: 1.01 * weight for name, weight in weights.items()}, other / "model.safetensors")
    said = failed(
        invoke(
            "sweep", other, "--task", "digits", "--n", 4, "--method", "mean", "--statistics", tmp_path / "s",
            "--output", tmp_path / "run",
        )
    )  # fmt: skip
    assert "these statistics were measured on tiny-vit" in said
    assert not (tmp_path / "run").exists()


def test_prune_writes_a_curve_that_loads_again(tmp_path: Path):
    result = invoke(
        "prune", "tiny-vit", "--task", "digits", "--n", 4, "--methods", "zero,resample", "--fractions", "0,0.5,1",
        "--seeds", "1,2", "--output", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    curve = la.PruningCurve.load(tmp_path / "run" / "results" / "pruning")
    assert curve.methods == ("Zero", "Resample (other examples)")
    assert (curve.seeds, curve.fractions) == ((1, 2), (0.0, 0.5, 1.0))


def test_the_demo_names_heads_and_writes_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "N_MEASURED", 32)
    monkeypatch.setattr(demo, "N_SWEPT", 4)
    monkeypatch.setattr(demo, "N_PRUNED", 2)
    result = invoke("demo", "--output", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    for words in ("tiny-lm, ioi: logit difference", "tiny-lm, greater_than", "tiny-vit, digits", "Peak", "L0H"):
        assert words in result.stdout
    results = tmp_path / "demo" / "results"
    assert la.SweepResult.load(results / "tiny-lm-ioi-peak").method_name == "Peak"
    assert len(la.PruningCurve.load(results / "tiny-vit-digits-pruning").methods) == 4
    assert len(la.ActivationStatistics.load(results / "tiny-lm-ioi-statistics")) == 4
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert page.count("Plotly.newPlot(") >= 3 + 2 + 4


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "peek"], "unknown method 'peek'; nearest: peak"),
        (["--sites", "head"], "unknown kind of sites 'head'; nearest: heads"),
        (["--positions", "al"], "unknown positions 'al'; nearest: all"),
        (["--metric", "los"], "unknown metric 'los'; nearest: loss"),
    ],
)
def test_an_unknown_name_lists_the_nearest(tmp_path: Path, arguments: list[str], said: str):
    assert said in failed(invoke(*SWEEP, *arguments, "--output", tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sweep", "tiny-vti", "--task", "digits"], "unknown model 'tiny-vti'; nearest: tiny-vit"),
        (["sweep", "tiny-vit", "--task", "digit"], "unknown task 'digit'; nearest: digits"),
        (["sweep", "tiny-vit", "--task", "ioi"], "images"),
        (["sweep", "tiny-vit", "--task", "digits", "--n", "451"], "450"),
        (["sweep", "tiny-vit", "--task", "digits", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["cite", "peek"], "unknown method 'peek'; nearest: peak"),
        (["sweep", "tiny-vit", "--data", "nowhere.txt"], "there is no file or folder 'nowhere.txt'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert said in failed(invoke(*arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_model")
def test_mean_of_own_data_needs_statistics_of_other_data(tmp_path: Path):
    (tmp_path / "texts.txt").write_text("A text.\n")
    said = failed(invoke("sweep", "tiny-lm", "--data", tmp_path / "texts.txt", "--method", "zero,mean"))
    assert "mean ablation of --data needs --statistics" in said


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["demo", "sweep", "prune", "stats"])
def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path: Path, command: str):
    (tmp_path / "file").write_text("")
    options = [] if command == "demo" else ["tiny-vit", "--task", "digits"]
    assert "cannot write" in failed(invoke(command, *options, "--output", tmp_path / "file" / "run"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    assert "thesis.tex" in failed(invoke(command, *options, "--output", tmp_path / "full"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "tiny-vit"],
        ["sweep", "tiny-vit", "--task", "digits", "--data", "x"],
        ["sweep", "tiny-vit", "--task", "digits", "--n", "0"],
        ["sweep", "tiny-vit", "--task", "digits", "--wrong"],
        ["prune", "tiny-vit", "--task", "digits", "--fractions", "0,a"],
        ["prune", "tiny-vit", "--task", "digits", "--seeds", "1.5"],
        ["swep"],
    ],
)
def test_wrong_usage_has_its_own_exit_code(arguments: list[str]):
    assert "Usage:" in failed(invoke(*arguments), code=2)


def test_errors_show_where_they_come_from_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(cli.DEBUG, "1")
    result = invoke(*SWEEP, "--method", "peek", "--output", tmp_path / "run")
    assert isinstance(result.exception, UnknownName)


INTERRUPTED = """
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
from lens_ablation.cli import run
import lens_ablation.studies.sweep as study

def slow(*arguments, **options):
    print("ready", flush=True)
    time.sleep(60)

study.sweep = slow
run()
"""


@pytest.mark.parametrize(
    ("sent", "code", "line"),
    [(signal.SIGINT, 130, "interrupted; nothing was written\n"), (signal.SIGTERM, 143, "")],
    ids=["Ctrl-C", "end of a job"],
)
def test_an_interrupted_command_leaves_no_output(tmp_path: Path, sent: signal.Signals, code: int, line: str):
    arguments = [*SWEEP, "--output", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, line)
    assert list(tmp_path.iterdir()) == []
