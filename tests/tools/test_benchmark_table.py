"""The README's table of what was measured is what the files in benchmarks/ say."""

import json
import os
import sys

import pytest

from fastirv2.errors import DataError
from tests.processes import torchrun
from tests.tools.test_tools import TOOLS

sys.path.insert(0, str(TOOLS))


from benchmark_table import BEGIN, END, ROOT, put, rows_of, table


def test_the_readme_holds_the_table_of_the_files():
    readme = (ROOT / "README.md").read_text()
    assert readme.count(BEGIN) == readme.count(END) == 1
    assert put(readme, table(ROOT / "benchmarks")) == readme, "run python tools/benchmark_table.py --write"


def test_another_figure_in_a_file_is_another_table(tmp_path):
    found = json.loads((ROOT / "benchmarks/cpu_model.json").read_text())
    found["batches"][0]["train"]["median"] = 10.04
    (tmp_path / "one.json").write_text(json.dumps(found))
    before = table(tmp_path)
    found["batches"][0]["train"]["median"] = 1234.5
    (tmp_path / "one.json").write_text(json.dumps(found))
    assert table(tmp_path) == before.replace("10.0 images/s", "1,234 images/s") != before


def test_a_measurement_over_two_ranks_says_how_it_was_started(tmp_path):
    options = ("--size", "75", "--rounds", "1", "--device", "cpu", "--amp", "fp32", "--batch", "2", "--norm", "shared")
    without = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}  # which torch sets
    done = torchrun(2, TOOLS / "bench_model.py", *options, "--json", tmp_path / "two.json", env=without)
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "two.json").read_text())
    assert (measured["ranks"], measured["batches"][0]["norm"]) == (2, "shared")
    assert measured["command"] == f"torchrun --nproc-per-node 2 tools/bench_model.py {' '.join(options)}"
    assert "at 75², batch 2 × 2, fp32, statistics over all ranks" in table(tmp_path)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"machine": {"cpu": "x"}, "command": "y", "other": 1}, "is of no kind"),
        ({"command": "y", "batches": []}, "on which machine and by which command"),
        ({"machine": {"cpu": "x"}, "batches": []}, "on which machine and by which command"),
    ],
)
def test_a_file_that_says_too_little_is_refused(tmp_path, found, said):
    file = tmp_path / "some.json"
    file.write_text(json.dumps(found))
    with pytest.raises(DataError, match=said):
        rows_of(file)
