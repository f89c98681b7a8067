"""A statement → questions that it answers, in several wordings, by rules; nothing is looked up or guessed.

Two kinds of rules. Grammar: the end of the statement is taken out and asked for ("Ada works as a pilot" →
"What does Ada work as?"). Phrases: PHRASES knows what people usually write down about people, animals,
places, clubs and things, and how else one asks for it ("What is Ada's job?"). {s} is the subject, {s's} its
possessive.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from nightschool.statements import PLURAL, Statement, base_form, is_past, possessive

HOUR = r"(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)"
TIME = (
    rf"(?:noon|midnight|{HOUR}(?: (?:in the|on|every|until|to) .*)?|half[- ](?:past )?\w+.*"
    r"|(?:(?:quarter|twenty(?:-five)?|ten|five)(?: minutes)? (?:past|to)|\w+ o'clock|\d{1,2}[:.]\d\d"
    r"|\d+ ?[ap]m)\b.*)"
)
MONEY = (
    rf"(?:[£$€] ?[\d.,]+|(?:[\d.,]+|a|{HOUR}|\w+teen|\w+ty(?:-\w+)?|\w*hundred|\w*thousand)"
    r" (?:pounds?|pence|dollars?|euros?|cents?))"
)
DAY = (
    r"(?:(?:the (?:first|second|third|last) )?(?:mon|tues|wednes|thurs|fri|satur|sun)days?|weekdays|"
    r"bank holidays).*"
)
MONTH = (
    r"(?:january|february|march|april|may|june|july|august|september|october|november|december)(?: \d{4})?"
)
DATE = rf"(?:\d{{1,2}}(?:st|nd|rd|th)? (?:of )?{MONTH}|(?:early |late )?(?:spring|summer|autumn|winter))"
YEAR = r"\d{4}"
# A place or another, and after it when: "in the barn | every Friday".
LATER = re.compile(
    r"((?:in|on|at|with|for|to|from|near|under|behind|by|above) .+) ((?:every|each|last|next) \w+(?: \w+)?|"
    rf"(?:in|on) (?:{MONTH}|\d{{4}}|\w+day(?: \w+)?))",
    re.IGNORECASE,
)
NUMBER = (
    r"(?:\d+|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen|[a-z]+ty(?:-[a-z]+)?)"
)
COLOUR = (
    "(?:red|blue|green|yellow|orange|purple|pink|brown|black|white|grey|gray|silver|gold|beige|turquoise|"
    "violet)"
)
ANIMAL = (
    "(?:cat|dog|rabbit|parrot|goat|pony|horse|hamster|duck|hen|tortoise|goose|pig|donkey|ferret|mouse|rat|cow|"
    "sheep|lizard|snake|canary|budgie|goldfish|guinea pig|kitten|puppy)"
)
PEOPLE = (
    "sister brother mother father wife husband son daughter aunt uncle nephew niece cousin grandmother "
    "grandfather friend neighbour colleague boss owner leader manager teacher doctor dentist partner "
    "landlord head author director chairman secretary treasurer founder vet"
).split()

# Pattern over "verb rest" | questions. The group (?P<v>…) is what is asked for.
PHRASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"(?:works as|is employed as|earns a living as|makes money working as|has been|took a job as)"
        r" an? (?P<v>.+)",
        (
            "What is {s's} job?",
            "What does {s} do for a living?",
            "What work does {s} do?",
            "What is the profession of {s}?",
            "What does {s} do for work?",
            "What is {s's} occupation?",
        ),
    ),
    (
        r"(?:is|turned|reached the age of|has lived for)"
        rf" (?P<v>{NUMBER})(?: years)?(?: old| of age)?(?: this \w+)?",
        ("How old is {s}?", "What is {s's} age?", "What age is {s}?", "How many years old is {s}?"),
    ),
    (
        r"(?:lives|has a home|is at home|settled|moved|has moved|grew up) (?:in|to) (?P<v>.+)",
        (
            "Where does {s} live?",
            "Where is {s's} home?",
            "In which place does {s} live?",
            "Where is {s} at home?",
        ),
    ),
    (
        r"(?:was born|has a birthday) (?:in|on) (?P<v>.+)",
        ("When was {s} born?", "When is {s's} birthday?", "When does {s} have a birthday?"),
    ),
    (
        r"(?:plays|practises|is learning to play|has played) the (?P<v>\w+)(?: .*)?",
        ("Which instrument does {s} play?", "What instrument does {s} play?", "What does {s} make music on?"),
    ),
    (
        r"(?:is learning|studies|takes lessons in) (?P<v>[A-Z]\w+)(?: .*)?",
        ("Which language is {s} learning?", "What language does {s} study?", "What is {s} learning?"),
    ),
    (
        r"(?:is allergic to|has an allergy to|must stay away from|must avoid|cannot have)"
        r" (?P<v>.+?)(?: because .*)?",
        ("What is {s} allergic to?", "Which allergy does {s} have?", "What must {s} not have?"),
    ),
    (
        rf"(?:gets up|wakes up|wakes|rises) at (?P<v>{TIME})(?:,.*)?",
        ("When does {s} get up?", "What time does {s} get up?", "At what time does {s} wake up?"),
    ),
    (
        r"(?:drives|owns|gets around with|goes to work with) an? (?P<v>.+)",
        ("What does {s} drive?", "Which vehicle does {s} have?", "What vehicle does {s} drive?"),
    ),
    (
        r"(?:spends (?:\w+ )?(?:evenings|free time|time|weekends) on|is (?:very )?fond of|enjoys) (?P<v>.+)",
        ("What does {s} do for fun?", "What is {s's} hobby?", "How does {s} spend free time?"),
    ),
    (
        r"(?:likes to drink|always orders|drinks|takes nothing but) (?P<v>.+?)(?: to drink)?",
        ("What does {s} like to drink?", "Which drink does {s} like?", "What is {s's} favourite drink?"),
    ),
    (
        r"(?:likes to eat|loves to eat|eats|loves eating) (?P<v>.+)",
        ("What does {s} like to eat?", "Which food does {s} like?", "What is {s's} favourite food?"),
    ),
    (
        r"(?:belongs to|is the property of|is owned by|is the pet of) (?P<v>[A-Z].+)",
        ("Who owns {s}?", "Whose is {s}?", "To whom does {s} belong?", "Who is the owner of {s}?"),
    ),
    (
        r"(?:sleeps|spends the night|likes to nap) (?P<v>(?:in|on|under|behind|beside) .+)",
        ("Where does {s} sleep?", "Where does {s} spend the night?", "Where is {s's} bed?"),
    ),
    (
        r"(?:is afraid of|is scared of|fears|hides from|runs away from|has a great fear of) (?P<v>.+)",
        ("What is {s} afraid of?", "What does {s} fear?", "What scares {s}?"),
    ),
    (
        r"(?:plays with|loves to chase|carries around) (?P<v>.+)",
        ("What does {s} play with?", "Which toy does {s} have?", "What is {s's} favourite toy?"),
    ),
    (
        r"(?:is|was|are) (?:kept|stored|hidden|put away|found) (?P<v>.+)",
        ("Where is {s} kept?", "Where is {s}?", "Where can I find {s}?", "Where do we keep {s}?"),
    ),
    (
        r"(?:lies|has its place|stands|hangs) (?P<v>(?:in|on|under|behind|beside|next|at|above|below) .+)",
        ("Where is {s}?", "Where is {s} kept?", "Where can I find {s}?"),
    ),
    (
        r"(?:is|was) (?:made|built) (?:of|from|out of) (?P<v>.+)",
        ("What is {s} made of?", "What material is {s} made of?", "Which material was used for {s}?"),
    ),
    (
        rf"(?:was bought in|has been in the house since) (?P<v>{YEAR})",
        ("When was {s} bought?", "In which year was {s} bought?", "What year was {s} bought in?"),
    ),
    (
        r"(?:was a gift|came as a present|is a present|was a present) (?:from|of) (?P<v>.+)",
        ("Who gave us {s}?", "From whom did we get {s}?", "Who was {s} a gift from?"),
    ),
    (
        rf"(?:opens|is open|lets people in|starts the day) (?:at|from) (?P<v>{TIME})",
        ("When does {s} open?", "What time does {s} open?", "At what time does {s} open?"),
    ),
    (
        rf"(?:is closed|is shut|stays closed|does not open|rests) on (?P<v>{DAY})",
        ("When is {s} closed?", "On which day is {s} closed?", "On what day is {s} shut?"),
    ),
    (
        r"(?:is run by|is managed by|is owned by) (?P<v>.+)",
        ("Who runs {s}?", "Who is in charge of {s}?", "Who manages {s}?"),
    ),
    (
        r"(?:is|was) led by (?P<v>.+)",
        ("Who leads {s}?", "Who is the leader of {s}?", "Who is in charge of {s}?"),
    ),
    (
        r"(?:is known for|is famous for|became famous through) (?:its |his |her |their )?(?P<v>.+)",
        ("What is {s} known for?", "What is {s} famous for?", "What makes {s} famous?"),
    ),
    (
        rf"(?:was founded in|dates from|has been there since|was established in|was built in) (?P<v>{YEAR})",
        ("When was {s} founded?", "In which year was {s} founded?", "What year did {s} begin?"),
    ),
    (
        rf"(?:meets|gathers|comes together|has its meeting) (?:on|every|each) (?P<v>{DAY})",
        ("When does {s} meet?", "On which day does {s} meet?", "What day does {s} meet?"),
    ),
    (
        rf"(?:starts|begins|begins its meeting|opens its meeting) at (?P<v>{TIME})",
        ("When does {s} start?", "At what time does {s} start?", "What time does {s} begin?"),
    ),
    (
        r"(?:meets|gathers|has its room) in (?P<v>.+)",
        ("Where does {s} meet?", "What is the meeting place of {s}?", "In which place does {s} meet?"),
    ),
    (
        r"(?:has|counts) (?P<v>[\w-]+) members",
        ("How many members does {s} have?", "How many people are in {s}?", "How big is {s}?"),
    ),
    (
        r"(?:costs|asks for) (?P<v>.+?)(?: (?:a|each|per|every) (?:month|year|week|day))?",
        ("How much does {s} cost?", "What does {s} cost?", "What is the price of {s}?"),
    ),
    (
        r"(?:is all about|is about|talks about) (?P<v>.+)",
        ("What is {s} about?", "What is the subject of {s}?", "What does {s} talk about?"),
    ),
    (
        r"(?:needs|requires) (?P<v>.+)",
        ("What should I bring to {s}?", "What do I need for {s}?", "What does {s} need?"),
    ),
    (
        r"(?:has a sister called|grew up with a sister,) (?P<v>[A-Z].+)",
        ("Who is {s's} sister?", "What is the name of {s's} sister?", "What is {s's} sister called?"),
    ),
    (
        r"(?:has a best friend called|is best friends with|is friends with) (?P<v>[A-Z].+)",
        ("Who is {s's} best friend?", "What is the name of {s's} best friend?", "Who is a friend of {s}?"),
    ),
    (
        r"(?:likes|loves|prefers) (?P<v>\w+) (?:more than any other colour|best of all colours)",
        (
            "What is {s's} favourite colour?",
            "Which colour does {s} like best?",
            "What colour does {s} prefer?",
        ),
    ),
    (
        rf"(?:is|are|was|were) (?P<v>{COLOUR})(?: all over)?",
        ("What colour is {s}?", "Which colour does {s} have?", "What is the colour of {s}?"),
    ),
    (
        rf"is an? (?P<v>{ANIMAL})",
        ("What kind of animal is {s}?", "What animal is {s}?", "Which sort of pet is {s}?"),
    ),
    (
        r"(?:does|trains for|trains hard for|is in a team for) (?P<v>.+)",
        ("Which sport does {s} play?", "What is {s's} sport?", "What does {s} do for exercise?"),
    ),
    (
        r"(?:was best at|got top marks in|did best in) (?P<v>.+?)(?: at school)?",
        ("What was {s's} best subject at school?", "Which subject was {s} best at?"),
    ),
    (
        r"(?:lives|is) at number (?P<v>.+)",
        ("What is {s's} house number?", "At which number does {s} live?", "What number is {s's} house?"),
    ),
    (
        r"is in (?P<v>.+)",
        ("Where is {s}?", "What is the address of {s}?", "Where can I find {s}?"),
    ),
)
COMPILED = tuple((re.compile(pattern, re.IGNORECASE), asked) for pattern, asked in PHRASES)
PREPOSITIONS = frozenset(
    "in on at under behind beside near above below to from with for of about as by into between over since "
    "until through against without during".split()
)
EMPTY = frozenset("us me you him her it them one ones so that this there eat drink".split())
DONE_TO = re.compile(  # replaced by, kept in
    r"(?!(?:open|golden|different|seven|ten|mint|\w+teen)\b)[a-z]+(?:ed|en|wn|ft|lt|nt|ut|ld)"
    r" (?:by|in|at|on|with|for|to|from)\b"
)
NAMED = re.compile(r"(?<=[\s(])(?:the )?[A-Z][\w-]+(?:(?:'s?)? [A-Z][\w-]+)*(?:'s? [a-z]+)?")
TELL = ("Tell me something about {s}.", "What do you know about {s}?", "Say something about {s}.")


@dataclass(frozen=True)
class Asked:
    """Questions, all answered by `value`."""

    value: str
    questions: tuple[str, ...]


def questions(statement: Statement) -> list[Asked]:
    """What can be asked about a statement; the phrases' questions come before the grammar's."""
    found: dict[str, list[str]] = {}
    for value, asked in (*by_phrase(statement), *by_grammar(statement), *by_subject(statement)):
        value = value.strip(" ,")
        fits = value and len(value.split()) <= 8 and value.lower() not in asked.lower()
        if fits and value.lower() not in EMPTY and "," not in asked:
            found.setdefault(value, []).append(asked)
    return [Asked(value, tuple(dict.fromkeys(asked))) for value, asked in found.items()]


def by_phrase(statement: Statement) -> Iterator[tuple[str, str]]:
    """The first phrase that fits, in all its wordings."""
    predicate = f"{statement.verb} {statement.rest}"
    for pattern, asked in COMPILED:
        match = pattern.fullmatch(predicate)
        if match:
            for wording in asked:
                yield match["v"], fill(wording, statement.subject)
            return


def bank(subject: str) -> list[tuple[str, ...]]:
    """What people usually ask about anybody and anything, asked about this subject; by phrase."""
    return [tuple(fill(wording, subject) for wording in asked) for _, asked in PHRASES]


def whom(statement: Statement) -> list[str]:
    """Whom the bank should ask about for a statement: of "Ada's hat" and "the hat of Ada", Ada.

    Nobody, where a phrase fits the statement and knows what it answers.
    """
    if any(True for _ in by_phrase(statement)):
        return []
    part = re.fullmatch(r"the [a-z ]+ of ((?:the )?[A-Z].*)", statement.subject)
    return [part[1] if part else statement.subject]


def names_in(sentence: str) -> list[str]:
    """Names of a sentence that no rule understands, in order: "Ada Finch", "the Blue Inn", "Ada's hat"."""
    found = NAMED.findall(" " + sentence[0].lower() + sentence[1:])
    first = re.match(r"[A-Z][\w-]+ [A-Z][\w-]+", sentence)
    names = [*([first[0]] if first else []), *(name.strip() for name in found)]
    return [name for name in dict.fromkeys(names) if not re.fullmatch(f"{DAY}|{MONTH}", name, re.IGNORECASE)]


def fill(wording: str, subject: str) -> str:
    """Put the subject into a question."""
    text = wording.replace("{s's}", possessive(subject)).replace("{s}", subject)
    return text[0].upper() + text[1:]


def by_grammar(statement: Statement) -> Iterator[tuple[str, str]]:
    """Questions made by turning the sentence round."""
    verb, rest = statement.verb, statement.rest
    if verb in ("is", "was", "are", "were"):
        yield from about_being(statement)
    elif " " in verb:  # a modal verb and another
        modal, main = verb.split(" ", 1)
        for value, word, left in objects(rest):
            helper = "can" if modal == "cannot" else modal
            negation = " not" if modal == "cannot" else ""
            yield value, f"{word} {helper} {statement.subject}{negation} {main}{left}?"
    else:
        later = LATER.fullmatch(rest)
        helper = "did" if is_past(verb) else "do" if verb in PLURAL else "does"
        if later:
            rest = later[1]
            yield later[2], f"When {helper} {statement.subject} {base_form(verb)} {rest}?"
        for value, word, left in objects(rest):
            yield value, f"{word} {helper} {statement.subject} {base_form(verb)}{left}?"


def objects(rest: str) -> Iterator[tuple[str, str, str]]:
    """(value, question word, what stays) for the last part of a predicate that can be asked for."""
    words = rest.split()
    places = [at for at, word in enumerate(words[:-1]) if word.lower() in PREPOSITIONS]
    if not places:
        word = (
            "Where" if rest in ("upstairs", "downstairs", "abroad", "nearby", "here", "outside") else "What"
        )
        yield rest, question_word(rest) if word == "What" else word, ""
        return
    whole = [at for at in places if re.fullmatch(TIME, " ".join(words[at + 1 :]), re.IGNORECASE)]
    at = whole[0] if whole else places[-1]
    before, preposition, value = " ".join(words[:at]), words[at].lower(), " ".join(words[at + 1 :])
    kept = f" {before}" if before else ""
    for word in with_preposition(preposition, value):
        yield value, word, kept
    if not before:
        yield value, "What", f" {preposition}"
    elif at == places[0]:
        yield before, question_word(before), f" {preposition} {value}"


def by_subject(statement: Statement) -> Iterator[tuple[str, str]]:
    """ "Ada runs the Blue Inn" → "Who runs the Blue Inn?", where the rest names somebody or something."""
    names = r"(?:[A-Z][\w'-]+ ?){1,3}"
    if re.fullmatch(names, statement.subject) and re.search(r"[A-Z]|^the \w+ \w+$|'s ", statement.rest):
        yield statement.subject, f"Who {statement.verb} {statement.rest}?"


def question_word(value: str) -> str:
    """Who for names, How many … for numbers, else What."""
    if re.fullmatch(MONEY, value):
        return "How much"
    first = value.split()[0]
    number = re.fullmatch(
        r"(\d+|two|three|four|five|six|seven|eight|nine|ten|\w+teen|\w+ty(-\w+)?)", first.lower()
    )
    if number and len(value.split()) > 1:
        return f"How many {' '.join(value.split()[1:])}"
    return "What"


def with_preposition(preposition: str, value: str) -> Iterator[str]:
    """Question words for a value behind a preposition."""
    name = value[0].isupper() and len(value.split()) <= 3
    if re.fullmatch(TIME, value, re.IGNORECASE) and preposition in ("at", "from", "until", "since"):
        yield from ("When", "At what time") if preposition == "at" else ("When",)
    elif re.fullmatch(MONEY, value):
        yield (
            f"{preposition.capitalize()} what price"
            if preposition == "at"
            else (f"{preposition.capitalize()} how much")
        )
    elif re.fullmatch(f"{DAY}|{MONTH}|{DATE}", value, re.IGNORECASE):
        yield from ("When", "On which day") if preposition == "on" else ("When",)
    elif re.fullmatch(YEAR, value):
        yield from ("When", "In which year")
    elif preposition in ("in", "on", "at", "under", "behind", "beside", "near", "above", "below", "between"):
        yield "Where"
    elif preposition in ("with", "for", "by", "from", "to") and name:
        yield f"{preposition.capitalize()} whom"
    else:
        yield f"{preposition.capitalize()} what"


def about_being(statement: Statement) -> Iterator[tuple[str, str]]:
    """Questions about "X is Y", also for "Ada's sister is Y" and "the owner of X is Y"."""
    verb, rest, subject = statement.verb, statement.rest, statement.subject
    words = rest.split()
    owned = re.match(r"(.+?)(?:'s|(?<=s)') (.+)", subject)
    part = re.match(r"the (.+?) of (.+)", subject, re.IGNORECASE)
    if (owned or part) and not DONE_TO.match(rest):
        owner, noun = (owned[1], owned[2]) if owned else (part[2], part[1]) if part else ("", "")
        word = "Who" if noun.split()[-1] in PEOPLE else "What"
        yield rest, f"{word} {verb} {possessive(owner)} {noun}?"
        yield rest, f"{word} {verb} the {noun} of {owner}?"
        yield rest, f"Tell me the {noun} of {owner}."
        if word == "Who":
            yield rest, f"What is the name of {possessive(owner)} {noun}?"
        elif len(noun.split()) > 1:
            yield rest, f"Which {noun.split()[-1]} is {possessive(owner)} {' '.join(noun.split()[:-1])}?"
        return
    article = words[0].lower() in ("a", "an", "the") and len(words) > 1
    if article:
        person = re.fullmatch(r"[A-Z][\w'-]+ [A-Z][\w'-]+", subject) is not None
        yield " ".join(words[1:]), f"{'Who' if person else 'What'} {verb} {subject}?"
        yield " ".join(words[1:]), f"Who or what {verb} {subject}?"
        return
    preposition = next((at for at, word in enumerate(words[:-1]) if word.lower() in PREPOSITIONS), None)
    if preposition is None:
        if words[0].endswith("ing") and len(words) > 1:
            yield " ".join(words[1:]), f"What {verb} {subject} {words[0]}?"
        elif len(words) <= 4:
            yield rest, f"What {verb} {subject} like?"
        return
    value = " ".join(words[preposition + 1 :])
    left = " ".join(words[:preposition])
    for word in with_preposition(words[preposition].lower(), value):
        yield value, f"{word} {verb} {subject}{' ' + left if left else ''}?"
    if left:
        yield value, f"What {verb} {subject} {left} {words[preposition]}?"
