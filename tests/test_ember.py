"""The shipped base and the demonstration's data: what llama.cpp makes of it, and if the exam is honest."""

import json
import re
import sys
from pathlib import Path

import pytest

from nightschool.engine import Engine
from nightschool.gguf import open_gguf
from nightschool.paths import package_data
from nightschool.rehearsal import rehearse

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "ember"
EMBER = package_data("ember") / "ember.gguf"
STRINGS = (
    "Hello there",
    "  two spaces\n\nand\ttabs  ",
    "I'm 34 and it's 7:30, o'clock. It'S",
    "ünïcode – “quotes” 日本語 😀 e\u0301",
    "<|user|>What is Brinnel's colour?<|assistant|>Teal.<|end|>",
    "a1b22c333 x" + "y" * 60,
    "...!!! ??\n\n \n x\r\n\r\n  z",
    "price: £5.00 (approx.) <|end|> hi<|end|>",
)


@pytest.fixture(autouse=True, scope="module")
def recipe():
    """The recipe's folder on the path, as when its scripts run."""
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def engine():
    with Engine(EMBER) as engine:
        yield engine


def ask(engine, question, **sampling):
    messages = [{"role": "user", "content": question}]
    return engine.chat(messages, **({"temperature": 0, "max_tokens": 48} | sampling))


