"""What is compiled, how often, and that nothing falls back; graphs are traced only, since making kernels takes minutes."""

import os
import re

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastirv2.assembly import choose_merge
from fastirv2.errors import UsageError
from fastirv2.models import ModelConfig
from fastirv2.models.norm import Statistics, share_statistics
from fastirv2.training import compiled
from fastirv2.training.compiled import Compiler, choose_compile, explained
from fastirv2.training.ema import EmaConfig
from fastirv2.training.engine import Engine
from fastirv2.training.optim import OptimizerConfig, create_optimizer, set_rate
from fastirv2.training.pixels import NORMALISE, unit
from fastirv2.training.regions import Region, regions
from tests.training.reduced import ALONE, CPU, batch, reduced


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Run graphs as they are traced, by torch's own backend for that, and forget them afterwards."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


def make(model, **options):
    engine = Engine(model, ALONE, accumulation=1, **{"amp": "fp32", "compile": "regional", "normalise": unit, **options})
    optimizer = create_optimizer(engine.model, OptimizerConfig())
    set_rate(optimizer, 0.01)
    return engine, optimizer


def validate(engine, size):
    engine.validate(iter([batch(9, size)]), 1, lambda: False)


def test_each_kind_of_block_is_compiled_once_for_each_shape_in_training_and_in_validation():
    """Training at three sizes, validation at the last, of weights and of their averages, statistics taken anew, all twice.

    Images of 75, 83 and 91 pixels become maps of 7 → 3 → 1, 8 → 3 → 1 and 9 → 4 → 1, so that they share some shapes.
    """
    engine, optimizer = make(reduced(), ema=EmaConfig(decay=0.9))
    counted = []
    for size in (75, 83, 91):
        for step in (1, 2):
            engine.step(iter([batch(step, size)]), optimizer, number=step, draw=step, watch=step == 2)
        validate(engine, 91)
        counted.append(engine.compiler.graphs)
    kinds = 6  # stem, blocks A, B and C, reductions A and B
    assert counted == [kinds + kinds, 2 * kinds + 3, 2 * kinds + 3 + 5]
    assert re.fullmatch(r"compiled 20 graphs in \d+ s, for images of 75, 83, 91 pixels", engine.compiler.news())
    engine.recalibrate(iter([batch(3, 91)] * 3), 3, lambda: False)
    engine.step(iter([batch(4, 91)]), optimizer)
    validate(engine, 91)
    assert engine.compiler.graphs == 20
    assert engine.compiler.news() is None


@pytest.mark.parametrize(("recompute", "graphs"), [(0, 9), (1, 13)])
def test_a_stem_is_one_graph_but_where_each_of_its_layers_is_computed_twice(recompute, graphs):
    """The stem or its five layers, mixed_5b, blocks A, B and C, the last C without its ReLU, two reductions, conv2d_7b."""
    engine, optimizer = make(reduced("slim"), recompute=recompute)
    engine.step(iter([batch(1)]), optimizer)
    assert engine.compiler.graphs == graphs


@pytest.mark.parametrize("mode", ["regional", "full"])
@pytest.mark.parametrize("normalise", NORMALISE)
def test_images_enter_the_first_graph_as_bytes(monkeypatch, normalise, mode):
    """Alone, so that what normalises them moves no tensor of its own to the device in every step."""
    graphs = []
    monkeypatch.setattr(compiled, "_compile", lambda module, inputs: graphs.append((module, inputs)) or module.forward)
    engine, optimizer = make(reduced(), compile=mode, normalise=NORMALISE[normalise])
    engine.step(iter([batch(1)]), optimizer)
    module, inputs = graphs[0]
    assert [tensor.dtype for tensor in inputs if tensor.shape[-2:] == (75, 75)] == [torch.uint8]
    assert torch.tensor not in {node.target for node in module.graph.nodes}


@pytest.mark.parametrize(("arch", "splits"), [("paper", 1), ("paper", 2), ("slim", 1)])
def test_what_is_compiled_computes_the_same(arch, splits):
    """In float64; the network as a whole too, and blocks where parts of a batch have statistics of their own."""
    learned = []
    for mode in ("off", "regional", "full") if splits == 1 else ("off", "regional"):
        model = reduced(arch)
        share_statistics(model, Statistics(splits=splits))
        engine, optimizer = make(model, compile=mode, amp="fp64")
        engine.step(iter([batch(1, 75 if splits == 1 else 107)]), optimizer, draw=7)
        learned.append({name: value for name, value in model.state_dict().items() if value.is_floating_point()})
    for other in learned[1:]:
        torch.testing.assert_close(other, learned[0], rtol=1e-10, atol=1e-12)


