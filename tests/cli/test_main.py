"""The entry point: help without heavy imports, one line an error, exit codes, --debug."""

from __future__ import annotations

import subprocess
import sys

import pytest

from allosr2.cli import main

FAILING = ["info", "no-such-model"]


def test_help_names_every_verb_and_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from allosr2.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    heavy = {'torch', 'diffusers', 'transformers', 'peft', 'numpy', 'PIL', 'matplotlib'}\n"
        "    print('loaded:', sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("upscale", "train", "data", "prepare", "snr", "degrade", "info"):
        assert f" {verb} " in done.stdout
    assert "loaded: []" in done.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["enlarge"], ["upscale", "a.png"], ["info", "--colour", "red"]]
)
def test_usage_errors_explain_themselves(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "Traceback" not in streams.err
    assert "--help" in streams.err


def test_an_error_is_one_line(capsys):
    assert main(FAILING) == 4
    streams = capsys.readouterr()
    assert streams.out == ""
    (line,) = streams.err.splitlines()
    assert line.startswith("allosr2: error: no-such-model: no such model")


def test_an_error_that_nobody_foresaw_is_one_line_too(capsys, monkeypatch):
    def fail(source):
        raise RuntimeError("something\n  broke")

    monkeypatch.setattr("allosr2.model.ModelConfig.read", fail)
    assert main(["info"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "allosr2: error: RuntimeError: something broke; allosr2 --debug VERB shows the traceback"
    ]


def test_debug_shows_the_traceback():
    from allosr2.errors import ModelError

    with pytest.raises(ModelError, match="no such model"):
        main(["--debug", *FAILING])


def test_interruption(capsys, monkeypatch):
    def interrupt(source):
        raise KeyboardInterrupt

    monkeypatch.setattr("allosr2.model.ModelConfig.read", interrupt)
    assert main(["info"]) == 130
    assert capsys.readouterr().err.splitlines() == ["allosr2: interrupted"]
