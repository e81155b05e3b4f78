"""The shape of the package: arrows between rooms, registries, docstrings, sizes of files."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import posteria

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "posteria").rglob("*.py"))
LONGEST_FILE = 450
REGISTRIES = {
    "models.MODELS": {
        "gaussian_mean", "gaussian_mixture", "linear_regression", "linear_classification",
        "neural_regression", "neural_classification", "poisson_regression", "generalized_linear", "hierarchical",
    },
    "encoders.ENCODERS": {"iterative", "transformer", "deepsets", "gru"},
    "densities.DENSITIES": {"gaussian", "full", "low_rank", "flow", "skewed", "spline_flow"},
    "referee.DENSITIES": {
        "gaussian_mean", "gaussian_mixture", "linear_regression", "linear_classification",
        "neural_regression", "neural_classification", "poisson_regression", "generalized_linear", "hierarchical",
    },
    "objectives.OBJECTIVES": {"forward_kl", "reverse_kl"},
    "tasks.TASKS": {"simulated", "standardised", "gaussian_process", "many_models", "other_model", "mixture_of_tasks",
                    "real_tables"},
    "baselines.BASELINES": {
        "prior", "optimization", "laplace", "mala", "hmc", "chees", "paper_langevin", "paper_hmc",
    },
}


def _modules() -> list[str]:
    found = pkgutil.walk_packages(posteria.__path__, "posteria.")
    return sorted(m.name for m in found if not m.name.endswith("__main__"))


def _public(module: ModuleType) -> list[tuple[str, object]]:
    """Public classes and functions that the module itself defines."""
    return [(name, value) for name, value in vars(module).items()
            if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == module.__name__]


def _undocumented_methods(name: str) -> list[str]:
    """Public methods of an exported class that are ours, without a docstring of their own or of a base class."""
    exported = getattr(posteria, name)
    methods = inspect.getmembers(exported, inspect.isroutine) if inspect.isclass(exported) else []
    ours = [(n, method) for n, method in methods if str(getattr(method, "__module__", "")).startswith("posteria")]
    return [n for n, method in ours if not n.startswith("_") and not inspect.getdoc(method)]


def test_rooms_import_only_what_lies_below() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("name", _modules())
def test_public_names_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    assert [attribute for attribute, value in _public(module) if not inspect.getdoc(value)] == []


@pytest.mark.parametrize("name", posteria.__all__)
def test_methods_of_exported_classes_are_documented(name: str) -> None:
    assert _undocumented_methods(name) == []


@pytest.mark.parametrize("place", REGISTRIES)
def test_registries_are_closed(place: str) -> None:
    room, registry = place.split(".")
    module = importlib.import_module(f"posteria.{room}")
    assert set(getattr(module, registry)) == REGISTRIES[place]


@pytest.mark.parametrize("name", sorted(REGISTRIES["models.MODELS"]))
def test_models_know_their_registry_name(name: str) -> None:
    assert posteria.build_model(name).name == name


def test_exported_names_exist_and_are_few() -> None:
    assert all(getattr(posteria, name) is not None for name in posteria.__all__)
    assert set(posteria.__all__) <= set(dir(posteria))
    assert len(posteria.__all__) <= 25


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        posteria.nonsense  # noqa: B018


def test_import_is_light() -> None:
    """What a person does not use is not loaded: plots, tables and samplers come with their first use."""
    code = "import sys, posteria; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "matplotlib", "pandas", "arviz", "ot", "numba"} & set(result.stdout.split())


def test_version_is_the_project_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert posteria.__version__ == project["version"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    """Checkpoints come from strangers: no pickle, torch.load, eval or exec anywhere."""
    called = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
              if isinstance(node, ast.Call)}
    assert not called & {"eval", "exec", "torch.load", "pickle.load", "pickle.loads", "pd.read_pickle"}
