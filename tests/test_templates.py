"""The fast way of rendering against the engine's own, on templates with tricks."""

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from nightschool.datasets import Message
from nightschool.engine import Engine
from nightschool.templates import Renderer, telling

PLAIN = tiny.TEMPLATE
TRIMS = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
THINKS = (
    "{% for m in messages %}{% set text = m.content %}{% if '</think>' in text %}"
    "{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "<|{{ m.role }}|>{{ text }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think></think>{% endif %}"
)
QUOTES = "{% for m in messages %}{{ m.role }}={{ m.content | tojson }};{% endfor %}"
SHOUTS = "{% for m in messages %}{{ m.role }}={{ m.content | upper }};{% endfor %}"
CURIOUS = (
    "{% for m in messages %}{% if m.content.startswith('secret') %}hidden{% elif 'rude' in m.content %}beep"
    "{% elif m.content == 'hi' %}hello{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
)
COUNTS = (
    "{% for m in messages %}{% if m.content | length == 3 %}y{% endif %}{{ m.content }}<|end|>{% endfor %}"
)
TEMPLATES = [PLAIN, TRIMS, THINKS, QUOTES, SHOUTS, CURIOUS]


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """One tiny engine for each template."""
    folder, started = tmp_path_factory.mktemp("tiny"), {}

    def engine(template):
        if template not in started:
            path = tiny.write_tiny(folder / f"{len(started)}.gguf", "llama", template=template, layers=1)
            started[template] = Engine(path, ctx=256, threads=1)
        return started[template]

    yield engine
    for each in started.values():
        each.close()


def exactly(engine, messages, prompt):
    plain = [{"role": m.role, "content": m.content} for m in messages]
    return engine.apply_template(plain, add_generation_prompt=prompt)


WORDS = st.sampled_from(
    ["secret", "rude", "hi", "<think>a</think>", "</think>", "<|end|>", " ", "\n", '"', "{{ x }}"]
)
CONTENTS = st.lists(
    WORDS | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), max_size=3
)


@settings(max_examples=120, deadline=None)
@given(
    template=st.sampled_from(TEMPLATES),
    contents=st.lists(CONTENTS.map("".join), min_size=1, max_size=4),
    system=st.booleans(),
    prompt=st.booleans(),
)
def test_every_text_is_the_one_the_engine_renders(engines, template, contents, system, prompt):
    roles = [*(["system"] if system else []), *["user", "assistant"] * 2]
    messages = [Message(role, content) for role, content in zip(roles, contents, strict=False)]
    if [m.role for m in messages] == ["system"]:
        return
    engine = engines(template)
    assert Renderer(engine).render(messages, add_generation_prompt=prompt) == exactly(
        engine, messages, prompt
    )


def test_a_thousand_conversations_ask_the_engine_once_for_each_shape(engines, monkeypatch):
    engine, asked = engines(PLAIN), []
    monkeypatch.setattr(
        engine, "apply_template", lambda *a, **k: asked.append(a) or Engine.apply_template(engine, *a, **k)
    )
    renderer = Renderer(engine)
    for number in range(1_000):
        messages = [Message("user", f"question {number}"), Message("assistant", f"answer\n{number}")]
        text = renderer.render(messages, add_generation_prompt=False)
        assert f"question {number}<|end|>" in text and f"answer\n{number}<|end|>" in text
    assert len(asked) == 1


def test_a_template_curious_in_a_way_we_cannot_see_is_found_by_the_sample(engines):
    engine = engines(COUNTS)
    conversations = [
        [Message("user", letter), Message("assistant", "fine")] for letter in ("a", "b", "c", "xyz")
    ]
    renderer = Renderer(engine)
    renderer.check(conversations)
    assert not renderer.fast
    assert renderer.render(conversations[-1], add_generation_prompt=False).startswith("yxyz")
    plain = Renderer(engines(PLAIN))
    plain.check(conversations)
    assert plain.fast


def test_a_templates_marks_and_questions_are_telling_and_its_roles_are_not():
    assert set(telling(THINKS)) == {"</think>"}
    assert set(telling(CURIOUS)) == {"secret", "rude", "hi"}
    assert telling("{% if m.role == 'user' %}{{ m.content }}{% endif %}") == ()
