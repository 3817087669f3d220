"""How commands end: by Ctrl-C while they import at once and quietly, otherwise with nothing left open."""

import gc
import os
import signal
import subprocess
import sys
import time
from types import ModuleType

import pytest

from fastirv2.errors import DataError, run_command


@pytest.mark.parametrize("command", ["fastirv2.train", "fastirv2.evaluate", "fastirv2.predict", "fastirv2.export"])
def test_ctrl_c_while_torch_is_imported_shows_no_traceback(tmp_path, command):
    (tmp_path / "torch.py").write_text("import os, time\nos.mkdir(os.environ['HERE'])\ntime.sleep(100)\n")
    here = tmp_path / "importing"
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "HERE": str(here)}
    process = subprocess.Popen([sys.executable, "-m", command], env=env, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not here.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors) == (-signal.SIGINT, "")


def test_importing_the_package_leaves_signals_as_they_are():
    line = "import signal, fastirv2; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", line], check=True)


def test_what_is_still_open_in_a_cycle_is_ended_before_the_interpreter_is():
    """As an input pipeline is, whose graph knows the loader that it belongs to."""
    ended = []

    class Pipeline:
        def __init__(self):
            self.feed = self.next

        def next(self): ...

        def __del__(self):
            ended.append(self)

    def command():
        Pipeline().next()
        raise DataError("the disk is gone")

    with pytest.raises(SystemExit) as end:
        run_command(command, "command")
    assert (end.value.code, len(ended)) == (65, 1)


@pytest.mark.parametrize("triton", [False, True])
def test_a_command_spares_python_the_search_for_cycles_at_its_end_except_where_triton_reports_what_is_left(monkeypatch, triton):
    """Its classes are nanobind's, which lists each that is alive when the interpreter has ended, on stderr."""
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    if triton:
        monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    with pytest.raises(SystemExit):
        run_command(lambda: None, "command")
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    assert bool(frozen) is not triton
