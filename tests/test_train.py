"""The trainer: its gradients, its whole curve against PEFT + transformers, and going on after a stop."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import write_tiny

from nightschool import train as loop
from nightschool.errors import FileFormatError, NightschoolError
from nightschool.events import Notice, TrainStep, Validation
from nightschool.gguf import open_gguf
from nightschool.lessons import Expected, Lesson, collate, pack
from nightschool.lora import Lora, choose
from nightschool.model import Model
from nightschool.settings import TrainSettings

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3", "phi3")
ALL = TrainSettings().targets


def random_lessons(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [Lesson(rng.integers(3, 250, n).astype(np.int32), rng.random(n) > 0.4) for n in lengths]


def setup(path, lessons, *, precision="fp32", noise=0.0, **settings):
    """A model, an adapter and resolved settings for tiny runs."""
    model = Model(open_gguf(path), precision)
    resolved = loop.resolve(TrainSettings(**({"rank": 3, "threads": 1} | settings)), model.config, lessons)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    shapes = choose(model.trainable(), resolved.targets)
    lora = Lora(shapes, rank=resolved.rank, alpha=resolved.alpha, seed=resolved.seed, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        lora.flat.add_(torch.randn(lora.flat.shape, generator=generator, dtype=dtype) * noise)
    return model, lora, resolved


def steps_of(events):
    return [event for event in events if isinstance(event, TrainStep)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradients_agree_with_finite_differences(tmp_path, arch, recompute):
    lessons = random_lessons((7, 12, 31))
    path = write_tiny(tmp_path / "t.gguf", arch)
    model, lora, settings = setup(path, lessons, precision="fp64", noise=0.1, recompute=recompute)
    pieces = list(pack(lessons, batch_tokens=64, seed=0, epoch=0))

    def loss_after(tensor, move):
        with torch.no_grad():
            tensor.add_(move)
        loss = loop.accumulate(model, lora, pieces, settings, 0).loss
        with torch.no_grad():
            tensor.sub_(move)
        return loss

    for name in list(lora.pairs)[:7]:
        for tensor in lora.pairs[name][0][:2]:
            direction = torch.randn(tensor.shape, dtype=tensor.dtype)
            loop.accumulate(model, lora, pieces, settings, 0)
            expected = float((tensor.grad * direction).sum())
            slope = (loss_after(tensor, direction * 1e-5) - loss_after(tensor, direction * -1e-5)) / 2e-5
            assert slope == pytest.approx(expected, rel=1e-4, abs=1e-7)


def peft_curve(path, lessons, settings, start, steps):
    """The losses of PEFT + transformers from the same adapter, on the same lessons in the same order."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    names = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
    names |= {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(names.values()))
    model = get_peft_model(base, config)
    modules = dict(model.named_modules())
    for name, (a, _) in start.items():  # every B is zero
        _, layer, kind, _ = name.split(".")
        part = "self_attn" if kind.startswith("attn") else "mlp"
        module = modules[f"base_model.model.model.layers.{layer}.{part}.{names[kind]}"]
        module.lora_A["default"].weight.data.copy_(torch.from_numpy(a))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=1.0, weight_decay=settings.weight_decay)
    losses = []
    for step, pieces in loop.Steps(lessons, settings)(0):
        total = torch.zeros(())
        targets = 0
        for piece in pieces:
            for document in range(int(piece.document.max()) + 1):
                inside = piece.document == document
                ids = torch.from_numpy(piece.tokens[inside]).long()[None]
                wanted = torch.from_numpy(piece.targets[inside])[1:]
                logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
                picked = logs.gather(1, ids[0, 1:, None])[:, 0]
                total = total - picked[wanted].sum()
                targets += int(wanted.sum())
        loss = total / targets
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, settings.clip)
        for group in optimiser.param_groups:
            group["lr"] = loop.learning_rate(step, steps, settings)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_fifty_steps_follow_peft_within_a_thousandth(tmp_path, arch):
    lessons = random_lessons([20, 9, 33, 17, 28, 12, 25, 40] * 2)
    heads = {"head_dim": 128} if arch == "qwen3" else {}  # transformers does not read it from a GGUF
    path = write_tiny(tmp_path / "t.gguf", arch, **heads)
    model, lora, settings = setup(
        path, lessons, lr=1e-2, epochs=25, batch_tokens=128, micro_tokens=64, max_steps=50, weight_decay=0.01
    )
    start = lora.weights()
    mine = [event.loss for event in steps_of(loop.train(model, lora, lessons, settings))]
    assert len(mine) == 50
    assert mine[-1] < mine[0] - 1  # it does learn
    theirs = peft_curve(path, lessons, settings, start, 50)
    np.testing.assert_allclose(mine, theirs, rtol=1e-3)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("precision", ["fp32", "int8", "bf16"])