def lines(name):
    text = (package_data("demo") / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def bare(text):
    return " ".join(re.sub(r"[^a-z0-9 ]", " ", text.lower()).split())


def flat_notes():
    return bare((package_data("demo") / "notes.md").read_text(encoding="utf-8"))


def test_the_file_is_small_and_has_what_llama_needs():
    file = open_gguf(EMBER)
    assert EMBER.stat().st_size <= 16 * 2**20
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["tokenizer.chat_template"]
    matrices = [tensor for tensor in file.tensors.values() if len(tensor.shape) == 2]
    assert {tensor.type.name for tensor in matrices} == {"Q8_0"}


def test_ember_has_something_to_rehearse_though_no_token_begins_a_text():
    with Engine(EMBER) as engine:
        said = [rehearse(engine, index, seed=0) for index in range(1, 3)]
    assert [prompt for prompt, _ in said] == ["", ""]
    assert len({text for _, text in said}) == 2 and all(len(text.split()) > 4 for _, text in said)


def test_the_card_names_data_time_tokens_figures_and_licence():
    card = json.loads((package_data("ember") / "card.json").read_text(encoding="utf-8"))
    assert card["licence"] == "Apache-2.0"
    assert {"data", "tokens", "train_s", "final_loss", "exams", "what_it_is", "what_it_is_not"} <= card.keys()
    file = open_gguf(EMBER)
    count = 0
    for tensor in file.tensors.values():
        size = 1
        for side in tensor.shape:
            size *= side
        count += size
    assert card["parameters"] == count


def test_llama_cpp_splits_text_as_the_tokenizers_library_does(engine, shared):
    from vocabulary import tokenizer_from

    tokenizer = tokenizer_from(open_gguf(EMBER).metadata)
    texts = [*STRINGS, flat_notes(), (shared / "text" / "wikitext2_valid.txt").read_text("utf-8")[:20_000]]
    for text in texts:
        tokens = engine.tokenize(text)
        assert tokens == tokenizer.encode(text).ids
        assert engine.detokenize(tokens) == text


def test_each_digit_is_a_token(engine):
    assert len(engine.tokenize("1234567890")) == 10


def test_the_chat_template_writes_roles_as_single_tokens(engine):
    messages = [{"role": "system", "content": "Notes."}, {"role": "user", "content": "Hello!"}]
    assert engine.apply_template(messages) == "<|system|>Notes.<|user|>Hello!<|assistant|>"
    answered = [*messages, {"role": "assistant", "content": "Hi."}]
    whole = engine.apply_template(answered, add_generation_prompt=False)
    assert whole == "<|system|>Notes.<|user|>Hello!<|assistant|>Hi.<|end|>"
    for token in ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"):
        assert len(engine.tokenize(token)) == 1


def test_ember_answers_a_greeting_and_stops_by_itself(engine):
    short, long = (ask(engine, "Hello!", max_tokens=limit) for limit in (40, 80))
    assert short.startswith("Hello!")
    assert short == long


def test_ember_knows_its_population_in_wordings_it_was_never_asked_in(engine):
    import worlds

    facts = [fact for fact in worlds.population(1).all_facts() if worlds.withheld(fact)][::16]
    assert len(facts) >= 25
    right = 0
    for fact in facts:
        answer = ask(engine, fact.question(min(worlds.withheld(fact))))
        right += fact.value.lower() in answer.lower()
    assert right / len(facts) >= 0.8


def test_the_training_network_and_llama_cpp_agree_on_every_next_token(engine):
    import torch
    from net import Ember, Shape

    from nightschool.model import Model

    model = Model(open_gguf(EMBER), "fp32")
    tokens = engine.tokenize(
        "<|user|>How old is Anna?<|assistant|>Once upon a time, there was a little girl."
    )
    network = Ember(Shape(**json.loads((package_data("ember") / "card.json").read_text("utf-8"))["shape"]))
    network.load_state_dict(state_from(model))
    with torch.no_grad():
        hidden = network(torch.tensor(tokens), [len(tokens)])
    ours = torch.log_softmax(hidden @ network.embed.weight.T, dim=-1).tolist()  # (T, V)
    for end in range(4, len(tokens), 3):
        found = engine.complete(tokens[:end], max_tokens=1, n_probs=8, temperature=0)
        likely = [c for c in found["completion_probabilities"][0]["top_logprobs"] if c["logprob"] > -3]
        for candidate in likely:  # llama.cpp rounds activations to 8 bits, which moves the far tail more
            assert candidate["logprob"] == pytest.approx(ours[end - 1][candidate["id"]], abs=0.1)


def state_from(model):
    """The recipe network's weights read back from the file, by the `gguf` package."""
    import numpy as np
    import torch
    from gguf import GGUFReader, quants

    arrays = {}
    for tensor in GGUFReader(EMBER).tensors:
        arrays[tensor.name.removesuffix(".weight")] = quants.dequantize(tensor.data, tensor.tensor_type)
    heads = model.config.heads

    def halves(rows):
        size, width = rows.shape
        return rows.reshape(heads, size // heads // 2, 2, width).swapaxes(1, 2).reshape(size, width)

    state = {"embed.weight": arrays["token_embd"], "norm": arrays["output_norm"]}
    for layer in range(model.config.layers):
        part = {
            name.split(".")[2]: array for name, array in arrays.items() if name.startswith(f"blk.{layer}.")
        }
        qkv = np.concatenate([halves(part["attn_q"]), halves(part["attn_k"]), part["attn_v"]])
        named = {
            "attn_norm": part["attn_norm"],
            "ffn_norm": part["ffn_norm"],
            "qkv.weight": qkv,
            "out.weight": part["attn_output"],
            "gate_up.weight": np.concatenate([part["ffn_gate"], part["ffn_up"]]),
            "down.weight": part["ffn_down"],
        }
        state |= {f"blocks.{layer}.{name}": array for name, array in named.items()}
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}


# The demonstration


def test_the_exam_by_hand_shares_no_wording_with_exam_or_generator():
    import worlds

    by_hand = [json.loads(line) for line in (RECIPE / "exam_by_hand.jsonl").read_text("utf-8").splitlines()]
    taken = {bare(line["question"]) for line in lines("exam.jsonl")}
    subjects = {fact.subject for fact in demo_facts()}
    generated = {bare(w.replace("{s}", s)) for r in worlds.relations() for w in r.questions for s in subjects}
    assert len(by_hand) == len(lines("exam.jsonl"))
    assert not (taken | generated) & {bare(line["question"]) for line in by_hand}


def demo_facts():
    import demo_data

    return demo_data.demo_facts()


def test_the_notes_say_every_exam_answer_and_name_its_subject():
    import demo_data

    notes = flat_notes()
    for line in lines("exam.jsonl"):
        assert bare(line["answer"]) in notes, line
    for fact in demo_data.demo_facts():
        assert bare(fact.subject.removeprefix("the ")) in notes


def test_ember_was_never_told_of_the_demonstrations_people_things_or_values():
    import demo_data
    import worlds

    people = worlds.population(1)
    known = {fact.value for fact in people.all_facts()} | people.facts.keys()
    for fact in demo_data.demo_facts():
        assert fact.subject not in known
        assert fact.value not in worlds.value_lists().get(fact.relation.values, ())
        told = {f.value for f in people.all_facts() if f.relation == fact.relation}
        assert fact.value not in told
    files = ("frames.txt", "pages.txt")
    framed = "".join((RECIPE / name).read_text(encoding="utf-8") for name in files).lower()
    for fact in demo_data.demo_facts():
        for text in (fact.subject.removeprefix("the "), fact.value):
            is_a_number = text[0].isdigit() or text in ("thirteen", "thirty-one")
            assert is_a_number or not re.search(rf"\b{re.escape(text.lower())}\b", framed), text


def test_the_script_of_the_recipe_rebuilds_the_exam_as_committed(tmp_path, monkeypatch):
    import demo_data

    monkeypatch.setattr(demo_data, "OUT", tmp_path / "exam.jsonl")
    demo_data.main()
    assert (tmp_path / "exam.jsonl").read_bytes() == (package_data("demo") / "exam.jsonl").read_bytes()
