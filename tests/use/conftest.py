"""A trained network of two classes, and commands that run in this process as they do in one of their own."""

import sys
from types import SimpleNamespace

import pytest

from fastirv2.errors import run_command
from tests.trained import make_network, write_run


@pytest.fixture(scope="session")
def files(images):
    return sorted(images.rglob("*.jpg"))


@pytest.fixture(scope="session")
def paper_run(tmp_path_factory, files):
    """A run of the paper network on cats and dogs; its best checkpoint has averages."""
    model = make_network("paper", 2, files)
    return write_run(tmp_path_factory.mktemp("paper") / "run", model, "paper", ["cat", "dog"])


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command of the package in this process: its exit code and what it printed."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.PROGRAM, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(module.command, module.PROGRAM, short=True)
        printed = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=printed.out, err=printed.err)

    return run