def test_every_adapter_gets_a_gradient(tmp_path, arch, precision):
    lessons = random_lessons((30, 20))
    model, lora, settings = setup(
        write_tiny(tmp_path / "t.gguf", arch), lessons, precision=precision, noise=0.05
    )
    loop.accumulate(model, lora, list(pack(lessons, batch_tokens=64, seed=0, epoch=0)), settings, 0)
    assert set(lora.pairs) == set(model.trainable())
    for name, pairs in lora.pairs.items():
        assert all(tensor.grad.abs().max() > 1e-6 for tensor in pairs[0][:2]), name


def test_rehearsal_pulls_towards_the_base_with_the_gradient_of_the_divergence(tmp_path):
    lessons = random_lessons((30, 20))
    path = write_tiny(tmp_path / "t.gguf", "llama")
    model, lora, settings = setup(path, lessons, precision="fp64", noise=0.1)
    piece = collate(lessons, [0, 1], rehearsal=True)
    loop.accumulate(model, lora, [piece], settings, 0)
    pairs = {
        name: [(a.detach().requires_grad_(), b.detach().requires_grad_(), scale)]
        for name, ((a, b, scale),) in lora.pairs.items()
    }
    places = loop._predicted(piece).nonzero().flatten()
    logs = model.logits(model.read(piece, pairs)[places]).log_softmax(-1)
    base = model.logits(model.read(piece)[places]).log_softmax(-1).detach()
    torch.nn.functional.kl_div(logs, base, log_target=True, reduction="sum").div(len(places)).backward()
    for name, ((a, b, _),) in pairs.items():
        torch.testing.assert_close(lora.pairs[name][0][0].grad, a.grad)
        torch.testing.assert_close(lora.pairs[name][0][1].grad, b.grad)


def test_rehearsal_keeps_the_base_while_lessons_are_learned(tmp_path):
    lessons, general = random_lessons([20] * 4), random_lessons([40] * 20, seed=5)
    path = write_tiny(tmp_path / "t.gguf", "llama")

    def trained(share):
        model, lora, settings = setup(
            path, lessons, lr=5e-3, epochs=40, batch_tokens=160, micro_tokens=80, rehearsal=share
        )
        list(loop.train(model, lora, lessons, settings, rehearsal=general))
        learned = loop.evaluate(model, lora.pairs, lessons, settings)
        piece = collate(random_lessons([40] * 10, seed=9), list(range(10)), rehearsal=True)
        with torch.no_grad():
            drift = float(loop._drift(model, lora.pairs, piece, settings))
        return learned.loss / learned.targets, drift

    (plain_loss, plain_drift), (loss, drift) = trained(0.0), trained(0.5)
    assert drift < plain_drift / 2
    assert loss < 4.5 and plain_loss < 4.5  # from 6 before


@pytest.mark.parametrize(("precision", "agreement"), [("bf16", 0.999), ("int8", 0.98)])
def test_gradients_in_low_precision_point_the_same_way(tmp_path, precision, agreement):
    lessons = random_lessons((60, 40, 20))
    path = write_tiny(tmp_path / "t.gguf", "llama")
    found = []
    for kind in ("fp32", precision):
        model, lora, settings = setup(path, lessons, precision=kind, noise=0.05)
        loop.accumulate(model, lora, list(pack(lessons, batch_tokens=128, seed=0, epoch=0)), settings, 0)
        found.append(lora.grad.clone())
    assert torch.cosine_similarity(*found, dim=0) > agreement


def test_the_loss_does_not_depend_on_how_a_step_is_cut(tmp_path):
    lessons = random_lessons((30, 20, 10, 33))
    model, lora, settings = setup(write_tiny(tmp_path / "t.gguf", "llama"), lessons, noise=0.1)
    found = []
    for size in (33, 64, 128):
        pieces = list(pack(lessons, batch_tokens=size, seed=0, epoch=0))
        found.append((loop.accumulate(model, lora, pieces, settings, 0).loss, lora.grad.clone()))
    for loss, grad in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(grad, found[0][1], rtol=1e-3, atol=1e-6)


def test_only_the_chosen_layers_get_adapters(tmp_path):
    shapes = Model(open_gguf(write_tiny(tmp_path / "t.gguf", "llama"))).trainable()
    assert {name.split(".")[2] for name in choose(shapes, ("q", "v"))} == {"attn_q", "attn_v"}
    assert {name.split(".")[2] for name in choose(shapes, ("gate",))} == {"ffn_gate"}
    assert choose(shapes, ALL) == shapes
    fused = Model(open_gguf(write_tiny(tmp_path / "p.gguf", "phi3"))).trainable()
    assert {name.split(".")[2] for name in choose(fused, ("v", "gate"))} == {"attn_qkv", "ffn_up"}
    with pytest.raises(ValueError, match="not nose"):
        choose(shapes, ("nose",))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_rises_and_then_follows_its_schedule(schedule):
    settings = TrainSettings(lr=1.0, warmup=0.1, schedule=schedule)
    rates = [loop.learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx({"cosine": 0.5, "linear": 0.5, "constant": 1.0}[schedule])
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)


