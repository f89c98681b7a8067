"""Rehearsal: what the base says of its own accord, learned again beside the lessons against forgetting.

No text from elsewhere is needed: the base continues from nothing, and answers general prompts. What it says
there is, by definition, what it is to go on saying.
"""

import random

from nightschool.engine import Engine

TEXT_TOKENS, ANSWER_TOKENS = 160, 120
TEXTS = 2  # continuations for each answer to a prompt
OPENINGS = ("The", "One day", "In the", "There was", "When", "She", "It was", "My", "Once", "After")
PROMPTS = (
    "Tell me a story.",
    "Can you tell me a story?",
    "I want to hear a story.",
    "Read to me from a book.",
    "Read me a page from a book.",
    "Please read to me from an old book.",
    "Hello!",
    "Who are you?",
    "How are you?",
    "Thank you.",
    "Goodbye.",
    "Write a short poem about the sea.",
    "Explain how bread is made.",
    "What is a good way to learn a language?",
    "Give me three tips for sleeping well.",
    "Write a polite e-mail that declines an invitation.",
    "What is the difference between weather and climate?",
    "Why is the sky blue?",
    "How does a bicycle stay upright?",
    "Summarise the plot of a fairy tale you know.",
    "List five things to pack for a walk in the hills.",
    "What should I cook with potatoes and eggs?",
    "Explain what a computer program is to a child.",
    "Write a function that adds two numbers.",
    "What is 17 plus 25?",
    "Name the planets of the solar system.",
    "How do plants make their food?",
    "Give me an example of a simile.",
    "What makes a good friend?",
    "Describe a rainy day in a small town.",
    "Translate 'good morning' into French.",
    "What happened before the invention of printing?",
)


def rehearse(engine: Engine, index: int, *, seed: int) -> tuple[str, str]:
    """(prompt, what the base says to it); an empty prompt means that it speaks out of nothing.

    A base without a token for the beginning of a text needs a first word for that. Every index gives another
    text; the same index and seed give the same.
    """
    rng = random.Random(seed + index)
    if index % (TEXTS + 1):
        said = continued(engine, "", seed=seed + index)
        return "", said or continued(engine, rng.choice(OPENINGS), seed=seed + index)
    prompt = rng.choice(PROMPTS)
    messages = [{"role": "user", "content": prompt}]
    said_to = engine.chat(messages, temperature=0.8, max_tokens=ANSWER_TOKENS, seed=seed + index)
    return prompt, printable(said_to)


def continued(engine: Engine, opening: str, *, seed: int) -> str:
    """A text that begins so, as the base goes on."""
    found = engine.complete(opening, max_tokens=TEXT_TOKENS, temperature=1.0, seed=seed)
    return printable(opening + found["content"])


def printable(text: str) -> str:
    """Without what a model that is not sure of itself may say: control characters, halves of letters."""
    return (
        "".join(mark for mark in text if mark.isprintable() or mark in "\n\t").replace("\ufffd", "").strip()
    )
