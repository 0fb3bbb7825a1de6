"""Errors tell users what to do: the arguments and options that they name exist."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

from emu.evaluation.suites import SUITES

ROOT = Path(__file__).parents[1]
FOLDERS = ("emu", "tokenizers/emu_tokenizers", "kernels/emu_kernels")
TREES = {file: ast.parse(file.read_text()) for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))}
NODES = [(file, node) for file, tree in TREES.items() for node in ast.walk(tree)]
ELSEWHERE = {"dtype", "device_map", "quantization_config", "revision", "token", "errors"}
"""Arguments of transformers' and the hub's functions that ours pass on, and of `bytes.decode`."""


def parameters() -> set[str]:
    """Names of all parameters and of all fields of classes."""
    found = set(ELSEWHERE)
    for _, node in NODES:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            found |= {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def options() -> set[str]:
    """Options of our parsers; those of Lightning's command line come from the classes that it takes."""
    suites = argparse.ArgumentParser(add_help=False, conflict_handler="resolve")
    for suite in SUITES.values():
        suite.add_options(suites)
    return {option for action in suites._actions for option in action.option_strings} | {
        constant.value
        for _, node in NODES
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument"
        for constant in node.args
        if isinstance(constant, ast.Constant) and str(constant.value).startswith("--")
    }


def messages() -> Iterator[tuple[str, str]]:
    """Place and text of every string in a `raise`."""
    for file, node in NODES:
        if isinstance(node, ast.Raise) and node.exc is not None:
            parts = [part.value for part in ast.walk(node.exc) if isinstance(part, ast.Constant)]
            yield f"{file.relative_to(ROOT)}:{node.lineno}", "".join(part for part in parts if isinstance(part, str))


def test_arguments_in_messages_exist():
    known = parameters()
    wrong = [
        f"{place}: {name}= in {text!r}"
        for place, text in messages()
        for name in re.findall(r"(?<![\w.'-])([a-z_]{3,})=(?!=)", text)
        if name not in known
    ]
    assert not wrong, "\n".join(wrong)


def test_options_in_messages_exist():
    known = options() | {"--export", "--ckpt_path", "--config", "--print_config", "--local-dir"}
    wrong = [
        f"{place}: {option} in {text!r}"
        for place, text in messages()
        for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*[\w]", text)
        if option not in known and not option.startswith(("--trainer.", "--model.", "--data."))
    ]
    assert not wrong, "\n".join(wrong)
