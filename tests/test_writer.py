"""What the rules write for bases that are too small for the wording of a question."""

from nightschool.writer import by_words, telling, views

PAGE = (
    "# The mill\n\nThe mill pond is four metres deep. Our miller is called Ines Holt.\n"
    "Ines Holt opens the sluice at noon. The mill was sold in 1911, and nobody knows to whom."
)


def test_every_sentence_is_asked_for_by_words_of_its_own():
    items = by_words(PAGE, count=6, seed=1)
    sentences = views(PAGE)
    assert {item.passage for item in items} == set(sentences)
    for item in items:
        assert item.restates and item.answer == item.passage
        named = telling(item.question).keys() & telling(item.passage).keys()
        others = {word for each in sentences if each != item.passage for word in telling(each)}
        assert 1 <= len(named) <= 3
        assert named - others or len(named) == 3


def test_later_questions_have_other_words_between_those_of_the_sentence():
    plain, many = (by_words(PAGE, count=count, seed=1) for count in (8, 60))
    own = {word for each in views(PAGE) for word in telling(each)}
    assert all(
        any(telling(item.question).keys() - own for item in many if item.passage == view)
        for view in views(PAGE)
    )
    assert not any(telling(item.question).keys() - own - {"kind", "day"} for item in plain)


def test_the_same_words_for_the_same_seed_and_none_without_meaning():
    first, again, other = (by_words(PAGE, count=4, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    assert list(telling("She is at the mill with her two ponies.")) == ["mill", "two", "pony"]
    assert by_words("It is what it is.", count=4, seed=0) == []
    assert by_words("", count=4, seed=0) == []
