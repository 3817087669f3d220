"""Runs that begin from trained weights: what is kept, what is frozen, on several ranks and when they go on."""

import shutil

import pytest
import torch

from fastirv2.errors import UsageError
from fastirv2.training.plan import TrainConfig
from tests.processes import run_python, run_ranks
from tests.train.conftest import RECIPE, Trainer, assert_done, latest
from tests.train.small_finetuning import SmallPaper

SETTINGS = (
    "--train.freeze", "both", "--optimizer.body-rate", "0.1", "--ema.decay", "0.9", "--train.amp", "fp64",
    "--train.epochs", "2", "--checkpoint.steps", "1", "--checkpoint.keep", "99",
)  # fmt: skip


def finetune(trainer, run, file, *options, ranks=1):
    """Start from `file` with the small network."""
    arguments = trainer.arguments(run, "--train.init-from", file, *SETTINGS, *options)[2:]
    line = ("-m", "tests.train.small_finetuning", *arguments)
    return run_python(*line) if ranks == 1 else run_ranks(ranks, *line)


@pytest.fixture(scope="module")
def begun(tmp_path_factory, lmdb_folder):
    """A fine-tuning from a state dict of five classes: the trainer, the run, what it said, and the weights it began from."""
    folder = tmp_path_factory.mktemp("finetuned")
    (folder / "small.toml").write_text(RECIPE)
    torch.manual_seed(5)
    weights = SmallPaper(5, 0.2).state_dict()
    torch.save(weights, folder / "five.pth")
    trainer = Trainer(folder / "small.toml", lmdb_folder)
    done = finetune(trainer, folder / "run", folder / "five.pth")
    assert_done(done)
    return trainer, folder / "run", done.stdout, weights


def test_it_begins_from_the_weights_with_a_new_last_layer_and_leaves_what_is_frozen(begun):
    _, run, said, weights = begun
    assert "five.pth; its last layer tells 5 classes apart and not 2: a new one begins" in said
    assert "frozen: the stem, and the running statistics" in said
    state = latest(run)
    assert state["step"] == 6
    learning = [name for name, _ in SmallPaper(2, 0.2).named_parameters() if not name.startswith("stem.")]
    body = [name for name in learning if name.startswith("block_a.")]
    for trained in (state["model"], state["ema"]["weights"]):
        frozen = [name for name in weights if name.startswith("stem.") or "running_" in name]
        assert all(torch.equal(trained[name], weights[name].double()) for name in frozen)
        assert not any(torch.equal(trained[name], weights[name].double()) for name in body)
    first = torch.load(run / "checkpoints/step-00000001.pt", weights_only=True)["model"]
    assert all((first[name] - weights[name]).abs().max() < 0.1 for name in body)
    assert len(state["optimizer"]["state"]) == len(learning)


def test_stopped_and_gone_on_without_the_file_it_is_the_same_to_the_bit(begun, tmp_path):
    trainer, run, _, _ = begun
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    for step in (5, 6):
        (copy / f"checkpoints/step-{step:08}.pt").unlink()
    file = run.parent / "five.pth"
    file.rename(tmp_path / "aside.pth")
    done = finetune(trainer, copy, file)
    (tmp_path / "aside.pth").rename(file)
    assert_done(done)
    assert "going on after step 4" in done.stdout
    assert "five.pth" not in done.stdout
    ours, theirs = latest(copy), latest(run)
    for part in ("model", "ema"):
        some, others = (state[part].get("weights", state[part]) for state in (ours, theirs))
        assert all(torch.equal(some[name], tensor) for name, tensor in others.items())


def test_two_ranks_begin_as_one_does(begun, tmp_path):
    trainer, run, _, _ = begun
    done = finetune(trainer, tmp_path / "run", run.parent / "five.pth", "--train.stop-after", "2", ranks=2)
    assert_done(done)
    assert done.stdout.count("a new one begins") == 1
    ours, theirs = latest(tmp_path / "run"), torch.load(run / "checkpoints/step-00000002.pt", weights_only=True)
    for name, tensor in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], tensor, rtol=1e-9, atol=1e-9, msg=name)


def test_a_file_that_is_not_there_is_said_before_any_data(tmp_path):
    none = ("--train", tmp_path / "none", "--val", tmp_path / "none", "--out", tmp_path / "run")
    refused = run_python("-m", "fastirv2.train", "--recipe", "finetune", *none, "--train.init-from", tmp_path / "none.pth")
    assert_done(refused, 65)
    assert refused.stderr == f"fastirv2.train: {tmp_path}/none.pth does not exist: there are no weights to read\n"
    assert not (tmp_path / "run").exists()


def test_what_is_frozen_has_to_come_from_somewhere():
    with pytest.raises(UsageError, match=r"--train\.freeze stem keeps what was learned before: say with --train\.init-from"):
        TrainConfig(freeze="stem")
    with pytest.raises(UsageError, match=r"--train\.recalibrate takes anew the statistics that --train\.freeze both keeps"):
        TrainConfig(freeze="both", init_from="w.pth", recalibrate=10)
