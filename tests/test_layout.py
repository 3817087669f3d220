"""Who imports whom: downwards only, as the README's map of the tree says."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {"build_lmdb", "train", "evaluate", "predict", "export", "demo"}
BELOW_ASSEMBLY = {"config", "building", "data", "training", "models", "pipelines", "report", "errors", "files", "host"}
BELOW_COMMANDS = {"assembly", "trained", "scoring", "exporting", *BELOW_ASSEMBLY}
MAY_IMPORT = {
    **dict.fromkeys(COMMANDS, BELOW_COMMANDS),
    "tools": BELOW_COMMANDS,
    "assembly": BELOW_ASSEMBLY,
    "config": BELOW_ASSEMBLY,
    "scoring": {"trained", "data", "training", "models", "report", "errors"},
    "exporting": {"scoring", "trained", "models", "pipelines", "report", "errors"},
    "trained": {"data", "training", "models", "errors", "files"},
    "building": {"data", "models", "pipelines", "report", "errors", "files", "host"},
    "data": {"building", "models", "pipelines", "report", "errors", "files", "host"},
    "training": {"models", "pipelines", "report", "errors", "files", "host"},
    "models": {"errors"},
    "report": {"errors", "files", "host"},
    "pipelines": set(),
    "errors": set(),
    "files": {"errors"},
    "host": set(),
    "": {"trained"},
}


def sources(root, *folders):
    return [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]


def module_of(path, root):
    """The dotted name that a file is imported by; pipelines/ is linked into the package."""
    parts = path.relative_to(root).with_suffix("").parts
    if parts[0] == "pipelines":
        parts = ("fastirv2", *parts)
    return ".".join(parts)


def imports(path, module):
    """Yield (line, dotted name) of all that a file imports, wherever in the file; relative names are made absolute."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def room_of(module):
    """The part of the package that a module belongs to: its file or folder right below fastirv2, or tools."""
    parts = module.split(".")
    if parts[0] != "fastirv2":
        return parts[0]
    return "" if len(parts) == 1 or parts[1] in {"__init__", "__version__"} else parts[1]


def upward_imports(root):
    found = []
    for path in sources(root, "fastirv2", "pipelines", "tools"):
        module = module_of(path, root)
        room = room_of(module)
        if room not in MAY_IMPORT:
            found.append(f"{path.relative_to(root)} belongs to no room of the map: add it to the README's and to MAY_IMPORT")
            continue
        for line, name in imports(path, module):
            target = room_of(name)
            if name.split(".")[0] == "fastirv2" and target not in MAY_IMPORT[room] | {room, ""}:
                found.append(f"{path.relative_to(root)}:{line} imports {name}")
    return found


def import_graph(root):
    """Return module → the modules of ours that it names in its imports."""
    paths = {module_of(path, root).removesuffix(".__init__"): path for path in sources(root, "fastirv2", "pipelines")}
    graph = {}
    for module, path in paths.items():
        named = {name for _, name in imports(path, module_of(path, root))}
        graph[module] = {known for name in named for known in (name, name.rpartition(".")[0]) if known in paths} - {module}
    return graph


def bare_pipelines_imports(root):
    return [
        f"{path.relative_to(root)}:{line}"
        for path in sources(root, "fastirv2", "pipelines", "tools", "tests")
        for line, name in imports(path, module_of(path, root))
        if name.split(".")[0] == "pipelines"
    ]


def is_guarded(node, parents):
    """Whether an import stands in the body of a `try` that catches ImportError."""
    while node in parents:
        child, node = node, parents[node]
        if isinstance(node, ast.Try) and child in node.body:
            caught = {ast.unparse(handler.type) for handler in node.handlers if handler.type}
            if caught & {"ImportError", "ModuleNotFoundError"}:
                return True
    return False


def unguarded_apex_imports(root):
    found = []
    for path in sources(root, "fastirv2", "pipelines", "tools"):
        tree = ast.parse(path.read_text())
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "apex" for name in names) and not is_guarded(node, parents):
                found.append(f"{path.relative_to(root)}:{node.lineno}")
    return found


def test_imports_run_downwards_only():
    assert upward_imports(ROOT) == []


def test_no_module_imports_itself_by_way_of_others():
    graph = import_graph(ROOT)
    assert sum(map(len, graph.values())) > 10
    graphlib.TopologicalSorter(graph).prepare()


def test_pipelines_is_imported_as_a_part_of_the_package_only():
    assert bare_pipelines_imports(ROOT) == []


def test_apex_is_imported_only_where_its_absence_is_caught():
    assert unguarded_apex_imports(ROOT) == []


def test_the_packaged_pipelines_are_the_ones_at_the_root():
    assert (ROOT / "fastirv2/pipelines").samefile(ROOT / "pipelines")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("fastirv2/data/loader.py", "from fastirv2.training import engine"),
        ("fastirv2/data/loader.py", "from ..training import engine"),
        ("fastirv2/data/loader.py", "from fastirv2 import training"),
        ("fastirv2/training/engine.py", "def f():\n    import fastirv2.data.loader"),
        ("fastirv2/training/engine.py", "from fastirv2.config import Config"),
        ("fastirv2/models/paper.py", "from fastirv2.report import console"),
        ("fastirv2/evaluate.py", "from fastirv2.train import main"),
        ("fastirv2/config.py", "from . import train"),
        ("fastirv2/errors.py", "from fastirv2.report import console"),
        ("pipelines/train.py", "from fastirv2.errors import DataError"),
        ("tools/bench_data.py", "from fastirv2.demo import samples"),
        ("fastirv2/helpers.py", ""),
    ],
)
def test_an_upward_import_is_found(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert len(upward_imports(tmp_path)) == 1


def test_a_circle_of_imports_is_found(tmp_path):
    for file, line in (
        ("building/sources.py", "from fastirv2.data import datum"),
        ("data/datum.py", "from ..building import sources"),
    ):
        path = tmp_path / "fastirv2" / file
        path.parent.mkdir(parents=True)
        path.write_text(line + "\n")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(import_graph(tmp_path)).prepare()


@pytest.mark.parametrize("line", ["import pipelines", "import pipelines.train", "from pipelines import train"])
@pytest.mark.parametrize("file", ["fastirv2/train.py", "tools/bench_data.py", "tests/test_pipelines.py"])
def test_a_second_copy_of_pipelines_is_found(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert len(bare_pipelines_imports(tmp_path)) == 1


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("import apex", 1),
        ("from apex.optimizers import FusedSGD", 1),
        ("try:\n    import apex\nexcept ImportError:\n    apex = None", 0),
        ("try:\n    pass\nexcept ImportError:\n    import apex", 1),
        ("try:\n    import apex\nexcept ValueError:\n    pass", 1),
    ],
)
def test_an_unguarded_import_of_apex_is_found(tmp_path, text, count):
    path = tmp_path / "fastirv2/training/optim.py"
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n")
    assert len(unguarded_apex_imports(tmp_path)) == count
