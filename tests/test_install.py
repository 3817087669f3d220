"""The package as users get it: wheel, editable install and sdist, run from the checkout's root and from elsewhere."""

import re
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PIP_INSTALL = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")


def run(*command, cwd):
    result = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def copy_checkout(to):
    """Copy what a clone would hold: the files that git tracks or would track, links as links."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name, follow_symlinks=False)
    assert (to / "fastirv2/pipelines").is_symlink()
    return to


def make_environment(folder):
    """Make a virtual environment that sees the installed libraries of this one, and return its interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (own / "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request, tmp_path_factory):
    """The package installed one way, from a checkout of its own, since building leaves files there."""
    checkout = copy_checkout(tmp_path_factory.mktemp("checkout"))
    python = make_environment(tmp_path_factory.mktemp("environment"))
    run(python, *PIP_INSTALL, *(["--editable"] if request.param == "editable" else []), ".", cwd=checkout)
    return SimpleNamespace(way=request.param, checkout=checkout, python=python)


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    return build(checkout, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory):
    return build(checkout, tmp_path_factory.mktemp("sdist"), "sdist")


def build(source, to, kind):
    run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_{kind}({str(to)!r})", cwd=source)
    (built,) = to.iterdir()
    return built


@pytest.fixture(params=["the checkout's root", "elsewhere"])
def place(request, installed, tmp_path):
    """A folder to start commands in; elsewhere holds a `pipelines` of the user's own."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/__init__.py").write_text("raise RuntimeError('the pipelines of somebody else')\n")
    return installed.checkout if request.param == "the checkout's root" else tmp_path


def test_train_answers_help(installed, place):
    assert "--train.global-batch" in run(installed.python, "-m", "fastirv2.train", "--help", cwd=place)


def test_the_script_that_builds_an_lmdb_answers_help(installed, place):
    assert "--max-bad" in run(installed.python.parent / "fastirv2-build-lmdb", "--help", cwd=place)


def test_pipelines_come_from_the_install_in_question(installed, place):
    found = Path(run(installed.python, "-c", "import fastirv2.pipelines as p; print(p.__file__)", cwd=place).strip())
    home = installed.checkout
    if installed.way == "wheel" and place != installed.checkout:
        home = installed.python.parent.parent
    assert found.is_relative_to(home)
    assert found.parts[-3:] == ("fastirv2", "pipelines", "__init__.py")


def expected_modules(checkout):
    """Every Python file, recipe and published curve of the package, by its path in the package."""
    files = [path.relative_to(checkout) for path in (checkout / "fastirv2").rglob("*")]
    modules = {str(file) for file in files if file.suffix in {".py", ".toml", ".csv"}}
    return modules | {f"fastirv2/{path.relative_to(checkout)}" for path in (checkout / "pipelines").rglob("*.py")}


def test_the_wheel_holds_every_module_recipe_and_curve_and_nothing_else(checkout, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected_modules(checkout)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_a_wheel_built_from_the_sdist_holds_the_same(wheel, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (source,) = (tmp_path / "source").iterdir()
    (tmp_path / "wheel").mkdir()
    again = build(source, tmp_path / "wheel", "wheel")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return archive.read(name).decode()


def test_every_requirement_is_pinned_once_for_each_python(wheel):
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    required = [Requirement(text) for text in re.findall(r"^Requires-Dist: (.+)$", metadata(wheel), re.MULTILINE)]
    assert len(required) > 10
    for version in ("3.10", "3.11", "3.13"):
        here = {"python_version": version, "extra": "dev"}
        pinned = [normal(pin.name) for pin in pins if not pin.marker or pin.marker.evaluate(here)]
        assert len(set(pinned)) == len(pinned)
        needed = {normal(each.name) for each in required if not each.marker or each.marker.evaluate(here)}
        assert needed <= set(pinned)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_apex_is_no_dependency(wheel):
    assert not re.search(r"^Requires-Dist: apex\b", metadata(wheel), re.MULTILINE)