def test_held_out_lessons_are_measured_after_each_epoch(tmp_path):
    lessons, valid = random_lessons([20] * 8), random_lessons([20] * 3, seed=9)
    model, lora, settings = setup(
        write_tiny(tmp_path / "t.gguf", "llama"), lessons, epochs=3, batch_tokens=80, micro_tokens=80
    )
    events = list(loop.train(model, lora, lessons, settings, valid=valid))
    measured = [event for event in events if isinstance(event, Validation)]
    assert [event.step for event in measured] == [2, 4, 6]
    exact = loop.evaluate(model, lora.pairs, valid, settings)
    assert measured[-1].loss == pytest.approx(exact.loss / exact.targets)


def expecting(lessons, *, top=5, seed=3):
    """The lessons with made-up expectations; those of every second one are void."""
    rng = np.random.default_rng(seed)
    made = []
    for number, lesson in enumerate(lessons):
        lesson.targets[0] = False
        count = int(lesson.targets.sum())
        tokens = np.stack([rng.permutation(250)[:top] for _ in range(count)]).astype(np.int32)
        logs = np.log(rng.dirichlet(np.ones(top + 1), count)[:, :top]).astype(np.float16)
        logs[number % 2 :: 2] = -np.inf
        made.append(replace(lesson, expected=Expected(tokens, logs)))
    return made


def test_a_teachers_expectations_pull_with_the_gradient_of_their_divergence(tmp_path):
    lessons = expecting(random_lessons((30, 20, 25)))
    lessons[2] = replace(lessons[2], expected=None)
    path = write_tiny(tmp_path / "t.gguf", "llama")
    model, lora, settings = setup(path, lessons, precision="fp64", noise=0.1)
    piece = collate(lessons, [0, 1, 2])
    measure = loop.accumulate(model, lora, [piece], settings, 0, distil=0.7)
    pairs = {
        name: [(a.detach().requires_grad_(), b.detach().requires_grad_(), scale)]
        for name, ((a, b, scale),) in lora.pairs.items()
    }
    places, labels = loop._labels(piece, model)
    logs = model.logits(model.read(piece, pairs)[places]).log_softmax(-1)
    top = torch.from_numpy(piece.expected.tokens).long()
    wanted = torch.from_numpy(piece.expected.logs).double().exp()
    said = wanted.sum(-1) > 0
    assert 0 < said.sum() < len(said)
    teacher = torch.cat([wanted, 1 - wanted.sum(-1, keepdim=True)], -1)[said]
    others = 1 - logs.exp().gather(1, top).sum(-1, keepdim=True)
    student = torch.cat([logs.gather(1, top), others.log()], -1)[said]
    apart = torch.nn.functional.kl_div(student, teacher, reduction="sum")
    plain = torch.nn.functional.nll_loss(logs, labels, reduction="sum")
    ((plain + 0.7 * apart) / len(places)).backward()
    assert measure.loss == pytest.approx(float(plain.detach()) / len(places))
    for name, ((a, b, _),) in pairs.items():
        torch.testing.assert_close(lora.pairs[name][0][0].grad, a.grad)
        torch.testing.assert_close(lora.pairs[name][0][1].grad, b.grad)


def overfitting(path, tmp_path=None, **changes):
    """A run whose held-out lessons soon get worse: model, adapter, settings, lessons, held-out lessons."""
    lessons, valid = random_lessons([20] * 8), random_lessons([20] * 3, seed=9)
    arguments = {"epochs": 12, "batch_tokens": 80, "lr": 0.05, "measure_epochs": 0.5, "patience": 3}
    return *setup(path, lessons, **(arguments | changes)), lessons, valid


def test_training_stops_where_held_out_lessons_get_no_better_and_keeps_the_best(tmp_path):
    path = write_tiny(tmp_path / "t.gguf", "llama")
    model, lora, settings, lessons, valid = overfitting(path)
    events = list(loop.train(model, lora, lessons, settings, valid=valid))
    measured = [event for event in events if isinstance(event, Validation)]
    best = min(measured, key=lambda event: event.loss)
    assert measured.index(best) == len(measured) - 1 - 3
    assert measured[1].step - measured[0].step == 1  # twice an epoch of two steps
    assert steps_of(events)[-1].step < steps_of(events)[-1].total
    exact = loop.evaluate(model, lora.pairs, valid, settings)
    assert exact.loss / exact.targets == pytest.approx(best.loss)
    assert f"after step {best.step}" in [event for event in events if isinstance(event, Notice)][-1].text


