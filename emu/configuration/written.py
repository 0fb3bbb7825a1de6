"""Recipes as they are written: several files merged left to right, each key with the file and the line that says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

KeyPath = tuple[str | int, ...]
"""Keys from the top down; numbers are places in a list."""
COMMAND_LINE = "command line"
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


@dataclass
class Written:
    """What files and command line say, with interpolations as they are written.

    Attributes:
        tree: all of it, the command line's values included.
        files: what the files say alone.
        places: "file:line" of every key of a file, `COMMAND_LINE` of those that it sets; a later one wins.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)

    def add_file(self, path: Path) -> None:
        """Merge a file over what is there: mappings key by key, everything else whole.

        A file that names another class in a `class_path` starts the `init_args` beside it anew.

        Raises:
            ValueError: it is not YAML, not UTF-8, or not a mapping; the message names file and line.
            FileNotFoundError: it is not there.
        """
        self.add(*read_recipe(path))

    def add(self, content: Mapping[str, Any], places: Mapping[KeyPath, str]) -> None:
        """Merge a tree over what is there, as `add_file` does.

        Args:
            content: keys with values.
            places: "file:line" of its keys.
        """
        for changed in _changed_classes(self.files, content):
            _node(self.files, changed).pop("init_args", None)
            self.places = {
                key: place for key, place in self.places.items() if key[: len(changed) + 1] != (*changed, "init_args")
            }
        self.files = merged(self.files, content)
        self.tree = merged(self.files, {})
        self.places |= places

    def set(self, option: str, value: Any) -> KeyPath:
        """Set a value as the command line's `--option value` does.

        Args:
            option: dotted, e.g. "model.optimizer.lr"; `init_args` may be left out, as in "data.row_length".
            value: replaces what is there.

        Returns:
            The full path of the key.
        """
        node: Any = self.tree
        path: KeyPath = ()
        names = option.split(".")
        for number, name in enumerate(names):
            if isinstance(node, dict) and "class_path" in node and name not in CLASS_KEYS:
                path, node = (*path, "init_args"), node.setdefault("init_args", {})
            path = (*path, name)
            if not isinstance(node, dict):
                node = None  # part of a list, which only the parser knows how to change
            elif number < len(names) - 1:
                node = node.setdefault(name, {})
            elif isinstance(value, str) and isinstance(node.get(name), dict) and "class_path" in node[name]:
                path, node[name]["class_path"] = (*path, "class_path"), value
            else:
                node[name] = value
        self.places[path] = COMMAND_LINE
        return path

    def place(self, path: KeyPath) -> str | None:
        """Where a key is written, or the nearest one above it; None where nothing of it is."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return None


def read_recipe(path: Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """The content of a YAML file, and the place of each of its keys.

    Raises:
        ValueError: it is not YAML, not UTF-8, or not a mapping; the message names file and line.
        FileNotFoundError: it is not there.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        places = {key: f"{path}:{line}" for key, line in _lines(node, ())} if node is not None else {}
        content = {} if node is None else OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise ValueError(f"{path}{line}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:  # a character that YAML does not have
        raise ValueError(f"{path}: not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ValueError(f"{path} holds an anchor inside of itself; write its value out") from error
    except GrammarParseError as error:
        place = next((where for key, where in places.items() if dotted(key) == error.full_key), path)
        raise ValueError(f"{place}: {error.full_key} is not an interpolation: {str(error).splitlines()[0]}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}; expected keys that are text") from error
    if node is not None and not isinstance(node, yaml.MappingNode):
        what = repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list"
        raise ValueError(f"{path} holds {what}; expected keys with values")
    return content, places  # type: ignore[return-value]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees as a new one: mappings key by key, everything else from `above`; interpolations stay as they are written."""
    found = OmegaConf.to_container(
        OmegaConf.merge(OmegaConf.create(dict(below)), OmegaConf.create(dict(above))), resolve=False
    )
    assert isinstance(found, dict)
    return found  # type: ignore[return-value]


def dotted(path: Sequence[str | int]) -> str:
    """A path as it is typed on the command line, e.g. "trainer.callbacks[0].init_args.steps"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _lines(node: yaml.Node, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # which is refused as a key
            yield (*path, key.value), key.start_mark.line + 1
            yield from _lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield (*path, number), value.start_mark.line + 1
            yield from _lines(value, (*path, number))


def _changed_classes(below: Any, above: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    if isinstance(below, dict) and isinstance(above, dict):
        if "class_path" in below and above.get("class_path", below["class_path"]) != below["class_path"]:
            yield path
        for key in below.keys() & above.keys():
            yield from _changed_classes(below[key], above[key], (*path, key))


def _node(tree: Any, path: KeyPath) -> Any:
    for part in path:
        tree = tree[part]
    return tree
