"""Recipes as they are read: merged, with values that refer to others, and written down again without secrets."""

import pytest
import yaml

from emu.configuration.resolving import resolve
from emu.configuration.written import Written, dotted
from emu.training.words import split_words

SECRET = "hunter2"


@pytest.fixture
def write(tmp_path):
    def write(text, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def values(*files, options=()):
    written = split_words([*(word for file in files for word in ("--config", str(file))), *options]).read()
    resolved = resolve(written)
    assert not resolved.problems
    return resolved.of(written.tree)


def problems(*files, options=()):
    written = split_words([*(word for file in files for word in ("--config", str(file))), *options]).read()
    return {dotted(path): text for path, text in resolve(written).problems.items()}


def test_a_value_refers_to_another_in_lists_and_mappings_too(write):
    recipe = write(
        """
model: {config: {hidden_size: 64, intermediate_size: "${.hidden_size}", widths: [1, "${model.config.hidden_size}"]}}
data:
  class_path: emu.data.sharded.ShardData
  init_args: {sources: {a: shards}, validation: "${.sources}", documents_per_step: {a: "${model.config.hidden_size}"}}
"""
    )
    found = values(recipe)
    assert found["model"]["config"] == {"hidden_size": 64, "intermediate_size": 64, "widths": [1, 64]}
    assert found["data"]["init_args"]["documents_per_step"] == {"a": 64}
    assert found["data"]["init_args"]["validation"] == {"a": "shards"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${add:1,2,3}", 6),
        ("${sub:1,3}", -2),
        ("${mul:${width},4}", 40),
        ("${div:1,4}", 0.25),
        ("${floordiv:7,2}", 3),
        ("${min:3,2.5}", 2.5),
        ("${max:${width},2}", 10),
        ("${mul:${oc.env:EMU_TEST_NUMBER},2}", 14),
    ],
)
def test_arithmetic_is_of_numbers(write, monkeypatch, text, value):
    monkeypatch.setenv("EMU_TEST_NUMBER", "7")
    found = values(write(f"width: 10\nx: '{text}'\n"))["x"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${mul:a,2}", "mul takes numbers, got 'a'"),
        ("${mul:true,2}", "mul takes numbers, got True"),
        ("${sub:1,2,3}", "sub takes 2 numbers, got 3"),
        ("${div:1,0}", "divides by zero"),
        ("${eval:1}", "no function 'eval'"),
        ("${nothing.here}", "nothing.here is written neither"),
        ("${oc.env:EMU_TEST_UNSET}", "EMU_TEST_UNSET"),
    ],
)
def test_what_cannot_be_resolved_is_told_with_its_key(write, text, message):
    import re

    found = problems(write(f"a: {{b: '{text}'}}\n"))
    assert list(found) == ["a.b"] and re.search(message, found["a.b"])


def test_values_that_refer_to_each_other_in_a_circle_are_all_named(write):
    found = problems(write("a: {b: '${a.c}', c: '${.d}', d: '${a.b}', e: 1}\n"))
    assert list(found) == ["a.b", "a.c", "a.d"] and all("refers back to itself" in text for text in found.values())


def test_later_recipes_win_key_by_key_and_the_command_line_wins_over_all(write):
    first = write("a: {x: 1, y: 1, z: [1, 2]}\nsum: '${add:${a.x},${a.y}}'\n", "first.yaml")
    second = write("a: {y: 2, z: [3]}\n", "second.yaml")
    assert values(first, second) == {"a": {"x": 1, "y": 2, "z": [3]}, "sum": 3}
    assert values(second, first)["a"] == {"x": 1, "y": 1, "z": [1, 2]}
    assert values(first, second, options=["--a.x", "10"])["sum"] == 12
    assert values(first, options=["--a.y=${mul:${a.x},5}"])["sum"] == 6


def test_a_recipe_that_names_another_class_starts_its_arguments_anew(write):
    first = write("data: {class_path: a.First, init_args: {x: 1, y: 1}}\n", "first.yaml")
    second = write("data: {class_path: a.Second, init_args: {z: 2}}\n", "second.yaml")
    assert values(first, second)["data"] == {"class_path": "a.Second", "init_args": {"z": 2}}
    assert values(first, options=["--data.x", "3"])["data"]["init_args"] == {"x": 3, "y": 1}


def test_every_key_knows_the_file_and_line_that_says_it(write):
    first, second = write("a:\n  x: 1\n  y: 1\n", "first.yaml"), write("\na: {y: 2}\n", "second.yaml")
    written = Written()
    written.add_file(first)
    written.add_file(second)
    path = written.set("a.z", 3)
    assert written.place(("a", "x")) == f"{first}:2" and written.place(("a", "y")) == f"{second}:2"
    assert written.place(path) == "command line" and written.place(("b",)) is None
    assert written.place(("a", "x", "deeper")) == f"{first}:2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: [\n", r"recipe.yaml:3: not YAML"),
        (b"a: 1\na: 2\n", r"recipe.yaml:2: not YAML: found duplicate key a"),
        (b"- a\n- b\n", r"recipe.yaml holds a list; expected keys"),
        (b"words\n", r"recipe.yaml holds 'words'; expected keys"),
        (b"a:\n  b: '${width'\n", r"recipe.yaml:2: a.b is not an interpolation"),
        ("a: é".encode("latin-1"), r"recipe.yaml is not UTF-8"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_named_with_the_line(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Written().add_file(path)


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    written = Written()
    written.add_file(path)
    assert written.tree == {"a": 1}


def test_what_comes_out_of_the_environment_stays_an_interpolation_on_disk(write, monkeypatch):
    monkeypatch.setenv("EMU_TEST_SECRET", SECRET)
    recipe = write(
        "token: '${oc.env:EMU_TEST_SECRET}'\n"
        "user: {name: 'x-${token}', copy: '${user.name}'}\n"
        "all: '${user}'\nsize: 2\ntwice: '${mul:${size},2}'\n"
    )
    written = split_words(["--config", str(recipe)]).read()
    resolved = resolve(written)
    found = resolved.of(written.tree)
    assert found["user"] == {"name": f"x-{SECRET}", "copy": f"x-{SECRET}"} and found["all"] == found["user"]
    kept = resolved.put_back(found, resolved.from_environment())
    assert SECRET not in yaml.safe_dump(kept)
    assert kept["twice"] == 4 and kept["all"] == "${user}"
    assert resolved.put_back(found, resolved.written) == written.tree
