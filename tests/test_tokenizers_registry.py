"""Tables of things by name that users add to."""

import pytest

from emu_tokenizers.registry import Registry


@pytest.fixture
def numbers():
    return Registry("number", {"one": 1})


def test_what_is_registered_is_found_until_it_is_taken_out(numbers):
    assert numbers.register("two", 2) == 2
    assert (numbers.find("two"), list(numbers), len(numbers), "two" in numbers) == (2, ["one", "two"], 2, True)
    assert numbers.unregister("two") == 2
    assert dict(numbers) == {"one": 1}


def test_an_unknown_name_is_told_with_those_that_there_are(numbers):
    with pytest.raises(ValueError, match=r"number 'three' is not registered; expected one of \['one'\]"):
        numbers.find("three")
    with pytest.raises(ValueError, match="is not registered"):
        numbers.unregister("three")


def test_a_name_holds_one_object(numbers):
    numbers.register("one", 1)
    with pytest.raises(ValueError, match=r"number 'one' is registered already \(1\)"):
        numbers.register("one", 2)


@pytest.mark.parametrize(("name", "error"), [("", ValueError), (3, TypeError)])
def test_a_name_is_text(numbers, name, error):
    with pytest.raises(error, match="number's name is"):
        numbers.register(name, 1)
