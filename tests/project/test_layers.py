"""The house: who imports whom, where heavy libraries live, how large folders and files are, what is
declared."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from paths import ROOT

ORDER = ["core", "data_shards", "launch", "tune", "concord"]
HOMES = {
    "transformers": (
        "core/encoders/text.py",
        "core/encoders/pretrained.py",
        "core/encoders/backbones/registered_attention.py",
    ),
    "peft": ("core/encoders/backbones/adaptation.py",),
    "triton": ("core/kernels/",),
    "webdataset": (),  # an oracle of the tests and a peer of the benchmarks
    "deepspeed": ("launch/engine/deepspeed_engine.py",),
    "tyro": ("launch/config_help.py",),
    "ray": ("tune/",),
    "optuna": ("tune/",),
    "av": ("data_shards/extract/media.py", "data_shards/media/member_codec.py"),
    "PIL": ("data_shards/media/packed_frames.py",),
    "opensmile": ("data_shards/extract/extractors/egemaps.py",),
    "dlib": ("data_shards/extract/extractors/face68.py",),
    "huggingface_hub": ("launch/bundles/",),
    "fastapi": ("launch/serving/app.py",),
    "starlette": ("launch/serving/app.py",),
    "uvicorn": ("launch/serving/serve.py",),
    "faiss": ("core/metrics/approximate.py",),
}
MOST_FILES, MOST_LINES, FEWEST_LINES = 14, 400, 30
# file -> why it is short and yet on its own
SHORT = {
    "concord/losses.py": "the name concord.losses",
    "core/rows.py": "one L2-normalisation, which losses and metrics share",
    "launch/checkpoints/progress.py": "the record that store, loop and session share",
}
# imported nowhere, and needed all the same
NOT_IMPORTED = {
    "ninja": "DeepSpeed builds its operators with it",
    "tensorboard": "torch.utils.tensorboard writes with it",
}
# imported -> what is installed, and the extra that brings it
OPTIONAL = {
    "triton": ("triton", "gpu"),  # without it the PyTorch path is taken
    "av": ("av", "clips"),
    "PIL": ("pillow", "clips"),
    "peft": ("peft", "large"),
    "opensmile": ("opensmile", "clips"),
    "dlib": ("dlib-bin", "clips"),
    "faiss": ("faiss-cpu", "neighbours"),
    "fastapi": ("fastapi", "serve"),
    "starlette": ("fastapi", "serve"),  # which fastapi is made of
    "uvicorn": ("uvicorn", "serve"),
}
FILES = sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(nodes: list[ast.AST]) -> set[str]:
    """Dotted names after ``import`` and ``from``, and of what is taken from there."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {name.partition(".")[0] for name in imported_modules(list(ast.walk(tree)))}


def test_there_are_files_to_check():
    assert len(FILES) > 100


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_folder_imports_only_itself_and_those_before_it(path: Path):
    own = ORDER.index(path.relative_to(ROOT).parts[0])
    later = imports(path) & set(ORDER[own + 1 :])
    assert not later, f"{relative(path)} imports {later}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_heavy_libraries_are_imported_only_in_their_homes(path: Path):
    strays = {
        name for name in imports(path) & set(HOMES) if not relative(path).startswith(HOMES[name])
    }
    assert not strays, f"{relative(path)} imports {strays}"


def test_only_the_restricted_reader_unpickles():
    unpickling = [relative(path) for path in FILES if "pickle" in imports(path)]
    assert unpickling == ["data_shards/sources/pickles.py"]


def test_no_modules_import_each_other_in_a_circle():
    graph = {}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[module] = (imported_modules(list(tree.body)) & set(MODULES)) - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_are_neither_too_long_nor_too_short(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES
    may_be_short = path.name == "__init__.py" or relative(path) in SHORT
    assert lines >= FEWEST_LINES or may_be_short, "merge it, or give the reason in SHORT"


def test_folders_are_not_crowded():
    folders = defaultdict(list)
    for path in FILES:
        if path.name != "__init__.py":
            folders[relative(path.parent)].append(path.name)
    crowded = {folder: names for folder, names in folders.items() if len(names) > MOST_FILES}
    assert not crowded


def test_no_two_packages_have_files_of_one_name():
    """Except a model and its recipe, which are named alike on purpose."""
    places = defaultdict(list)
    for path in FILES:
        if not path.name.startswith("__"):
            places[path.name].append(relative(path))
    twice = {
        name: found
        for name, found in places.items()
        if len(found) > 1 and not are_model_and_recipe(found)
    }
    assert not twice


def are_model_and_recipe(paths: list[str]) -> bool:
    """Whether these are the two files of one model, in folders of the same family."""
    model = paths[0].removeprefix("core/models/")
    return paths == [f"core/models/{model}", f"launch/recipes/{model}"]


def declared(extra: str | None = None) -> set[str]:
    """Distributions in ``[project]``: needed always, or by one extra."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pattern = r"^dependencies = \[(.*?)^\]" if extra is None else rf"^{extra} = \[(.*?)\]$"
    found = re.search(pattern, text, re.DOTALL | re.MULTILINE)
    assert found
    return {re.split(r"[\[><=]", word)[0].lower() for word in re.findall(r'"([^"]+)"', found[1])}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    tops = set().union(*(imports(path) for path in FILES))
    tops -= set(ORDER) | set(sys.stdlib_module_names) | set(OPTIONAL)
    homes = packages_distributions()
    imported = {homes[top][0].lower().replace("_", "-") for top in tops}
    assert imported - declared() == set()
    assert declared() - imported == set(NOT_IMPORTED)
    for distribution, extra in OPTIONAL.values():
        assert distribution in declared(extra)


def test_every_dependency_has_its_version_pinned():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    for name in declared() | declared("test"):
        assert re.search(rf"^{re.escape(name)}==", pins.replace("_", "-"), re.MULTILINE), name
