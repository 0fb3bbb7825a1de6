import io
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest

from emu.cli.main import COMMANDS, available, main
from emu_tokenizers.files import replacing


def test_help_lists_the_commands_that_exist(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert {"fit", "fit-tokenizer", "recipes"} <= set(available()) <= set(COMMANDS)
    for name in COMMANDS:
        assert (f"\n  {name} " in listed) == (name in available())


def test_commands_of_installed_packages_are_listed_and_run_and_broken_ones_named(tmp_path):
    (tmp_path / "my_commands.py").write_text(
        "from emu.cli import Command, register\n"
        "register('count-words', Command(lambda words: print(len(words)), 'count the words'))\n"
    )
    package = tmp_path / "mine-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[emu.extensions]\nmine = my_commands\n")

    def emu(*words):
        paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        code = "import sys; from emu.cli.main import main; sys.exit(main(sys.argv[1:]))"
        environment = {**os.environ, "PYTHONPATH": paths}
        return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)

    assert "count-words      count the words\n" in emu("--help").stdout
    assert emu("count-words", "a", "b").stdout == "2\n"
    (tmp_path / "my_commands.py").write_text("import no_such_module\n")
    listed = emu("--help")
    assert listed.returncode == 0 and "  fit " in listed.stdout
    assert listed.stderr.startswith("emu: the extension 'mine' (my_commands) of mine cannot be loaded")
    refused = emu("count-words")
    assert refused.returncode == 2 and "no command 'count-words'" in refused.stderr


def test_nothing_and_nonsense_are_wrong_requests(capsys):
    assert main([]) == 2
    assert "usage" in capsys.readouterr().out
    assert main(["fitt"]) == 2
    assert "no command 'fitt'" in capsys.readouterr().err


def test_waiting_threads_do_not_spin_unless_the_user_says_so(monkeypatch, capsys):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("emu 0.")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("a bad size"), 2),
        (FileNotFoundError("no such file"), 2),
        (FloatingPointError("diverged"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_mistakes_become_one_line_and_an_exit_code(monkeypatch, capsys, error, code):
    def fail(words):
        raise error

    monkeypatch.setattr("emu.cli.recipes.main", fail)
    assert main(["recipes"]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("emu recipes: ") and len(captured.err.splitlines()) == 1
    assert "Traceback" not in captured.err


def test_faults_of_the_program_keep_their_traceback(monkeypatch):
    def fail(words):
        raise RuntimeError("a fault")

    monkeypatch.setattr("emu.cli.recipes.main", fail)
    with pytest.raises(RuntimeError):
        main(["recipes"])


def test_exit_codes_of_commands_are_passed_on(monkeypatch):
    monkeypatch.setattr("emu.cli.recipes.main", lambda words: 1)
    assert main(["recipes"]) == 1


def test_commands_show_warnings_of_the_library_and_of_python_in_one_line_each(monkeypatch, capsys):
    def warn(words):
        logging.getLogger("emu.tokenizers").warning("left out %s", "a.png")
        logging.getLogger("emu").info("of no interest")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda *told: sys.stderr.write(warnings.formatwarning(*told[:4]))
            warnings.warn("long sequences", stacklevel=1)

    handlers, usual = list(logging.getLogger("emu").handlers), warnings.formatwarning
    monkeypatch.setattr("emu.cli.recipes.main", warn)
    assert main(["recipes"]) == 0
    assert capsys.readouterr().err.splitlines() == ["emu recipes: left out a.png", "emu recipes: long sequences"]
    assert logging.getLogger("emu").handlers == handlers and warnings.formatwarning is usual


def test_the_logger_of_the_library_is_silent_until_somebody_listens():
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import logging, emu; logging.getLogger('emu.any').warning('heard')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from emu.cli.main import main; main(['--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'transformers', 'datasets', 'numpy')))"
    )
    paths = [path for path in sys.path if path]
    assert (
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"], stdout=subprocess.DEVNULL
        ).returncode
        == 0
    )


def test_letters_that_an_output_cannot_hold_are_written_as_escapes(monkeypatch):
    monkeypatch.setattr("emu.cli.recipes.main", lambda words: print("a caf\u00e9"))
    monkeypatch.setattr(sys, "argv", ["emu", "recipes"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert main() == 0
    assert sys.stdout.buffer.getvalue() == b"a caf\\xe9\n"


@pytest.mark.parametrize(
    ("output", "unbuffered", "expected"),
    [
        *(("| exec true", "", "0"), ("| exec true", "1", "0")),
        *((">/dev/full", "", "emu: No space left on device 1"), (">&-", "", "0")),
    ],
)
def test_an_output_that_takes_nothing_ends_a_command_without_a_traceback(output, unbuffered, expected):
    command = 'sleep .1; "$0" -c "import sys; from emu.cli.main import main; sys.exit(main([\'--version\']))"'
    paths = os.pathsep.join(path for path in sys.path if path)
    found = subprocess.run(
        ["sh", "-c", f"({command}) {output}; echo $?", sys.executable],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": unbuffered},
    )
    assert " ".join((found.stderr + found.stdout).split()) == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_is_one_line_and_clears_away_what_is_half_written(monkeypatch, capsys, tmp_path, number, code):
    def work(words):
        with replacing(tmp_path / "picture.png") as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), number)
            time.sleep(5)

    monkeypatch.setattr("emu.cli.recipes.main", work)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["recipes"]) == code
    assert capsys.readouterr().err == "emu recipes: stopped: what was finished is kept; the same command goes on\n"
    assert not list(tmp_path.iterdir()) and signal.getsignal(signal.SIGTERM) is before


def test_a_forked_child_of_a_command_ends_as_it_would_have(monkeypatch):
    def work(words):
        fork = multiprocessing.get_context("fork")
        begun = fork.Event()
        child = fork.Process(target=lambda: (begun.set(), time.sleep(30)))
        child.start()
        begun.wait(20)
        child.terminate()
        child.join(20)
        return 0 if child.exitcode == -signal.SIGTERM else 1

    monkeypatch.setattr("emu.cli.recipes.main", work)
    assert main(["recipes"]) == 0


def test_a_signal_that_is_ignored_stays_so(monkeypatch):
    monkeypatch.setattr("emu.cli.recipes.main", lambda words: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert main(["recipes"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