@pytest.mark.parametrize("stop", range(1, 20, 3))
def test_a_run_stopped_anywhere_keeps_the_same_best_state(tmp_path, stop):
    path, checkpoint = write_tiny(tmp_path / "t.gguf", "llama"), tmp_path / "c.safetensors"
    model, whole, settings, lessons, valid = overfitting(path)
    everything = len(list(loop.train(model, whole, lessons, settings, valid=valid)))
    assert everything > stop
    model, half, settings, *_ = overfitting(path)
    events = loop.train(model, half, lessons, settings, valid=valid, checkpoint=checkpoint)
    for _ in range(stop):
        next(events)
    events.close()
    model, rest, settings, *_ = overfitting(path)
    list(loop.train(model, rest, lessons, settings, valid=valid, checkpoint=checkpoint))
    assert torch.equal(rest.flat, whole.flat)


def test_training_ends_in_time_and_one_with_time_to_spare_is_the_same_as_without_a_limit(tmp_path):
    path = write_tiny(tmp_path / "t.gguf", "llama")
    model, free, settings, lessons, _ = overfitting(path, patience=0)
    list(loop.train(model, free, lessons, settings))
    model, ample, settings, *_ = overfitting(path, patience=0)
    now = time.monotonic()
    list(loop.train(model, ample, lessons, settings, deadline=loop.Deadline(now + 900, now + 1000)))
    assert torch.equal(free.flat, ample.flat)
    model, short, settings, *_ = overfitting(path, patience=0, epochs=1000)
    now = time.monotonic()
    deadline = loop.Deadline(now + 0.5, now + 1.0)
    events = list(loop.train(model, short, lessons, settings, deadline=deadline))
    assert 1.0 <= time.monotonic() - now < 3.0
    assert "the time is up" in events[-1].text
    rates = [event.lr for event in steps_of(events)]
    assert rates[-1] < 0.2 * max(rates)


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    lessons = random_lessons([20] * 8)
    path = write_tiny(tmp_path / "t.gguf", "llama")

    def flat(seed):
        model, lora, settings = setup(path, lessons, precision="int8", seed=seed, dropout=0.1, epochs=3)
        list(loop.train(model, lora, lessons, settings))
        return lora.flat.numpy().tobytes()

    assert flat(1) == flat(1)
    assert flat(1) != flat(2)


def test_a_run_closed_between_two_events_goes_on_from_there(tmp_path):
    lessons = random_lessons([20] * 8)
    path = write_tiny(tmp_path / "t.gguf", "llama")
    arguments = {"dropout": 0.1, "epochs": 6, "batch_tokens": 60, "micro_tokens": 40}
    model, whole, settings = setup(path, lessons, **arguments)
    list(loop.train(model, whole, lessons, settings))
    model, half, settings = setup(path, lessons, **arguments)
    events = loop.train(model, half, lessons, settings, checkpoint=tmp_path / "c.safetensors")
    for _ in range(5):
        next(events)
    events.close()
    model, rest, settings = setup(path, lessons, **arguments)
    last = list(loop.train(model, rest, lessons, settings, checkpoint=tmp_path / "c.safetensors"))
    assert last[0].step == 6
    assert torch.equal(rest.flat, whole.flat)


def test_a_damaged_checkpoint_is_named(tmp_path):
    lessons = random_lessons([20] * 4)
    model, lora, settings = setup(write_tiny(tmp_path / "t.gguf", "llama"), lessons)
    (tmp_path / "c.safetensors").write_bytes(b"nonsense")
    with pytest.raises(FileFormatError, match="c.safetensors cannot be used.*--restart"):
        list(loop.train(model, lora, lessons, settings, checkpoint=tmp_path / "c.safetensors"))


def test_a_diverging_run_stops_with_a_sentence(tmp_path):
    lessons = random_lessons([20] * 4)
    model, lora, settings = setup(write_tiny(tmp_path / "t.gguf", "llama"), lessons)
    with torch.no_grad():
        lora.flat.fill_(float("nan"))
    with pytest.raises(NightschoolError, match="smaller --lr"):
        list(loop.train(model, lora, lessons, settings))


def test_defaults_come_from_model_and_data(tmp_path):
    model = Model(open_gguf(write_tiny(tmp_path / "t.gguf", "llama")))
    small = loop.resolve(TrainSettings(), model.config, random_lessons([20] * 8))
    assert small.epochs == 40
    assert small.alpha == 2 * small.rank
    wide = replace(model.config, width=4096)
    assert loop.resolve(TrainSettings(), wide, random_lessons([20] * 8)).lr == pytest.approx(
        2.87e-4, rel=0.01
    )
    given = loop.resolve(TrainSettings(lr=0.5, epochs=2, rank=4), model.config, random_lessons([20] * 8))
    assert (given.lr, given.epochs, given.rank, given.alpha) == (0.5, 2, 4, 8)
