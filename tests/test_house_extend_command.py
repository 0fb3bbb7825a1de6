"""Adding a command: one function, registered under a name."""

import argparse
from pathlib import Path

import pytest

from emu.cli import COMMANDS, Command, register
from emu.cli.main import main


def count_words(words):
    """Count the words of a file of captions; the exit code is 1 where there are none."""
    parser = argparse.ArgumentParser("emu count-words", description="Count the words of captions.")
    parser.add_argument("captions", type=Path)
    captions = parser.parse_args(words).captions.read_text().splitlines()
    count = sum(len(caption.split()) for caption in captions)
    print(f"{count} words in {len(captions)} captions")
    return 0 if count else 1


def test_a_command_from_one_file_is_listed_runs_and_leaves_again(tmp_path, capsys):
    captions = tmp_path / "captions.txt"
    captions.write_text("a red circle\na blue square above a green cross\n")
    register("count-words", Command(count_words, "count the words of captions"))
    try:
        assert main(["--help"]) == 0
        assert "\n  count-words      count the words of captions\n" in capsys.readouterr().out
        assert main(["count-words", str(captions)]) == 0
        assert capsys.readouterr().out == "10 words in 2 captions\n"
        captions.write_text("")
        assert main(["count-words", str(captions)]) == 1
        assert main(["count-words", str(tmp_path / "nowhere.txt")]) == 2
        assert capsys.readouterr().err.startswith("emu count-words: ")
        with pytest.raises(ValueError, match="command 'count-words' is registered already"):
            register("count-words", Command(print, "print words"))
    finally:
        COMMANDS.unregister("count-words")
    assert main(["count-words", str(captions)]) == 2
