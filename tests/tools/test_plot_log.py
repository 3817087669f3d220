"""Runs, old logs and published curves in one picture. The logs are made up, line by line in the form of the real ones."""

import json
import math
from pathlib import Path

import pytest

from fastirv2.errors import DataError, UsageError
from fastirv2.report.old_logs import read_log
from tests.processes import run_python
from tests.report.test_metrics import LINES

TOOL = Path(__file__).parents[2] / "tools/plot_log.py"


def torch_log(epochs=3, steps=4):
    """What fb.resnet.torch prints, its network and its validation steps among it."""
    lines = ["=> Creating model from file: models/inception-resnet-v2.lua", "nn.Sequential {", "=> Training epoch # 1"]
    for epoch in range(1, epochs + 1):
        lines += [
            f" | Epoch: [{epoch}][{step}/{steps}]    Time 1.856  Data 1.156  Err {6.5 / epoch + step / 100:1.4f}  "
            f"top1 {90 - epoch - step:7.3f}  top5 {70 - epoch:7.3f}  LR {0.045 * 0.96**epoch:.6f}"
            for step in range(1, steps + 1)
        ]
        lines += [f" | Test: [{epoch}][1/2]    Time 0.500  Data 0.100  top1  99.000 ( 99.000)  top5  98.000 ( 98.000)"]
        lines += [f" * Finished epoch # {epoch}     top1: {84 - 2.5 * epoch:7.3f}  top5: {62 - 2.9 * epoch:7.3f}", ""]
    return "\n".join([*lines, " * Finished top1:  76.500  top5:  53.300"])


def caffe_log(iterations=4000, test=1000, display=500):
    """What Caffe's solver prints, through glog, with auxiliary outputs."""
    head = "I0512 10:01:01.123456  4711 solver.cpp:"
    lines = ["Log file created at: 2016/05/12 10:00:59", f"{head}48] Initializing solver from parameters:", "base_lr: 0.045"]
    for step in range(0, iterations + 1, display):
        if step % test == 0:
            lines += [
                f"{head}341] Iteration {step}, Testing net (#0)",
                f"{head}409]     Test net output #0: accuracy = {0.001 + step / 10000:g}",
                f"{head}409]     Test net output #1: accuracy_top5 = {0.005 + step / 5000:g}",
                f"{head}409]     Test net output #2: loss = {6.9 - step / 1000:g} (* 1 = {6.9 - step / 1000:g} loss)",
                f"{head}409]     Test net output #3: temperature = 77",
            ]
        speed = " (2.5 iter/s, 40s/100 iters)" if step else ""
        lines += [
            f"{head}228] Iteration {step}{speed}, loss = {7 - step / 1000:g}",
            f"{head}244]     Train net output #0: loss = 9.9 (* 1 = 9.9 loss)",
            f"I0512 10:01:01.2 4711 sgd_solver.cpp:106] Iteration {step}, lr = {0.045 * 0.94 ** (step // 2000):g}",
        ]
    return "\n".join([*lines, f"{head}454] Snapshotting to binary proto file caffe_iter_{iterations}.caffemodel"])