class Twice(nn.Module):
    """Compiled anew for every number that it meets."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 2))

    def forward(self, x):
        return self.layers(x)


def test_a_graph_too_many_is_an_error_in_a_sentence():
    model = Twice()
    Compiler(regions(model), cpus=1)
    with torch._dynamo.config.patch(recompile_limit=1):
        model(torch.ones(2, 2))
        with pytest.raises(UsageError, match=r"was compiled 1 times.*--train.compile off trains without"), explained():
            model(torch.ones(3, 2))


class Broken(nn.Linear):
    def forward(self, x):
        torch._dynamo.graph_break()
        return super().forward(x)


def test_what_cannot_be_one_graph_is_an_error_in_a_sentence():
    model = nn.Sequential()
    model.add_module("layers", nn.Sequential(Broken(2, 2)))
    Compiler(regions(model), cpus=1)
    with pytest.raises(UsageError, match=r"cannot be compiled here \(Unsupported: "), explained():
        model(torch.ones(2, 2))


def test_errors_of_others_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), explained():
        _ = 1 / 0


def test_without_a_compiler_there_is_a_sentence_and_auto_goes_without(monkeypatch):
    assert choose_compile("auto", CPU) == choose_compile("off", CPU) == "off"
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"--train.compile regional needs a C\+\+ compiler .* give --train.compile off"):
        choose_compile("regional", CPU)


def test_a_gpu_without_pythons_headers_trains_without_compiling(monkeypatch, tmp_path):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name)
    assert choose_compile("auto", device) == "regional"
    monkeypatch.setattr(compiled.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert choose_compile("auto", device) == "off"
    with pytest.raises(UsageError, match=r"needs Python's headers \(python3-dev\), and there is no .*Python\.h; install it"):
        choose_compile("regional", device)


def test_a_user_without_a_name_compiles_too(monkeypatch):
    def unknown():
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(compiled.getpass, "getuser", unknown)
    monkeypatch.setenv("USER", "")
    Compiler(regions(Twice()), cpus=1)
    assert os.environ["USER"] == str(os.getuid())


def test_it_is_known_while_something_is_compiled(monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    model = nn.Linear(2, 2)
    compiler, seen = Compiler([Region(model)], cpus=1), []
    handler = torch._dynamo.callback.callback_handler
    told = handler.register_start_callback(lambda *_: seen.append(compiler.running))
    model(torch.zeros(1, 2))
    handler.remove_start_callback(told)
    assert seen == [True]
    assert not compiler.running


def test_weights_are_cast_together_on_a_gpu_and_not_on_a_cpu(monkeypatch):
    """By what the compiler does to a graph: one for a GPU needs none where its tensors are torch's fake ones."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    changed = []
    monkeypatch.setattr(compiled, "cast_together", changed.append)
    for device in ("cpu", "cuda"):
        module = torch.fx.symbolic_trace(nn.ReLU())
        with FakeTensorMode():
            compiled._compile(module, [torch.empty(1, device=device)])
    assert changed == [module.graph]


def test_ranks_share_the_cpus_for_compiling(monkeypatch):
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "")
    with config.patch(compile_threads=1):
        Compiler(regions(Twice()), cpus=3)
        assert config.compile_threads == 3


@pytest.mark.parametrize(
    ("given", "compile", "device", "chosen"),
    [
        ("auto", "off", "cpu", "on"),
        ("auto", "regional", "cpu", "off"),
        ("auto", "regional", "cuda", "off"),
        ("auto", "off", "cuda", "off"),
        ("on", "full", "cpu", "on"),
        ("on", "regional", "cuda", "on"),
        ("off", "off", "cuda", "off"),
    ],
)
def test_siblings_are_merged_by_default_only_where_that_was_measured_to_be_faster(given, compile, device, chosen):
    assert choose_merge(ModelConfig(merge=given), compile, torch.device(device)) == chosen
