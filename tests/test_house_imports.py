"""The house: who may import whom, and what `import emu` costs."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.house import (
    FLOOR_OF,
    LAZY,
    PACKAGES,
    PAGE,
    ROOT,
    circles,
    imported_modules,
    imports_of,
    modules,
    tree_of,
    where,
)

BY_STRING = {
    "emu/__init__.py": "the lazy exports",
    "emu/data/__init__.py": "the lazy exports",
    "tokenizers/emu_tokenizers/__init__.py": "the lazy exports",
    "emu/cli/commands.py": "the table of commands",
    "emu/configuration/objects.py": "import_object, for class paths that users give",
}
"""Files that may import one of our modules by a string, and why."""


def room_of(dotted: str) -> str | None:
    """The room of `emu` that a dotted name belongs to, also when it is one of the package's lazy exports."""
    import emu

    parts = dotted.split(".")
    if parts[0] != "emu" or len(parts) == 1:
        return None
    room = parts[1] if parts[1] in FLOOR_OF else emu._HOME_OF.get(parts[1], "emu.__init__").partition(".")[2]
    return room if room in FLOOR_OF else None


@pytest.mark.parametrize(
    ("package", "forbidden"), [("emu_kernels", {"emu", "emu_tokenizers"}), ("emu_tokenizers", {"emu"})]
)
def test_packages_import_only_downwards(package, forbidden):
    for file in PACKAGES[package].rglob("*.py"):
        wrong = [name for name in imports_of(file) if name.split(".")[0] in forbidden]
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_rooms_of_emu_import_only_downwards():
    wrong = []
    for file in sorted(PACKAGES["emu"].rglob("*.py")):
        room = file.relative_to(PACKAGES["emu"]).parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        assert room in FLOOR_OF, f"{file.relative_to(ROOT)}: the room {room!r} has no floor in {PAGE.relative_to(ROOT)}"
        for other in {room_of(name) for name in imports_of(file)} - {None, room}:
            if FLOOR_OF[other] > FLOOR_OF[room] or FLOOR_OF[other] == FLOOR_OF[room] > 0:
                wrong.append(f"{file.relative_to(ROOT)} imports {other!r}, which is not below {room!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_files_of_a_package_import_one_another_in_a_circle(package):
    names = [name for name in modules() if name.split(".")[0] == package]
    # Whoever imports a lazy package loads nothing of it; what is asked of it later is followed to its home.
    found = circles({name: imported_modules(name) for name in names if name not in LAZY})
    assert not found, "\n".join(" <-> ".join(group) for group in found)


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_our_modules_are_imported_by_statements_not_by_strings():
    wrong = []
    for file in modules().values():
        for node in ast.walk(tree_of(file)):
            if not isinstance(node, ast.Call) or where(file) in BY_STRING:
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if called in ("import_module", "__import__") and not names_a_dependency(node):
                wrong.append(f"{where(file)}:{node.lineno} {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def names_a_dependency(call: ast.Call) -> bool:
    """Whether an import call names, letter by letter, a module that is not ours."""
    first = call.args[0] if call.args else None
    if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
        return False
    return first.value.split(".")[0] not in PACKAGES


def test_nothing_imports_what_only_users_run():
    for package in PACKAGES.values():
        for file in package.rglob("*.py"):
            wrong = [name for name in imports_of(file) if name.split(".")[0] in {"recipes", "tests", "benchmarks"}]
            assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_no_folder_of_the_root_shadows_a_dependency():
    for folder in ("tokenizers", "kernels", "recipes", "tests", "benchmarks"):
        assert not (ROOT / folder / "__init__.py").exists(), f"{folder}/__init__.py shadows or exports what it must not"


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=_environment())
    assert result.returncode == 0, result.stderr
    return result.stdout


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": ":".join(str(ROOT / part) for part in ("", "tokenizers", "kernels"))}


def test_import_emu_is_light():
    loaded = run_python("import sys, emu; print(*sys.modules)").split()
    assert not {"lightning", "datasets", "torch", "transformers"} & set(loaded)


def test_every_export_loads_and_needs_no_trainer():
    ask_for_all = "import sys, emu\nfor name in emu.__all__: getattr(emu, name)\nprint(*sys.modules)"
    known = "from transformers import AutoConfig; AutoConfig.for_model('emu')"
    loaded = run_python(f"{ask_for_all}\n{known}").split()
    # Some versions of transformers load scikit-learn for every model that generates.
    theirs = run_python("import sys; from transformers import GenerationMixin; print(*sys.modules)").split()
    assert not {"lightning", "datasets", "sklearn", "matplotlib"} & (set(loaded) - set(theirs))


def test_an_unknown_export_is_named():
    import emu

    with pytest.raises(AttributeError, match="MultimodalTokenizer"):
        _ = emu.Tokenizer


@pytest.mark.parametrize(
    "order",
    [
        "import emu.hub; from transformers import AutoConfig, AutoModelForCausalLM",
        pytest.param(
            "from transformers import AutoConfig, AutoModelForCausalLM; import emu.hub", marks=pytest.mark.slow
        ),
        pytest.param(
            "from emu import Emu3Layout; from transformers import AutoConfig, AutoModelForCausalLM; import emu",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_auto_classes_know_emu_once_it_is_imported(order):
    known = "print(AutoConfig.for_model('emu').model_type, AutoModelForCausalLM._model_mapping[emu.EmuConfig].__name__)"
    processors = "from transformers.models.auto.processing_auto import PROCESSOR_MAPPING as mapping"
    probe = f"{order}; {known}; {processors}; print(mapping[emu.EmuConfig].__name__)"
    assert run_python(probe).split() == ["emu", "EmuForCausalLM", "EmuProcessor"]


@pytest.mark.parametrize(("alias", "home"), [("emu.tokenizers", "emu_tokenizers"), ("emu.kernels", "emu_kernels")])
def test_aliases_export_the_same_objects(alias, home):
    import importlib

    ours, theirs = importlib.import_module(alias), importlib.import_module(home)
    assert ours.__all__ == theirs.__all__
    assert all(getattr(ours, name) is getattr(theirs, name) for name in theirs.__all__)
