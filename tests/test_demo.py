"""The demonstration and `fit`: the whole main job on the embedded base, and what the figures mean."""

import json

import pytest
from alone import LOOPBACK, run_alone, turned_to
from click.testing import CliRunner

from nightschool import fit as fitting
from nightschool.cli import main
from nightschool.demo import notes
from nightschool.events import Progress
from nightschool.exam import load_exam, normalise
from nightschool.paths import package_data

KEYS = {
    "remember_s",
    "ask_recall",
    "lessons_written",
    "lessons_kept",
    "recall_before",
    "recall_after",
    "forgetting",
    "train_s",
    "train_tokens_per_s",
    "total_s",
    "peak_rss_bytes",
}


pytestmark = pytest.mark.timeout(900)  # minutes on a busy machine


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    """One run of the whole demonstration; both tests of it read this."""
    home, noted = tmp_path_factory.mktemp("demo-home"), tmp_path_factory.mktemp("noted")
    done = run_alone(["-m", "nightschool", "demo", "--json"], noted, NIGHTSCHOOL_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert turned_to(noted) <= LOOPBACK  # the engine, and nobody else
    return json.loads(done.stdout.splitlines()[-1]), done.stderr, home


def test_the_base_learns_the_notes_and_forgets_little(demonstration):
    found, _, home = demonstration
    assert set(found) >= KEYS
    assert found["recall_before"] <= 0.10
    assert found["recall_after"] >= 0.75
    assert found["forgetting"] <= 0.10
    assert (home / "adapters" / "demo" / "adapter.gguf").exists()
    card = json.loads((home / "adapters" / "demo" / "card.json").read_text())
    assert card["training"]["tokens"] == found["train_tokens"]
    assert found["ask_recall"] >= 0.6
    assert found["remember_s"] < 1.0
    assert 100 < found["lessons_kept"] < found["lessons_written"]


def test_it_studies_in_a_home_of_its_own(demonstration):
    _, _, home = demonstration
    assert {each.name for each in home.iterdir()} <= {"adapters", "base_hashes.json"}
    assert [each.name for each in (home / "adapters").iterdir()] == ["demo"]


def test_the_demonstration_shows_answers_exam_receipt_files_and_what_next(demonstration):
    _, shown, _ = demonstration
    for words in (
        "before",
        "after",
        "with the notes at hand",
        "written by the model itself",
        "Exam:",
        "Forgetting:",
        "Receipt:",
        "kJ",
        "adapter.gguf",
        "nightschool chat",
    ):
        assert words in shown
    assert shown.count("✗") >= 4  # the bare base's answers


def test_every_answer_of_the_exam_stands_in_the_notes():
    words = " ".join(normalise(notes().read_text(encoding="utf-8")))
    exam = load_exam(package_data("demo/exam.jsonl"))
    assert len(exam) >= 40
    for question in exam:
        assert " ".join(normalise(question.answer)) in words


def test_fit_measures_the_embedded_base_and_a_shape():
    events = list(fitting.measure(shapes=("135M",), threads=1))
    ember, smol = [event for event in events if isinstance(event, fitting.Fit)]
    assert (ember.name, smol.name) == ("ember", "135M (as SmolLM2 135M)")
    assert smol.parameters == pytest.approx(134.5e6, rel=0.01)
    assert ember.fits and ember.tokens_per_s > smol.tokens_per_s > 0
    assert smol.tokens_an_evening == round(smol.tokens_per_s * 4 * 3600)
    assert isinstance(events[-1], Progress)


def test_fit_prints_a_line_for_each_model(monkeypatch):
    monkeypatch.setattr(fitting.measure, "__kwdefaults__", {"shapes": (), "threads": 0})
    lines = CliRunner().invoke(main, ["fit", "--json"]).stdout.splitlines()
    assert json.loads(lines[0])["name"] == "ember"
    shown = CliRunner().invoke(main, ["fit"])
    assert "tokens an evening" in shown.stdout
    assert "ember" in shown.stdout
