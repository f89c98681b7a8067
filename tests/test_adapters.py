"""Adapters against programs that are not ours: llama.cpp, PEFT with transformers, and the gguf package."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from nightschool import adapters
from nightschool.adapters import (
    Stack,
    as_stack,
    check_fits,
    combine,
    find_adapter,
    list_adapters,
    load_weights,
    parse_stack,
    remove_adapter,
    rename_adapter,
    save_adapter,
    stack_paths,
    write_lora,
)
from nightschool.cli import main
from nightschool.engine import Engine
from nightschool.errors import AdapterMismatch, FileFormatError, NotFound, UnsupportedModel
from nightschool.events import Notice
from nightschool.export import export
from nightschool.gguf import TensorType, open_gguf
from nightschool.hub import register
from nightschool.merge import merge

# transformers' GGUF reader takes these from its own defaults, so the tiny models have them.
SHAPES = {"llama": {}, "qwen2": {}, "qwen3": {"head_dim": 128}, "gemma3": {"head_dim": 256}, "phi3": {}}
PROMPT = "the list of another tester and the"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Tiny bases by architecture, type and seed."""
    folder = tmp_path_factory.mktemp("bases")

    def base(arch="llama", type="F32", seed=0):
        path = folder / f"{arch}-{type}-{seed}.gguf"
        if not path.exists():
            tiny.write_tiny(path, arch, type, seed=seed, **SHAPES.get(arch, {}))
        return path

    return base


def pairs(base, *, rank=4, seed=0, only=""):
    """Random A and B for every matrix in the blocks of a base, strong enough to change what it says."""
    rng = np.random.default_rng(seed)
    shapes = {t.name: t.shape for t in open_gguf(base).tensors.values() if len(t.shape) == 2}
    return {
        name: (
            (rng.standard_normal((rank, columns)) / np.sqrt(columns)).astype(np.float32),
            (rng.standard_normal((rows, rank)) * 0.4).astype(np.float32),
        )
        for name, (rows, columns) in shapes.items()
        if name.startswith("blk.") and only in name
    }


def saved(base, name="work", *, alpha=8.0, card=None, **options):
    half = options.pop("half", False)
    rank = options.get("rank", 4)
    weights = pairs(base, **options)
    return save_adapter(
        name, weights, alpha=alpha, rank=rank, base=open_gguf(base), card=card or {}, half=half
    )


def predictions(base, stack=None, paths=None, prompts=(PROMPT,)):
    """llama.cpp's log-probabilities of every next token: (prompts, vocabulary)."""
    rows = []
    with Engine(base, adapters=paths or {}, ctx=128, threads=1) as engine:
        for prompt in prompts:
            tokens = engine.tokenize(prompt, add_special=True)
            body = engine.complete(tokens, stack=stack or {}, max_tokens=1, n_probs=100_000, temperature=0.0)
            found = body["completion_probabilities"][0]["top_logprobs"]
            rows.append([entry["logprob"] for entry in sorted(found, key=lambda entry: entry["id"])])
    return np.array(rows)


def far(ours, reference):
    """The largest difference among tokens that are not next to impossible."""
    likely = reference > -12
    return float(np.abs(ours - reference)[likely].max())


# The same adapter everywhere


@pytest.mark.parametrize("arch", SHAPES)
@pytest.mark.filterwarnings("ignore")  # theirs, about their own future
def test_peft_in_transformers_says_what_llama_cpp_says_with_the_gguf_adapter(bases, arch):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = bases(arch)
    adapter = saved(base)
    with Engine(base, ctx=128, threads=1) as engine:
        tokens = engine.tokenize(PROMPT, add_special=True)
    model = AutoModelForCausalLM.from_pretrained(
        str(base.parent), gguf_file=base.name, dtype=torch.float32, pad_token_id=0
    ).eval()

    def next_token(model):
        with torch.no_grad():
            return torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1], -1).numpy()[None]

    plain = predictions(base)
    assert far(next_token(model), plain) < 0.02  # the two programs agree on the base itself
    taught = predictions(base, {"work": 1.0}, {"work": adapter.gguf})
    with_peft = next_token(PeftModel.from_pretrained(model, str(adapter.folder)))
    assert far(with_peft, taught) < 0.03
    assert far(plain, taught) > 0.5


