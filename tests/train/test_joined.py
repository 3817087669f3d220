"""Training on the parts of a build."""

from tests.conftest import build
from tests.train.conftest import assert_done, learned


def test_training_on_all_parts_is_training_on_the_whole(light, images, tmp_path):
    parts = [build(images, tmp_path / f"part{i}", "--part", f"{i}/2") for i in (1, 2)]
    together = f"{parts[0]},{parts[1]}"
    runs = {"whole": None, "parts": together}
    for name, train in runs.items():
        assert_done(light(tmp_path / name, "--train.stop-after", "2", train=train, val=light.data))
    assert learned(tmp_path / "parts") == learned(tmp_path / "whole")


def test_a_run_says_what_is_missing_or_too_small(light, images, tmp_path):
    part = build(images, tmp_path / "part", "--part", "1/2", "--resize", "64x64")
    tried = light(tmp_path / "run", "--dry-run", train=part)
    assert_done(tried)
    assert f"warning: {part} is only part 1/2 of the images it was built from\n" in tried.stderr
    assert f"warning: {part} was built with --resize 64x64: its images are enlarged to 82 pixels" in tried.stderr
