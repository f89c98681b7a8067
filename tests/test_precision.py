"""The choice of precision and of memory: what is measured, what is refused, and what the refusal proposes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import write_tiny

from nightschool import memory, precision
from nightschool.decoders import read_config, trainable_shapes
from nightschool.errors import NightschoolError, NotEnoughMemory
from nightschool.events import Notice, result_of
from nightschool.gguf import open_gguf
from nightschool.lessons import Lesson
from nightschool.model import Model
from nightschool.precision import Agreement, compare, find_outliers, load_model
from nightschool.settings import TrainSettings
from nightschool.train import resolve


@pytest.fixture
def file(tmp_path):
    return open_gguf(write_tiny(tmp_path / "t.gguf", "llama", "Q8_0"))


@pytest.fixture
def lessons():
    rng = np.random.default_rng(0)
    return [Lesson(rng.integers(3, 250, 40).astype(np.int32), rng.random(40) > 0.3) for _ in range(8)]


def run(events):
    said = []
    value = result_of(events, said.append)
    return value, [event.text for event in said if isinstance(event, Notice)]


def test_the_fastest_precision_that_agrees_is_taken(file, lessons, monkeypatch):
    speeds = {"int8": 3e9, "bf16": 2e9, "fp32": 1e9}
    monkeypatch.setattr(precision, "operations_per_s", lambda name, config: speeds[name])
    model, said = run(load_model(file, lessons, resolve(TrainSettings(), read_config(file), lessons)))
    assert model.precision == "int8"
    assert said[0].startswith("int8: 3 GOP/s")
    monkeypatch.setattr(precision, "GRADIENT_TOLERANCE", 0.99999)
    model, said = run(load_model(file, lessons, resolve(TrainSettings(), read_config(file), lessons)))
    assert model.precision == "fp32"
    assert [text.split(":")[0] for text in said] == ["int8", "bf16", "fp32"]
    assert "not close enough" in said[0]


def test_a_forced_precision_is_not_questioned(file, lessons):
    for name in ("int8", "bf16", "fp32", "packed"):
        model, said = run(load_model(file, lessons, TrainSettings(precision=name)))
        assert (model.precision, said) == (name, [])


def test_exact_arithmetic_agrees_with_itself(file, lessons):
    piece = precision.sample(lessons)
    found = compare(Model(file, "fp32"), piece, TrainSettings())
    assert found.loss < 1e-5
    assert found.gradient > 0.99999
    assert not Agreement(0.5, 1.0).close
    assert not Agreement(0.0, 0.5).close


def test_a_broken_model_is_caught_by_the_check(file, lessons):
    model = Model(file, "int8")
    model.layers[0].down.matrix.scale.mul_(1.5)
    assert not compare(model, precision.sample(lessons), TrainSettings()).close


def test_loud_channels_are_found_where_they_are(file, lessons):
    model = Model(file, "int8")
    norm = model.layers[1].ffn_norm
    norm[7] *= 500
    assert find_outliers(model, precision.sample(lessons)) >= 1
    assert 7 in model.layers[1].gate_up.matrix.outliers.tolist()
    assert model.layers[0].gate_up.matrix.outliers is None


def test_the_check_runs_on_the_first_lessons_with_something_to_learn(lessons):
    quiet = Lesson(lessons[0].tokens, np.zeros(40, bool))
    piece = precision.sample([quiet, *lessons])
    assert len(piece.tokens) <= precision.SAMPLE_TOKENS
    assert piece.targets.any()


def settings_for(file, lessons, **changes):
    return resolve(TrainSettings(**changes), read_config(file), lessons)


def wide(file):
    """The config of a model so large that tests can refuse it."""
    return replace(
        read_config(file), layers=32, width=4096, ffn=11008, heads=32, kv_heads=32, vocabulary=32000
    )


def test_a_run_that_fits_is_let_through(file, lessons):
    shapes = trainable_shapes(file)
    need = memory.check(read_config(file), shapes, settings_for(file, lessons), longest=40)
    assert 0 < need.total < memory.free_bytes()


def test_a_refusal_says_how_much_is_needed_and_which_setting_fits(file, lessons):
    settings = settings_for(file, lessons, micro_tokens=2048, batch_tokens=2048)
    shapes = trainable_shapes(file)
    auto = memory.estimate(wide(file), shapes, settings, precision="auto").total
    for room, words in ((0.7, "--precision int8 "), (0.52, "--recompute"), (0.16, "--precision packed")):
        with pytest.raises(NotEnoughMemory, match=rf"needs about {auto / 1e9:.1f} GB.*With .*{words}"):
            memory.check(wide(file), shapes, settings, longest=40, free=int(auto * room))
    with pytest.raises(NotEnoughMemory, match="smaller base"):
        memory.check(wide(file), shapes, settings, longest=40, free=1 << 20)


def test_the_proposed_setting_is_let_through(file, lessons):
    settings = settings_for(file, lessons, micro_tokens=2048, batch_tokens=2048)
    shapes = trainable_shapes(file)
    room = int(memory.estimate(wide(file), shapes, settings, precision="auto").total * 0.52)
    with pytest.raises(NotEnoughMemory) as refusal:
        memory.check(wide(file), shapes, settings, longest=40, free=room)
    proposed = str(refusal.value)
    micro = int(proposed.split("--micro-tokens ")[1].split()[0])
    change = replace(settings, precision="int8", micro_tokens=micro, recompute="--recompute" in proposed)
    memory.check(wide(file), shapes, change, longest=40, free=room)


def test_every_kind_of_need_grows_with_its_cause(file, lessons):
    shapes = trainable_shapes(file)
    base = settings_for(file, lessons)

    def need(precision="int8", **changes):
        return memory.estimate(wide(file), shapes, replace(base, **changes), precision=precision)

    assert need("fp32").weights > need("bf16").weights > need("int8").weights > need("packed").weights
    assert need(rank=64).adapter == 4 * need(rank=16).adapter
    assert need(micro_tokens=4096).activations > need(micro_tokens=512).activations
    assert need(recompute=True).activations < need().activations


def test_nothing_close_enough_is_an_error(file, lessons, monkeypatch):
    monkeypatch.setattr(precision, "GRADIENT_TOLERANCE", 2.0)
    with pytest.raises(NightschoolError, match="--precision fp32"):
        run(load_model(file, lessons, TrainSettings(threads=torch.get_num_threads())))
