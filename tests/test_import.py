"""Importing the package does nothing but define names."""

import subprocess
import sys
import time

import pytest

import lens_ablation as la


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_neither_torch_nor_transformer_lens():
    heavy = ("torch", "transformer_lens", "transformers", "plotly", "datasets", "sklearn", "numpy", "pandas")
    code = f"import sys, lens_ablation; print([m for m in {heavy} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_import_takes_little_longer_than_starting_python():
    def seconds(code: str) -> float:
        start = time.perf_counter()
        run(code)
        return time.perf_counter() - start

    assert min(seconds("import lens_ablation") for _ in range(3)) < min(seconds("") for _ in range(3)) + 0.5


def test_every_public_name_can_be_reached_and_is_listed():
    assert all(getattr(la, name) is not None for name in la.__all__)
    assert dir(la) == sorted(la.__all__)


def test_a_verb_is_not_shadowed_by_a_module_of_its_name():
    code = "import lens_ablation.studies.sweep, lens_ablation as la; print(callable(la.hooks), callable(la.sweep))"
    assert run(code).split() == ["True", "True"]


def test_an_unknown_name_says_where_the_names_are():
    with pytest.raises(AttributeError, match=r"dir\(lens_ablation\)"):
        _ = la.ablations
