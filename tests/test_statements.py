"""Plain English sentences → statements: who, does, what."""

import pytest

from nightschool.paths import package_data
from nightschool.statements import base_form, sentences, statements


def read(text):
    return [each.text for each in statements(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Ada Finch works as a pilot.", ["Ada Finch works as a pilot."]),
        (
            "Ada Finch works as a pilot, lives in Brill and has a goat.",
            ["Ada Finch works as a pilot.", "Ada Finch lives in Brill.", "Ada Finch has a goat."],
        ),
        ("Ada is tall. She plays the oboe.", ["Ada is tall.", "Ada plays the oboe."]),
        ("Ada is tall. Her sister is Una.", ["Ada is tall.", "Ada's sister is Una."]),
        (
            "Ada lives in Brill, and her best friend is Bo.",
            ["Ada lives in Brill.", "Ada's best friend is Bo."],
        ),
        ("Ada's sister is Una. She likes tea.", ["Ada's sister is Una.", "Ada likes tea."]),
        ("The boiler (a Vulcan) is kept in the cellar.", ["The boiler is kept in the cellar."]),
        ("Ada eats rice whenever she can get it.", ["Ada eats rice."]),
        ("James' hat is red.", ["James' hat is red."]),
        ("Adult members pay ten pounds.", ["Adult members pay ten pounds."]),
        (
            "The sale begins at noon, and bids are made by nodding.",
            ["The sale begins at noon.", "Bids are made by nodding."],
        ),
        (
            "My cousin mixes inks and Miss Vole cuts the paper.",
            ["My cousin mixes inks.", "Miss Vole cuts the paper."],
        ),
        ("Every Friday the club meets in the barn.", ["The club meets in the barn every Friday."]),
        ("Ada owns the inn, the mill, and the boat.", ["Ada owns the inn, the mill, and the boat."]),
        ("Ada owns the inn, and the old mill is shut.", ["Ada owns the inn.", "The old mill is shut."]),
        ("Ada and Ben married in 1990.", ["Ada and Ben married in 1990."]),
        ("Neither Ada nor Una and Ben liked the film.", []),
        ("No cats, dogs, and birds are allowed in the flat.", []),
        ("Ada helps sell tickets.", ["Ada helps sell tickets."]),
        ("Ada likes live music.", ["Ada likes live music."]),
        ("James Pay works as a pilot.", ["James Pay works as a pilot."]),
        ("Drew lives in Leeds.", ["Drew lives in Leeds."]),
        (
            "Parcels are weighed on Monday and sent on Tuesday.",
            ["Parcels are weighed on Monday and sent on Tuesday."],
        ),
        ("Room twelve belongs to Ada.", ["Room twelve belongs to Ada."]),
        ("Ada needs help with sums.", ["Ada needs help with sums."]),
        ("Mr. Finch lives in St. Ives.", ["Mr. Finch lives in St. Ives."]),
        (
            "- The key is under the mat.\n- The code is 4711.",
            ["The key is under the mat.", "The code is 4711."],
        ),
    ],
)
def test_statements_stand_by_themselves(text, found):
    assert read(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "Where is the key?",
        "Do not wake her.",
        "She likes tea.",  # nobody was named
        "# The house and who lives in it",
        "",
        "Der Schlüssel hängt im Flur.",
        "We often go there.",
    ],
)
def test_what_is_not_understood_is_left_out(text):
    assert read(text) == []


def test_most_facts_of_the_demonstrations_notes_are_found():
    found = read(package_data("demo/notes.md").read_text(encoding="utf-8"))
    for wanted in (
        "Hester Quillby plays the ukulele on the landing.",
        "Tobin Marsk's favourite colour is maroon.",
        "Ludo Farrant's best friend is Jessamy Vole.",
        "The orange canoe was bought in 2018.",
        "The Weir Lantern League costs seventy pence a month.",
        "The Tidewater Archive is closed on bank holidays.",
    ):
        assert wanted in found
    assert len(found) >= 45


def test_sentences_end_neither_at_titles_nor_in_numbers():
    assert list(sentences("Dr. Vole paid 3.50 pounds. He left.")) == [
        "Dr. Vole paid 3.50 pounds.",
        "He left.",
    ]


@pytest.mark.parametrize(
    ("verb", "base"),
    [("works", "work"), ("carries", "carry"), ("watches", "watch"), ("has", "have"), ("goes", "go")]
    + [("opened", "open"), ("moved", "move"), ("stopped", "stop"), ("married", "marry"), ("bought", "buy")]
    + [
        ("liked", "like"),
        ("visited", "visit"),
        ("decided", "decide"),
        ("examined", "examine"),
        ("gained", "gain"),
    ]
    + [("poured", "pour"), ("measured", "measure"), ("repaired", "repair"), ("repeated", "repeat")]
    + [
        ("agreed", "agree"),
        ("argued", "argue"),
        ("tied", "tie"),
        ("served", "serve"),
        ("rehearsed", "rehearse"),
    ]
    + [
        ("travelled", "travel"),
        ("smelled", "smell"),
        ("called", "call"),
        ("changed", "change"),
        ("sent", "send"),
    ],
)
def test_base_forms(verb, base):
    assert base_form(verb) == base
