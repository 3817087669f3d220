"""The Dockerfile asks for what setup.py requires, and leaves to NVIDIA's container what that brings."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
OF_THE_CONTAINER = {"torch", "nvidia-dali-cuda120"}


def instructions():
    """Return (instruction, argument) in order, comments left out and continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in joined]


def arguments(instruction):
    return [argument for name, argument in instructions() if name == instruction]


def required_on(python_version):
    code = (
        "from setuptools.dist import Distribution; from distutils.core import run_setup; "
        "print(*run_setup('setup.py', stop_after='init').install_requires, sep='\\n')"
    )
    listed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    requirements = map(Requirement, listed.splitlines())
    here = [each for each in requirements if not each.marker or each.marker.evaluate({"python_version": python_version})]
    return {f"{each.name}{each.specifier}" for each in here if each.name not in OF_THE_CONTAINER}


def test_the_requirement_layer_lists_what_setup_py_requires_and_the_container_lacks():
    (layer,) = [command for command in arguments("RUN") if "--constraint /etc/pip/constraint.txt" in command]
    listed = {str(Requirement(word)) for word in shlex.split(layer.split("constraint.txt ")[1]) if not word.startswith("-")}
    assert listed == required_on("3.12")


def test_the_package_itself_goes_in_without_dependencies_after_the_requirement_layer():
    names = [name for name, _ in instructions()]
    copied = names.index("COPY")
    installs = [(number, text) for number, (name, text) in enumerate(instructions()) if name == "RUN" and "pip install" in text]
    assert [number < copied for number, _ in installs] == [True, False]
    assert "--no-deps" in installs[1][1].split()


def test_the_entrypoint_of_nvidia_is_kept():
    assert arguments("ENTRYPOINT") + arguments("CMD") == []


def test_the_last_user_is_not_root():
    assert arguments("USER")[-1:] not in ([], ["root"], ["0"])


def test_the_copied_sources_are_without_what_git_ignores():
    left_out = {line.strip("/").removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line}
    assert ignored <= left_out
    assert ".git" in left_out
