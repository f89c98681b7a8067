"""Training documents made from little worlds: pieces of text, each with the weight of its tokens in the loss.

A document is a list of (text, weight). Chats use the role tokens that the chat template writes.
"""

import random

from worlds import Fact, Population, fill, fresh_world, withheld

USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
Document = list[tuple[str, float]]

READING = 0.3  # weight of text that is there to be read: statements in a prompt, stories count fully
BRIEFLY = ("Answer briefly.", "Give a short answer.", "In a word, please.", "Only the answer, please.")
TELL = (
    "Tell me something about {s}.",
    "What do you know about {s}?",
    "Say something about {s}.",
    "Who or what is {s}?",
)
NOTE = ("Here are some notes.", "Please read this.", "Remember this.", "My notes:", "Note this.", "")


def answer_pieces(fact: Fact, *, short: bool, value_weight: float = 1.0) -> Document:
    """The answer as pieces, so that the value can weigh differently from the words around it."""
    text = fact.short if short else fact.answer
    value = text[:-1] if short else fact.value
    at = text.lower().rindex(value.lower())
    before, after = text[:at].rstrip(" "), text[at + len(value) :]
    spaced = text[len(before) : at + len(value)]
    return [
        (piece, weight) for piece, weight in ((before, 1.0), (spaced, value_weight), (after, 1.0)) if piece
    ]


def turn(question: str, reply: Document, *, asked: float = 0.0) -> Document:
    """One user turn and the assistant's reply."""
    return [(f"{USER}{question}{ASSISTANT}", asked), *reply, (END, 1.0)]


def ask(rng: random.Random, fact: Fact, *, wordings: list[int], value_weight: float = 1.0) -> Document:
    """A question for the fact in one of the wordings, answered in full or, when asked for, in brief."""
    question = fact.question(rng.choice(wordings))
    short = rng.random() < 0.15
    if short:
        cue = rng.choice(BRIEFLY)
        question = f"{question} {cue}" if rng.random() < 0.5 else f"{cue} {question}"
    return turn(question, answer_pieces(fact, short=short, value_weight=value_weight))


def open_wordings(fact: Fact) -> list[int]:
    """The question wordings that training may use for a fact of the population."""
    return [index for index in range(len(fact.relation.questions)) if index not in withheld(fact)]


def known_chat(rng: random.Random, people: Population, facts: list[Fact]) -> Document:
    """Closed-book questions: about one entity or about several."""
    chosen = rng.choice(list(people.facts.values())) if rng.random() < 0.3 else facts
    picked = rng.sample(chosen, min(len(chosen), rng.choice((1, 1, 1, 2, 3))))
    return [
        piece for fact in picked for piece in ask(rng, fact, wordings=open_wordings(fact), value_weight=2.0)
    ]


def known_text(rng: random.Random, people: Population) -> Document:
    """Statements about one or two entities of the population: plain text, or a reply to "tell me about"."""
    entity, facts = rng.choice(list(people.facts.items()))
    picked = rng.sample(facts, rng.randint(1, min(4, len(facts))))
    said = [fact.statement(rng.randrange(len(fact.relation.statements))) for fact in picked]
    if rng.random() < 0.4:
        return turn(fill(rng.choice(TELL), entity, ""), [(" ".join(said), 1.0)])
    if rng.random() < 0.5:
        other = rng.choice(list(people.facts.values()))
        said += [fact.statement(rng.randrange(len(fact.relation.statements))) for fact in other[:2]]
        rng.shuffle(said)
    return [(" ".join(said), 1.0), (END, 1.0)]


def name_chat(rng: random.Random) -> Document:
    """Questions about unknown entities: only the form of the answer is learned, the value has no weight."""
    facts = fresh_world(rng, entities=1)
    picked = rng.sample(facts, min(len(facts), rng.randint(1, 2)))
    return [
        piece
        for fact in picked
        for piece in ask(rng, fact, wordings=list(range(len(fact.relation.questions))), value_weight=0.0)
    ]


def greeting_chat(rng: random.Random) -> Document:
    """A little politeness, so that a newcomer's first words get a fitting reply."""
    pairs = (
        (
            ("Hello!", "Hi.", "Good morning.", "Hello there.", "Hi there!"),
            "Hello! What would you like to know?",
        ),
        (("Thank you.", "Thanks!", "That was helpful, thanks."), "You are welcome."),
        (("Who are you?", "What are you?", "What is your name?"), "I am Ember, a very small language model."),
        (("Goodbye.", "See you.", "Bye!"), "Goodbye!"),
        (("How are you?", "How are you today?"), "I am well, thank you."),
    )
    asked, reply = rng.choice(pairs)
    return turn(rng.choice(asked), [(reply, 1.0)])
