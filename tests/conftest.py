"""What every test runs under: no network, and one thread to a worker."""

import os
import runpy
from collections.abc import Callable, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tests run side by side, and their models are too small to gain from threads."""
    torch.set_num_threads(1)


@pytest.fixture
def unchecked() -> Callable[[ModuleType], Any]:
    """Loads a module as users have it, without the type checks of the tests, which would refuse some calls first."""

    def load(module: ModuleType) -> Any:
        assert module.__file__ is not None
        spec = spec_from_file_location(f"unchecked_{module.__name__}", module.__file__)
        assert spec is not None
        assert spec.loader is not None
        plain = module_from_spec(spec)
        spec.loader.exec_module(plain)
        return plain

    return load


@pytest.fixture
def docs_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Mapping[str, Any]]:
    """Runs a script of the pages by its file name, and gives its names."""
    docs = Path(__file__).parents[1] / "docs"
    monkeypatch.syspath_prepend(str(docs))
    return lambda name: runpy.run_path(str(docs / name))