@pytest.fixture
def logs(tmp_path):
    """A run folder, a log of fb.resnet.torch and one of Caffe."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (tmp_path / "torch.log").write_text(torch_log())
    (tmp_path / "caffe.INFO").write_text(caffe_log())
    return tmp_path


def test_old_and_new_runs_share_a_picture_with_what_was_published(logs):
    options = ("--reference", "lim0606_setting1", "revilokeb", "--caffe-epoch-iterations", "1000")
    paths = [logs / name for name in ("run", "torch.log", "caffe.INFO")]
    done = run_python(TOOL, *paths, *options, "--out", logs / "all.png", "--json", logs / "all.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "lim0606_setting1: 24.41 / 7.41 % at epoch 90",
        "revilokeb: 50.30 / 26.40 % at epoch 24",
        "run: 40.00 / 10.00 % at epoch 2",
        "torch.log: 76.50 / 53.30 % at epoch 3",
        "caffe.INFO: 59.90 / 19.50 % at epoch 4",
        f"curves in {logs / 'all.png'}",
    ]
    assert (logs / "all.png").read_bytes()[:4] == b"\x89PNG"
    rows = json.loads((logs / "all.json").read_text())
    assert [row["val_top1_error"] for row in rows[str(logs / "run")]] == [60, 40]
    assert rows["lim0606_setting1"][1] == {"epoch": 2, "val_top1_error": 68.2, "val_top5_error": 43.9}


def test_a_log_of_torch_is_averaged_by_epoch(logs):
    first, _, last = read_log(logs / "torch.log")
    assert (first["val_top1_error"], first["val_top5_error"]) == (81.5, 59.1)
    assert first["train_loss"] == pytest.approx(6.5 + 0.025)
    assert first["train_top1_error"] == pytest.approx(90 - 1 - 2.5)
    assert first["data_wait_share"] == pytest.approx(1.156 / 1.856)
    assert (last["epoch"], last["lr"]) == (3, pytest.approx(0.045 * 0.96**3, abs=1e-6))


def test_what_an_interrupted_run_of_torch_did_again_counts_once(logs):
    path = logs / "torch.log"
    once = read_log(path)
    path.write_text(path.read_text() + "\n" + torch_log().replace("81.500", "80.000") + "\n | Epoch: [4][1/4]    Time 1.8")
    again = read_log(path)
    assert again[0].pop("val_top1_error") == 80
    assert [*again[1:], again[0]] == [*once[1:], {k: v for k, v in once[0].items() if k != "val_top1_error"}]


def test_a_log_of_caffe_is_cut_at_its_tests(logs):
    rows = read_log(logs / "caffe.INFO", 2000)
    assert [row["epoch"] for row in rows] == [0, 0.5, 1, 1.5, 2]
    assert rows[2]["val_top1_error"] == pytest.approx(100 * (1 - 0.201))
    assert rows[2]["val_top5_error"] == pytest.approx(100 * (1 - 0.405))
    assert rows[2]["val_loss"] == pytest.approx(4.9)
    assert rows[0]["train_loss"] == 7
    assert rows[2]["train_loss"] == pytest.approx((7 - 1.5 + 7 - 2.0) / 2)
    assert [row["lr"] for row in rows] == pytest.approx([0.045, 0.045, 0.0423, 0.0423, 0.0423 * 0.94], rel=1e-3)


@pytest.mark.parametrize(("top1", "top5"), [("loss3/top-1", "loss3/top-5"), ("stage5/acc", "stage5/acc_5")])
def test_outputs_of_a_test_net_are_known_by_the_names_that_caffes_networks_give_them(logs, top1, top5):
    path = logs / "caffe.INFO"
    path.write_text(caffe_log().replace("accuracy_top5", top5).replace("accuracy", top1))
    errors = [(row["val_top1_error"], row["val_top5_error"]) for row in read_log(path, 2000)]
    assert errors[2] == pytest.approx((100 * (1 - 0.201), 100 * (1 - 0.405)))


def test_numbers_in_powers_of_ten_are_read_to_their_ends(logs):
    (logs / "caffe.INFO").write_text(caffe_log().replace("lr = 0.045", "lr = 4.5e-05"))
    assert read_log(logs / "caffe.INFO", 2000)[0]["lr"] == 4.5e-05


def test_a_log_of_caffe_without_tests_is_cut_at_its_epochs(logs):
    path = logs / "caffe.INFO"
    path.write_text("\n".join(line for line in caffe_log().splitlines() if "Test" not in line))
    rows = read_log(path, 2000)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["train_loss"] for row in rows] == pytest.approx([(7 + 6.5 + 6 + 5.5 + 5) / 5, (4.5 + 4 + 3.5 + 3) / 4])


def test_a_diverged_log_is_drawn_as_far_as_it_is_a_number(logs):
    (logs / "caffe.INFO").write_text(caffe_log().replace("loss = 3 ", "loss = nan ").replace("loss = 3\n", "loss = nan\n"))
    rows = read_log(logs / "caffe.INFO", 1000)
    assert "train_loss" not in rows[4]
    assert all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("thesis.txt", "Chapter 1\n", "is neither a run folder nor a log of fb.resnet.torch or Caffe"),
        ("photo.png", "\udcff\udcd8", "is neither a run folder nor a log of fb.resnet.torch or Caffe"),
        ("young.log", " | Epoch: [1][1/9]  Time 1.0  Data 0.5  Err 6.9  top1 99.0  top5 98.0", "has no finished epoch"),
        ("other.jsonl", '{"kind": "val"}\n', "is no metrics.jsonl of a run"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(tmp_path, name, content, sentence):
    from tools.plot_log import read

    (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(DataError, match=sentence):
        read(tmp_path / name, 0)


def test_a_log_of_caffe_needs_the_length_of_an_epoch(logs):
    with pytest.raises(UsageError, match="give --caffe-epoch-iterations"):
        read_log(logs / "caffe.INFO")


def test_bad_input_ends_with_a_sentence_and_its_exit_code(tmp_path):
    done = run_python(TOOL, tmp_path)
    assert (done.returncode, done.stderr) == (65, f"plot_log: {tmp_path} is no run folder: it has no metrics.jsonl\n")


def test_a_run_without_an_epoch_keeps_no_other_from_being_drawn(tmp_path):
    (tmp_path / "young").mkdir()
    (tmp_path / "young/metrics.jsonl").touch()
    done = run_python(TOOL, tmp_path / "young", "--out", tmp_path / "curves.png")
    said = f"no epoch has ended yet in {tmp_path}/young"
    assert (done.returncode, done.stderr) == (65, f"plot_log: {said}, so there is nothing to draw\n")
    to = ["--out", tmp_path / "curves.png", "--json", tmp_path / "rows.json"]
    done = run_python(TOOL, tmp_path / "young", "--reference", "revilokeb", *to)
    assert (done.returncode, done.stderr) == (0, f"warning: {said}\n")
    assert list(json.loads((tmp_path / "rows.json").read_text())) == ["revilokeb"]
    assert "young" not in done.stdout


def test_runs_of_one_name_are_told_apart(tmp_path):
    from tools.plot_log import names

    assert names((tmp_path / "a/run", tmp_path / "b/run", tmp_path / "a/run")) == ["a/run", "b/run", "a/run"]
    assert names((tmp_path / "a", tmp_path / "b")) == ["a", "b"]
