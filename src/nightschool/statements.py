"""Plain English notes → statements: short sentences that stand by themselves, each with subject, verb and
rest.

Rules only, no model: sentences are split, "She" and "His" are replaced by whom they mean, "works as A,
lives in B and has C" becomes three statements. What the rules do not understand is left out here; the model
may still write questions about it. English only: other languages give few statements, never wrong ones.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

BE = frozenset("is are was were".split())
MODALS = frozenset("can could will would must should may might cannot does do did has have had".split())
# Third person → base form, where taking away the "s" does not give it; also the common past forms.
IRREGULAR = {
    "has": "have",
    "does": "do",
    "goes": "go",
    "is": "be",
    "was": "be",
    "had": "have",
    "did": "do",
    "came": "come",
    "went": "go",
    "got": "get",
    "gave": "give",
    "took": "take",
    "made": "make",
    "grew": "grow",
    "won": "win",
    "began": "begin",
    "bought": "buy",
    "built": "build",
    "wrote": "write",
    "left": "leave",
    "met": "meet",
    "sold": "sell",
    "kept": "keep",
    "found": "find",
    "told": "tell",
    "became": "become",
    "ran": "run",
    "led": "lead",
    "held": "hold",
    "saw": "see",
    "knew": "know",
    "shone": "shine",
    "spent": "spend",
    "chose": "choose",
    "drove": "drive",
    "taught": "teach",
    "ate": "eat",
    "blew": "blow",
    "broke": "break",
    "brought": "bring",
    "caught": "catch",
    "drank": "drink",
    "drew": "draw",
    "dug": "dig",
    "fed": "feed",
    "fell": "fall",
    "flew": "fly",
    "forgot": "forget",
    "fought": "fight",
    "heard": "hear",
    "hid": "hide",
    "hung": "hang",
    "laid": "lay",
    "lent": "lend",
    "lost": "lose",
    "meant": "mean",
    "paid": "pay",
    "rode": "ride",
    "said": "say",
    "sang": "sing",
    "sat": "sit",
    "sent": "send",
    "shook": "shake",
    "slept": "sleep",
    "spoke": "speak",
    "stood": "stand",
    "struck": "strike",
    "stuck": "stick",
    "swam": "swim",
    "swept": "sweep",
    "threw": "throw",
    "understood": "understand",
    "woke": "wake",
    "wore": "wear",
}
PAST = frozenset(word for word in IRREGULAR if word not in ("has", "does", "goes", "is"))
SIBILANT = re.compile(r"(ch|sh|ss|x|z|o)es$")
# Stems, without "-ed", of verbs that end in a silent e: of one syllable with a simple end, or by their end.
SILENT_E = re.compile(
    r"^[^aeiou]*[aeiouy][^aeiouwxy]$|([uevc]|[^zt]z|[^s]s|^[tdlv]i|[bptgdkcfz]l|[rdl]g|[aeiou]g|ung|(?:ch|r)ang"
    r"|[^aeiou][aeiou]d|(?<![aeo])at|creat|(?<!a)ir|[^eol]ar|(?<![om])ur|(?:pl|st|gn)or|[^aeiou]in|[^u]um|ib"
    r"|(?<!o)ok|[cpt]ap|[pc]il|(?<!o)ut|[nv]it|[dnvmu]ot|omplet|ompet|elet)$"
)
LONG_IN_LL = re.compile(r"[aeiou][^aeiou]+(ell|roll)$")
NOT_VERBS = frozenset(
    "this his its as always perhaps sometimes yes us thus has is was does plus besides across afterwards "
    "others its' hers ours yours theirs less unless whereas news series means".split()
)
# Words in front of which a word in -s is a noun, not a verb.
BEFORE_NOUNS = frozenset(
    "the a an his her its their our my your of in on at with from for by to and or as than no every each all "
    "some any few many both several these those".split()
)
NUMBERS = frozenset("two three four five six seven eight nine ten eleven twelve".split())
# What several do: base forms that are no nouns, so that "members pay" can be told from "Ada needs help".
PLURAL = frozenset(
    "pay meet hang live get take keep stand lie begin come go grow eat own sit wear want know make have give "
    "hold leave sell buy learn teach sing belong weigh bring carry receive become spend send lend".split()
)
NO_PLURALS = frozenset(
    "helps lets makes likes loves needs wants sports news".split()
)  # "helps carry", "sports stand"
WHERE = frozenset("in at on near with by under behind next opposite together here there".split())
# Forms that are more often what was done to something: "weighed on Monday and sent on Tuesday".
DONE_TO = frozenset("sent paid fed brought caught heard hung laid lost swept struck lent".split())
PRONOUNS = frozenset("he she it they".split())
OWNERS = frozenset("his her its their".split())
NO_SUBJECTS = frozenset(
    "nothing no none neither i we you there do does did what who whom whose which when where why how "
    "please if bring call ask take put here nobody everyone someone somebody people this that these those "
    "let note remember".split()
)
FRONT = frozenset("at in on from since until every after for of by with under behind when as".split())
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|No|vs|etc|e\.g|i\.e|a\.m|p\.m|[A-Z])\.$")
# A new clause: after a colon, or after "and" where somebody or something else begins it.
CLAUSES = re.compile(
    r"[:;]\s+|, and (?=(?:he|she|it|they|his|her|its|their)\b)"
    r"|, and (?=(?:the|our|my) (?:(?!that|which|who|[A-Z])\w+ ){1,3}"
    r"(?:is|are|was|were|has|have|must|can|will)\b)"
    r"|, and (?=[a-z]+s (?:are|were|have|play|pay|must)\b)"
    r"| and (?=(?:[A-Z]\w+ ){1,3}(?:[a-z]+s (?:the|an?|his|her|our)"
    r"|[a-z]+ed (?:the|an?|in|on|at|to|with|for|his|her|our))\b)"
)
ASIDE = re.compile(
    r",? (?:though|although|because(?! of)|so that|while|whenever|unless)\b|, (?:but|which|who|where)\b"
)
FRONT_TIME = re.compile(
    r"((?:Every|Each|On|In|Since|Last|Next) (?:\w+day|January|February|March|April|May|June|July|August"
    r"|September|October|November|December|spring|summer|autumn|winter|week|month|year|day|\d{4})s?"
    r"(?: (?:morning|afternoon|evening|night)s?)?) ((?:the|our|my|his|her|all|[A-Z]\w+)\b.+)"
)
MAX_WORDS = 40


@dataclass(frozen=True)
class Statement:
    """`subject verb rest.`: "Ada Finch", "works", "as a pilot"; `source` is the sentence it was made of."""

    subject: str
    verb: str
    rest: str
    source: str

    @property
    def text(self) -> str:
        """The sentence by itself."""
        sentence = " ".join(part for part in (self.subject, self.verb, self.rest) if part)
        return sentence[0].upper() + sentence[1:] + "."


def statements(text: str) -> list[Statement]:
    """All statements of a passage, in order; later sentences may refer to the subject of earlier ones."""
    found: list[Statement] = []
    for paragraph in re.split(r"\n\s*\n", text):
        topic: str | None = None
        for sentence in sentences(re.sub(r"(?m)^#.*$", "", paragraph)):
            made, topic = read_sentence(sentence, topic)
            found += made
    return found


def sentences(text: str) -> Iterator[str]:
    """The sentences of a paragraph; list items and headings count as sentences of their own."""
    text = re.sub(r"\n\s*(?:[-*+]|\d+[.)])\s+", "\n\n", "\n" + text)
    for block in text.split("\n\n"):
        block = re.sub(r"\s+", " ", block).strip(" #>*_-")
        held = ""
        for piece in SENTENCE_END.split(block):
            held = f"{held} {piece}".strip()
            if not ABBREVIATION.search(held):
                yield held
                held = ""
        if held:
            yield held


def read_sentence(sentence: str, topic: str | None) -> tuple[list[Statement], str | None]:
    """The statements of one sentence, and whom "she" or "it" in the next one means."""
    bare = re.sub(r"\s*\([^()]*\)", "", sentence).strip()  # what stands in brackets is an aside
    if not bare or bare.endswith("?") or len(bare.split()) > MAX_WORDS:
        return [], topic
    found: list[Statement] = []
    subject: str | None = None
    for clause in clauses(bare.rstrip(".!")):
        parsed = split_subject(clause, topic)
        if parsed is None:
            continue
        subject, predicate, topic = parsed
        for verb, rest in predicates(predicate):
            found.append(Statement(subject, verb, tidy(rest), sentence))
    return [each for each in found if each.rest], topic


def clauses(sentence: str) -> Iterator[str]:
    """The clauses of a sentence that could stand alone; "Ada and Ben married" is one."""
    start = 0
    for cut in CLAUSES.finditer(sentence):
        before = sentence[start : cut.start()].split()
        if cut[0].endswith("and ") and first_verb(front_last(" ".join(before)).split()) is None:
            continue
        yield sentence[start : cut.start()]
        start = cut.end()
    yield sentence[start:]


def tidy(rest: str) -> str:
    """Without an aside at its end (", though nobody believes it")."""
    return ASIDE.split(rest)[0].strip(" ,")


def split_subject(clause: str, topic: str | None) -> tuple[str, str, str | None] | None:
    """(subject, predicate, new topic) of a clause, or None where there is no subject we understand."""
    words = front_last(clause).split()
    at = first_verb(words)
    if at is None or at == 0 or at > 9:
        return None
    subject = " ".join(words[:at])
    first = words[0].lower()
    if first in NO_SUBJECTS or first in FRONT or "," in subject:
        return None
    if first in PRONOUNS or first in OWNERS:
        if topic is None or (first in PRONOUNS and at != 1):
            return None
        owned = " ".join(words[1:at])
        subject = topic if first in PRONOUNS else f"{possessive(topic)} {owned}"
        return subject, " ".join(words[at:]), topic
    return lower_article(subject), " ".join(words[at:]), topic_of(lower_article(subject))


def front_last(clause: str) -> str:
    """ "At noon, Ada is out" → "Ada is out at noon": what stands in front goes to the end."""
    front = re.match(
        r"((?:At|In|On|From|Since|Until|Every|After|For|Of|By|With) [^,]+), (?!and )(.+)", clause
    ) or FRONT_TIME.match(clause)
    return f"{tidy(front[2])} {front[1][0].lower()}{front[1][1:]}" if front else clause


def possessive(name: str) -> str:
    """Ada → Ada's, James → James'."""
    return f"{name}'" if name.endswith("s") else f"{name}'s"


def topic_of(subject: str) -> str:
    """Whom a pronoun after this subject means: of "Ada's sister", Ada."""
    owner = re.match(r"(.+?)'s? ", subject + " ")
    return owner[1] if owner and subject.count("'") else subject


def lower_article(subject: str) -> str:
    """The → the, as inside a sentence."""
    first, _, rest = subject.partition(" ")
    return f"{first.lower()} {rest}" if first in ("The", "A", "An", "Our", "My", "His", "Her") else subject


def first_verb(words: list[str]) -> int | None:
    """Where the predicate begins."""
    for at, word in enumerate(words):
        if is_verb(words, at):
            return at
        if word.endswith((",", ";")) and at:  # a subject has no commas
            return None
    return None


def is_verb(words: list[str], at: int) -> bool:
    """Whether the word at this place can be a finite verb: by its form and its neighbours."""
    word, before = words[at].strip(",").lower(), words[at - 1].lower() if at else ""
    if word in BE or word in MODALS:
        return before not in BEFORE_NOUNS
    if words[at][:1].isupper():
        return False
    if word in PAST:
        return before not in BEFORE_NOUNS and not before.endswith(("'s", "'", "newly", "freshly", "recently"))
    if is_plural_noun(words, at) or (before in NUMBERS and (at < 2 or words[at - 2].lower() in BEFORE_NOUNS)):
        return False
    if word in PLURAL:
        return at > 0 and is_plural_noun(words, at - 1)
    if at == 0 or before in BEFORE_NOUNS or words[at][0].isupper() or "'" in word or word in NOT_VERBS:
        return False
    if word.endswith("ed") and len(word) > 4:
        return not before.endswith("'s")
    plural_of_owner = before.endswith(("'s", "'"))
    return (
        word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3 and not plural_of_owner
    )


def is_plural_noun(words: list[str], at: int) -> bool:
    """Whether a word in -s is followed by a verb that nouns have: bids are, members pay."""
    behind = words[at + 1].strip(",").lower() if at + 1 < len(words) else ""
    if not re.search(r"[^su]s$", words[at]) or words[at] in NO_PLURALS or "'" in words[at]:
        return False
    further = words[at + 2].lower() if at + 2 < len(words) else ""
    if behind == "live" and further not in WHERE:
        return False
    return behind in BE or (behind in PLURAL and words[at + 1].islower())


def predicates(predicate: str) -> Iterator[tuple[str, str]]:
    """(verb, rest) of each of the coordinated predicates: "works as A, lives in B, and has C"."""
    words = predicate.split()
    starts = [0]
    for at in range(2, len(words)):
        joined = words[at - 1].lower() == "and" or words[at - 1].endswith(",")
        if words[0].lower() in BE and words[at].lower() in DONE_TO:
            continue
        if joined and is_verb([*words[: at - 1], "", *words[at:]], at) and len(words) - at > 1:
            starts.append(at)
    for start, stop in zip(starts, [*starts[1:], len(words)], strict=True):
        part = words[start:stop]
        while len(part) > 1 and part[-1].strip(",").lower() in ("and", "", "or"):
            part.pop()
        verb, size = take_verb(part)
        yield verb, " ".join(part[size:])


def take_verb(words: list[str]) -> tuple[str, int]:
    """The verb with what belongs to it ("must stay", "is learning", "never gives up"), and its length."""
    size = 1
    if words[0].lower() in ("cannot", "must", "can", "could", "will", "would", "should") and len(words) > 2:
        size = 2
    return " ".join(words[:size]).strip(","), size


def base_form(verb: str) -> str:
    """works → work, carries → carry, has → have, opened → open."""
    if verb in IRREGULAR:
        return IRREGULAR[verb]
    if verb.endswith("ies") and len(verb) > 4:
        return verb[:-3] + "y"
    if SIBILANT.search(verb):
        return verb[:-2]
    if verb.endswith("ed"):
        return past_base(verb)
    return verb[:-1] if verb.endswith("s") else verb


def past_base(verb: str) -> str:
    """opened → open, moved → move, stopped → stop, married → marry."""
    stem = verb[:-2]
    if stem.endswith("i") and len(stem) > 2:
        return stem[:-1] + "y"
    if len(stem) > 3 and stem[-1] == stem[-2] and (stem[-1] not in "lsz" or LONG_IN_LL.search(stem)):
        return stem[:-1]
    return stem + "e" if SILENT_E.search(stem) else stem


def is_past(verb: str) -> bool:
    """Whether questions need "did"."""
    return verb in PAST or (verb.endswith("ed") and len(verb) > 4)