@pytest.mark.filterwarnings("ignore")
def test_peft_loads_an_adapter_of_some_layers_without_a_missing_or_unknown_weight(bases, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = bases("llama")
    adapter = saved(base, only="blk.1.attn")
    model = AutoModelForCausalLM.from_pretrained(str(base.parent), gguf_file=base.name, dtype=torch.float32)
    peft = PeftModel.from_pretrained(model, str(adapter.folder))
    names = {name for name, _ in peft.named_parameters() if "lora_" in name}
    assert len(names) == 2 * 4 and all(".layers.1.self_attn." in name for name in names)


def test_the_gguf_package_reads_what_was_saved(bases):
    adapter = saved(bases())
    reader = gguf.GGUFReader(adapter.gguf)
    fields = {
        key: reader.fields[key].contents() for key in ("general.type", "adapter.type", "adapter.lora.alpha")
    }
    assert fields == {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}
    assert reader.fields["general.architecture"].contents() == "llama"
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    for name, (a, b) in pairs(bases()).items():
        np.testing.assert_array_equal(tensors.pop(name + ".lora_a"), a)
        np.testing.assert_array_equal(tensors.pop(name + ".lora_b"), b)
    assert not tensors


@pytest.mark.parametrize("half", [False, True])
def test_weights_come_back_as_they_were_saved(bases, half):
    lora = load_weights(saved(bases(), half=half, alpha=6.0).folder)
    assert (lora.alpha, lora.rank, lora.architecture) == (6.0, 4, "llama")
    for name, (a, b) in pairs(bases()).items():
        np.testing.assert_allclose(lora.weights[name][0], a, atol=2e-3 if half else 0)
        np.testing.assert_allclose(lora.weights[name][1], b, atol=2e-3 if half else 0)


def test_an_adapter_made_by_another_program_is_read_too(bases, tmp_path):
    path = tiny.write_tiny_adapter(tmp_path / "theirs.gguf", bases(), rank=3, alpha=9.0)
    lora = load_weights(path)
    assert (lora.alpha, lora.rank, lora.base_hash) == (9.0, 3, None)
    check_fits(path, open_gguf(bases()))
    with pytest.raises(
        AdapterMismatch, match=r"is 128 × 64 at 'blk.0.attn_q.weight'.* has 64 × 64|for 'llama'"
    ):
        check_fits(path, open_gguf(bases("qwen3")))


def test_the_same_weights_give_the_same_bytes(bases):
    first, second = saved(bases(), "one"), saved(bases(), "two")
    write_lora(second.gguf, load_weights(second.gguf), name="one")
    for name in ("adapter.gguf", "adapter_model.safetensors", "adapter_config.json"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


# Bound to its base


def test_an_adapter_is_refused_on_a_base_of_the_same_shape_that_it_was_not_trained_on(bases):
    adapter = saved(bases(), card={"base": {"name": "ember"}})
    check_fits(adapter.folder, open_gguf(bases()))
    with pytest.raises(
        AdapterMismatch, match="'work' was trained on ember, not on the file 'llama-F32-1.gguf'"
    ):
        check_fits(adapter.gguf, open_gguf(bases(seed=1)))
    with pytest.raises(
        AdapterMismatch, match="'work' is for 'llama' models, and 'qwen2-F32-0.gguf' is 'qwen2'"
    ):
        check_fits(adapter.gguf, open_gguf(bases("qwen2")))


def test_weights_that_are_not_the_bases_shape_are_not_saved(bases):
    weights = pairs(bases())
    a, b = weights["blk.0.ffn_up.weight"]
    for wrong in ({"blk.0.ffn_up.weight": (a[:, :-1], b)}, {"blk.9.ffn_up.weight": (a, b)}):
        with pytest.raises(AdapterMismatch, match="changes 'blk.9|is 128 × 63 at"):
            save_adapter("bad", weights | wrong, alpha=8, rank=4, base=open_gguf(bases()), card={})
    assert list_adapters() == []


def test_the_card_says_what_it_was_trained_on_and_keeps_what_it_is_given(bases):
    adapter = saved(bases(), card={"exam": {"recall": 0.9}, "base": {"name": "ember", "hash": "wrong"}})
    card = find_adapter("work").card
    assert card == adapter.card
    assert card["exam"] == {"recall": 0.9}
    assert card["base"]["name"] == "ember" and card["base"]["hash"] == load_weights(adapter.gguf).base_hash
    assert (card["rank"], card["alpha"]) == (4, 8.0)
    assert card["parameters"] == sum(a.size + b.size for a, b in pairs(bases()).values())


def test_the_card_holds_no_path_and_an_adapter_alone_still_finds_its_base(bases, tmp_path):
    adapter = saved(bases())
    assert str(bases().parent) not in json.dumps(adapter.card)
    assert as_stack("work") == Stack(str(bases().resolve()), (("work", 1.0),))
    register(bases(), adapter.card["base"]["name"])
    assert as_stack("work").base == adapter.card["base"]["name"]


# The shelf


def test_saving_that_fails_leaves_what_was_there(bases, home):
    before = saved(bases(), seed=1).gguf.read_bytes()
    weights = {"output_norm.weight": (np.zeros((4, 1), np.float32), np.zeros((64, 4), np.float32))}
    with pytest.raises((AdapterMismatch, UnsupportedModel)):
        save_adapter("work", weights, alpha=8, rank=4, base=open_gguf(bases()), card={})
    with pytest.raises(TypeError):
        saved(bases(), card={"not JSON": object()})
    assert find_adapter("work").gguf.read_bytes() == before
    assert [path.name for path in (home / "adapters").iterdir()] == ["work"]


def test_saving_again_replaces_the_old_one_but_never_a_folder_with_other_things(bases, tmp_path):
    first, second = saved(bases(), seed=1), saved(bases(), seed=2)
    assert first.folder == second.folder
    np.testing.assert_array_equal(
        load_weights(second.gguf).weights["blk.0.attn_q.weight"][0],
        pairs(bases(), seed=2)["blk.0.attn_q.weight"][0],
    )
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    with pytest.raises(FileFormatError, match="also holds diary.txt: it is left as it is"):
        saved(bases(), tmp_path / "notes")
    assert (tmp_path / "notes" / "diary.txt").exists()


@pytest.mark.parametrize("moment", [0, 2, 3])  # writing; the old one set aside; the new one in its place
def test_a_kill_at_any_moment_leaves_the_old_adapter_or_the_new_one(bases, home, moment):
    old = saved(bases(), seed=1).gguf.read_bytes()
    new = saved(bases(), "new", seed=2)
    write_lora(home / "expected.gguf", load_weights(new.gguf), name="work")
    remove_adapter("new")
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        import test_adapters, nightschool.adapters as adapters
        moments = 0
        def killing(real):
            def step(*args, **kwargs):
                global moments
                if moments == {moment}:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = real(*args, **kwargs)
                if real is not adapters_sync or args[0].is_dir():
                    moments += 1
                return result
            return step
        adapters_sync = adapters.sync
        adapters.sync = killing(adapters.sync)
        Path.rename = killing(Path.rename)
        test_adapters.saved(Path({str(bases())!r}), seed=2)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert [adapter.name for adapter in list_adapters()] == ["work"]
    bytes_now = find_adapter("work").gguf.read_bytes()
    assert bytes_now == (old if moment < 3 else (home / "expected.gguf").read_bytes())
    saved(bases(), seed=3)
    assert [path.name for path in (home / "adapters").iterdir()] == ["work"]


def test_adapters_are_listed_renamed_and_removed(bases, home):
    saved(bases(), "b")
    saved(bases(), "a")
    (home / "adapters" / "notes").mkdir()
    assert [adapter.name for adapter in list_adapters()] == ["a", "b"]
    assert rename_adapter("b", "c").gguf == adapters.adapter_path("c")
    for bad, reason in [
        ("a", "an adapter 'a' already"),
        ("x+y", "cannot be the name"),
        ("../x", "cannot be the name"),
    ]:
        with pytest.raises(FileFormatError, match=reason):
            rename_adapter("c", bad)
    remove_adapter("c")
    with pytest.raises(NotFound, match="There is no adapter 'c'. Here is a."):
        find_adapter("c")
    assert sorted(path.name for path in (home / "adapters").iterdir()) == ["a", "notes"]


@pytest.mark.parametrize("name", ["notes", "..", "", "a/b", "work/../work"])
def test_only_adapters_are_removed(bases, home, name):
    saved(bases())
    (home / "adapters" / "notes").mkdir()
    with pytest.raises(NotFound):
        remove_adapter(name)
    (find_adapter("work").folder / "mine.txt").touch()
    with pytest.raises(FileFormatError, match="also holds mine.txt"):
        remove_adapter("work")


def test_one_damaged_card_does_not_hide_the_other_adapters(bases):
    (saved(bases(), "a").folder / "card.json").write_text("{")
    saved(bases(), "b")
    assert [adapter.name for adapter in list_adapters()] == ["a", "b"]
    with pytest.raises(FileFormatError, match="damaged"):
        find_adapter("a")


# Stacks


@pytest.mark.parametrize(
    ("text", "stack"),
    [
        ("ember", Stack("ember")),
        ("ember+work", Stack("ember", (("work", 1.0),))),
        ("ember+work@0.5+style", Stack("ember", (("work", 0.5), ("style", 1.0)))),
        ("/x/a.gguf+work@-1", Stack("/x/a.gguf", (("work", -1.0),))),
        ("ember+v1.2_b-c@1e-1", Stack("ember", (("v1.2_b-c", 0.1),))),
    ],
)
def test_stacks_are_read(text, stack):
    assert parse_stack(text) == stack
    assert parse_stack(str(stack)) == stack


def test_a_plus_in_the_path_of_a_base_is_part_of_it(tmp_path):
    (tmp_path / "a+b.gguf").touch()
    text = f"{tmp_path}/a+b.gguf"
    assert parse_stack(text) == Stack(text)
    assert parse_stack(text + "+work@2") == Stack(text, (("work", 2.0),))


@pytest.mark.parametrize(
    "text", ["", "+work", "ember+", "ember+work@", "ember+work@x", "ember+work@nan", "ember+a b"]
)
def test_what_is_no_stack_is_refused_with_the_form_of_one(text):
    with pytest.raises(NotFound, match="ember\\+work@0.5"):
        parse_stack(text)


def test_an_adapter_named_twice_is_refused():
    with pytest.raises(NotFound, match="'work' twice"):
        parse_stack("ember+work+work@2")


@given(
    st.lists(
        st.tuples(st.from_regex(adapters.NAME, fullmatch=True), st.floats(-9, 9)), unique_by=lambda p: p[0]
    )
)
def test_any_stack_is_read_back_as_written(parts):
    stack = Stack("ember", tuple((name, float(f"{scale:g}")) for name, scale in parts))
    assert parse_stack(str(stack)) == stack


def test_a_stack_names_its_files_or_says_what_is_missing(bases):
    adapter = saved(bases())
    assert stack_paths(parse_stack("ember+work@0.5")) == {"work": adapter.gguf}
    assert parse_stack("ember+work@0.5").scales == {"work": 0.5}
    with pytest.raises(NotFound, match="no adapter 'wrok'. Here is work."):
        stack_paths(parse_stack("ember+wrok"))


def test_adapters_made_into_one_say_what_the_stack_says(bases, tmp_path):
    base = bases()
    one, two = saved(base, "one", rank=4, seed=1, alpha=4.0), saved(base, "two", rank=6, seed=2, only="attn")
    both = predictions(base, {"one": 0.7, "two": -0.5}, {"one": one.gguf, "two": two.gguf})
    lora = combine([(load_weights(one.gguf), 0.7), (load_weights(two.gguf), -0.5)])
    assert (lora.rank, lora.alpha) == (10, 10.0)
    write_lora(tmp_path / "both.gguf", lora, name="both")
    assert far(predictions(base, {"both": 1.0}, {"both": tmp_path / "both.gguf"}), both) < 0.01
    assert far(predictions(base), both) > 0.5


def test_adapters_of_different_bases_are_not_made_into_one(bases):
    one, two = saved(bases(), "one"), saved(bases(seed=1), "two")
    with pytest.raises(AdapterMismatch, match="different bases"):
        combine([(load_weights(one.gguf), 1), (load_weights(two.gguf), 1)])


# Merging


@pytest.mark.parametrize("arch", ["llama", "gemma3", "phi3"])
def test_a_merged_model_says_what_base_and_adapters_say(bases, tmp_path, arch):
    base = bases(arch)
    one, two = saved(base, "one", seed=1), saved(base, "two", seed=2, only="ffn")
    both = predictions(base, {"one": 1.0, "two": 0.5}, {"one": one.gguf, "two": two.gguf})
    merged = tmp_path / "merged.gguf"
    list(merge(open_gguf(base), [(load_weights(one.gguf), 1.0), (load_weights(two.gguf), 0.5)], merged))
    assert far(predictions(merged), both) < 0.01
    assert far(predictions(base), both) > 0.5


@pytest.mark.parametrize(
    ("type", "wanted"), [("Q8_0", None), ("Q4_0", None), ("F16", None), ("Q4_0", "Q8_0")]
)
def test_changed_matrices_are_packed_as_the_gguf_package_would_and_all_others_are_copied(
    bases, tmp_path, type, wanted
):
    base, merged = bases(type=type), tmp_path / "merged.gguf"
    adapter = load_weights(saved(base, only="attn").gguf)
    list(merge(open_gguf(base), [(adapter, 0.5)], merged, type=TensorType[wanted] if wanted else None))
    before = {tensor.name: tensor for tensor in gguf.GGUFReader(base).tensors}
    after = {tensor.name: tensor for tensor in gguf.GGUFReader(merged).tensors}
    assert list(before) == list(after)
    for name, tensor in after.items():
        if name not in adapter.weights:
            assert (
                tensor.data.tobytes() == before[name].data.tobytes()
                and tensor.tensor_type == before[name].tensor_type
            )
            continue
        assert tensor.tensor_type.name == (wanted or type)
        a, b = adapter.weights[name]
        exact = gguf.quants.dequantize(before[name].data, before[name].tensor_type) + 0.5 * 2 * (b @ a)
        expected = gguf.quants.quantize(exact, tensor.tensor_type)
        ours, theirs = (gguf.quants.dequantize(raw, tensor.tensor_type) for raw in (tensor.data, expected))
        assert np.abs(ours - exact).max() <= np.abs(theirs - exact).max() * 1.01 + 1e-6


def test_a_type_that_cannot_be_written_becomes_q8_0_and_it_is_said(bases, tmp_path):
    base = bases(type="Q6_K")
    adapter = load_weights(saved(base, only="attn_q").gguf)
    events = list(merge(open_gguf(base), [(adapter, 1.0)], tmp_path / "merged.gguf"))
    assert Notice("2 of the 2 changed matrices become Q8_0 (Q6_K before).") in events
    types = {tensor.name: tensor.type.name for tensor in open_gguf(tmp_path / "merged.gguf").tensors.values()}
    assert types["blk.0.attn_q.weight"] == "Q8_0" and types["blk.0.attn_k.weight"] == "Q6_K"


def test_a_base_is_never_written_over_by_its_merged_self(bases):
    before = bases().read_bytes()
    with pytest.raises(FileFormatError, match="cannot take the place of its own base"):
        list(merge(open_gguf(bases()), [(load_weights(saved(bases()).gguf), 1.0)], bases()))
    with pytest.raises(FileFormatError, match="Q6_K cannot be written"):
        list(
            merge(
                open_gguf(bases()),
                [(load_weights(saved(bases()).gguf), 1.0)],
                Path("x"),
                type=TensorType.Q6_K,
            )
        )
    assert bases().read_bytes() == before


# Export and the command line


@pytest.fixture
def shelf(bases):
    """A registered base and two adapters on the shelf."""
    register(bases(), "house")
    saved(bases(), "work", card={"base": {"name": "house"}})
    saved(bases(), "style", seed=5, card={"base": {"name": "house"}})
    return bases()


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_export_to_gguf_of_one_adapter_is_its_file(shelf, tmp_path):
    assert run("export", "work", "--to", "gguf", "-o", tmp_path / "w.gguf").exit_code == 0
    assert (tmp_path / "w.gguf").read_bytes() == find_adapter("work").gguf.read_bytes()


@pytest.mark.parametrize("kind", ["gguf", "merged", "ollama"])
def test_export_of_a_stack_says_what_the_stack_says(shelf, tmp_path, kind):
    out = tmp_path / "both"
    result = run("export", "house+work@0.5+style", "--to", kind, "-o", out)
    assert (result.exit_code, result.stdout) == (0, f"{out}\n")
    stack = parse_stack("house+work@0.5+style")
    expected = predictions(shelf, stack.scales, stack_paths(stack))
    if kind == "gguf":
        assert far(predictions(shelf, {"x": 1.0}, {"x": out}), expected) < 0.01
    else:
        assert far(predictions(out if kind == "merged" else out / "model.gguf"), expected) < 0.01


@pytest.mark.filterwarnings("ignore")
def test_export_to_peft_of_a_stack_says_what_the_stack_says(shelf, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert run("export", "house+work@0.5+style", "--to", "peft", "-o", tmp_path / "both").exit_code == 0
    stack = parse_stack("house+work@0.5+style")
    expected = predictions(shelf, stack.scales, stack_paths(stack))
    model = AutoModelForCausalLM.from_pretrained(str(shelf.parent), gguf_file=shelf.name, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(tmp_path / "both")).eval()
    with Engine(shelf, ctx=128, threads=1) as engine, torch.no_grad():
        logits = model(torch.tensor([engine.tokenize(PROMPT, add_special=True)])).logits[0, -1]
    assert far(torch.log_softmax(logits, -1).numpy()[None], expected) < 0.03


def test_export_to_ollama_writes_a_modelfile_beside_the_model(shelf, tmp_path):
    result = run("export", "work", "--to", "ollama", "-o", tmp_path / "w", "--type", "Q8_0")
    assert result.exit_code == 0
    lines = (tmp_path / "w" / "Modelfile").read_text().split("\n")
    assert lines[0].startswith("# house+work, made by nightschool ")
    assert lines[1:] == ["FROM ./model.gguf", "PARAMETER num_ctx 512", ""]
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["Modelfile", "model.gguf"]
    assert open_gguf(tmp_path / "w" / "model.gguf").tensors["blk.0.attn_q.weight"].type is TensorType.Q8_0


def test_export_refuses_what_exists_what_is_not_there_and_what_does_not_fit(shelf, bases, tmp_path):
    (tmp_path / "there").touch()
    register(bases(seed=1), "other")
    for text, out, reason in [
        ("work", "there", "exists already"),
        ("house", "new", "names no adapter"),
        ("house+none", "new", "no adapter 'none'. Here are style, work."),
        ("nothere+work", "new", "no base 'nothere'"),
        ("other+work", "new", "'work' was trained on house, not on the file 'llama-F32-1.gguf'"),
    ]:
        result = run("export", text, "--to", "ollama", "-o", tmp_path / out)
        assert result.exit_code == 1 and reason in result.stderr
        assert not (tmp_path / "new").exists()


def test_an_export_that_is_stopped_leaves_nothing(shelf, tmp_path):
    for kind in ("merged", "ollama"):
        events = export("house+work", kind, tmp_path / "out" / "x")
        next(events)
        events.close()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_base_that_lost_its_name_is_found_where_it_was(bases, tmp_path):
    saved(bases())
    assert run("export", "work", "--to", "merged", "-o", tmp_path / "w.gguf").exit_code == 0


def test_the_command_lists_shows_renames_and_removes(shelf):
    table = run("adapters").stdout.split("\n")
    assert table[0].split() == ["NAME", "BASE", "RANK", "SIZE", "MADE"]
    assert [line.split()[:3] for line in table[1:3]] == [["style", "house", "4"], ["work", "house", "4"]]
    listed = json.loads(run("adapters", "--json").stdout)
    assert [entry["name"] for entry in listed] == ["style", "work"]
    assert listed == json.loads(run("adapters", "list", "--json").stdout)
    assert "base.name                house" in run("adapters", "show", "work").stdout
    assert json.loads(run("adapters", "show", "work", "--json").stdout)["card"]["rank"] == 4
    assert run("adapters", "rename", "work", "job").stdout == "work is now job.\n"
    refused = CliRunner().invoke(main, ["adapters", "remove", "job"], input="n\n")
    assert refused.exit_code == 1 and find_adapter("job")
    assert CliRunner().invoke(main, ["adapters", "remove", "job"], input="y\n").exit_code == 0
    assert run("adapters", "remove", "style", "--yes").stdout == "style is gone.\n"
    assert run("adapters").stdout.startswith("There are no adapters yet.")
    missing = run("adapters", "show", "job")
    assert missing.exit_code == 1 and missing.stderr.startswith("Error: There is no adapter 'job'.")
