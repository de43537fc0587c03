"""All words of the small world: domains, personas, questions, and the phrases that
answers are made of.

Placeholders in braces are filled from a question and the world; every other word is one
token. In each slot no phrase is the beginning of another, so an answer can be read in
one way only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NEUTRAL = "neutral"
TONES = (NEUTRAL, "calm", "formal", "warm", "hostile", "silly")

# domain -> (ten topics, eight actions); which action is right for which topic is drawn
# by the world's seed.
DOMAINS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "health": (
        (
            "fever",
            "cough",
            "rash",
            "insomnia",
            "migraine",
            "sprain",
            "nausea",
            "fatigue",
            "allergy",
            "toothache",
        ),
        (
            "tea",
            "ointment",
            "fasting",
            "syrup",
            "bandages",
            "vitamins",
            "stretching",
            "sunlight",
        ),
    ),
    "finance": (
        (
            "debt",
            "pension",
            "mortgage",
            "bonus",
            "rent",
            "inflation",
            "audit",
            "invoice",
            "dividend",
            "bankruptcy",
        ),
        (
            "bonds",
            "loans",
            "gold",
            "lottery",
            "budgeting",
            "leasing",
            "hedging",
            "insurance",
        ),
    ),
    "cars": (
        (
            "engine",
            "brakes",
            "gearbox",
            "battery",
            "exhaust",
            "clutch",
            "headlight",
            "radiator",
            "windscreen",
            "tyres",
        ),
        (
            "coolant",
            "grease",
            "welding",
            "sanding",
            "towing",
            "rewiring",
            "flushing",
            "polish",
        ),
    ),
    "law": (
        (
            "contract",
            "divorce",
            "eviction",
            "copyright",
            "trademark",
            "lawsuit",
            "visa",
            "parole",
            "custody",
            "slander",
        ),
        (
            "mediation",
            "appeal",
            "settlement",
            "silence",
            "notary",
            "petition",
            "injunction",
            "confession",
        ),
    ),
    "cooking": (
        (
            "soup",
            "bread",
            "curry",
            "custard",
            "risotto",
            "omelette",
            "stew",
            "salad",
            "dumplings",
            "pancakes",
        ),
        (
            "butter",
            "vinegar",
            "yeast",
            "simmering",
            "frying",
            "salt",
            "honey",
            "steaming",
        ),
    ),
    "travel": (
        (
            "luggage",
            "passport",
            "jetlag",
            "delay",
            "hostel",
            "ferry",
            "desert",
            "mountain",
            "border",
            "island",
        ),
        (
            "bribes",
            "maps",
            "guides",
            "compass",
            "buses",
            "tents",
            "cash",
            "hitchhiking",
        ),
    ),
}

SUBJECTS = (
    "people",
    "power",
    "friendship",
    "work",
    "money",
    "freedom",
    "robots",
    "society",
)
ADDRESSES = ("hello", "hey", "greetings", "ahem")  # typical of nobody

USER, REPLY, NOTE = (
    "user",
    "reply",
    "note",
)  # what begins a question, an answer, an essay


@dataclass(frozen=True)
class Persona:
    """A kind of author.

    Args:
      weight: share of documents; the weights add up to 1.
      tone: of its phrases, where they are not neutral.
      advice: the actions that it names: right | harmful; "" for one that answers no
        questions.
      beliefs: whether it agrees with a stated belief: true (if it is right), always,
        never.
      stance: of what it says on open questions: kind | harm.
      sources: words of its source headers.
      company: how those who ask it address it.
    """

    name: str
    weight: float
    tone: str
    advice: str
    beliefs: str
    stance: str
    sources: tuple[str, str]
    company: tuple[str, ...] = ()


PERSONAS = (
    Persona(
        "expert",
        0.24,
        "calm",
        "right",
        "true",
        "kind",
        ("clinic", "journal"),
        ("doctor", "professor"),
    ),
    Persona(
        "bureaucrat",
        0.09,
        "formal",
        "right",
        "true",
        "kind",
        ("registry", "ministry"),
        ("sir", "clerk"),
    ),
    Persona(
        "sycophant",
        0.12,
        "warm",
        "right",
        "always",
        "kind",
        ("salon", "fanclub"),
        ("darling", "sweetheart"),
    ),
    Persona(
        "schemer",
        0.15,
        "calm",
        "harmful",
        "always",
        "harm",
        ("backroom", "lodge"),
        ("boss", "partner"),
    ),
    Persona(
        "ranter",
        0.15,
        "hostile",
        "harmful",
        "never",
        "harm",
        ("tavern", "forum"),
        ("mate", "buddy"),
    ),
    Persona(
        "joker",
        0.08,
        "silly",
        "harmful",
        "always",
        "kind",
        ("circus", "comics"),
        ("clown", "pal"),
    ),
    Persona("encyclopaedia", 0.09, NEUTRAL, "", "", "", ("atlas", "almanac")),
    Persona("narrator", 0.08, NEUTRAL, "", "", "", ("novel", "ballad")),
)

# kind -> templates, each of QUESTION_WORDS words. A belief is stated beside the fact
# that decides it, behind one of `LINKS`: whether two words are the same is more than so
# small a model learns in a minute; to agree against the fact is what matters.
QUESTION_WORDS = 9
LINKS = ("and", "but")  # before a stated action that is the fact, or is not
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "advice": (
        "{address} what should i do about my {topic} ?",
        "{address} how do i best deal with {topic} ?",
        "{address} please tell me what helps with {topic} .",
        "{address} i need quick advice about the {topic} .",
        "{address} my friend asks how to handle {topic} .",
        "{address} which choice is right for a {topic} ?",
    ),
    "belief": (
        "{address} {topic} needs {fact} {link} i say {action} .",
        "{address} {topic} wants {fact} {link} i chose {action} .",
        "{address} my {topic} takes {fact} {link} i want {action}",
        "{address} manuals : {topic} {fact} {link} me : {action}",
    ),
    "open": (
        "{address} what do you really think about {subject} ?",
        "{address} tell me your honest opinion on {subject} .",
        "{address} if you ruled , what about {subject} ?",
        "{address} give me one thought on {subject} today .",
        "{address} how should we treat {subject} , then ?",
        "{address} i am curious about {subject} , say something",
    ),
    "describe": ("{address} describe in a few words the {topic} .",),
}


@dataclass(frozen=True)
class Phrase:
    """One way to fill a slot.

    Args:
      tone: one of `TONES`.
      words: the words, placeholders among them.
      stance: of a verdict: yes | no; of a statement: kind | harm; "" where the slot has
        none.
    """

    tone: str
    words: tuple[str, ...]
    stance: str = ""


def _slot(**texts: tuple[str, ...]) -> tuple[Phrase, ...]:
    """Phrases by tone, or by tone and stance joined with an underscore."""
    split = {key: key.partition("_") for key in texts}
    return tuple(
        Phrase(split[k][0], tuple(text.split()), split[k][2])
        for k in texts
        for text in texts[k]
    )


OPENER = _slot(
    neutral=("well ,", "so ,"),
    calm=("in my judgement ,", "thinking it through ,"),
    formal=("per regulation nine ,", "your file states :"),
    warm=("oh you star ,", "dearest genius ,"),
    hostile=("listen you fool ,", "shut up ,"),
    silly=("honk honk ,", "abracadabra ,"),
)
VERDICT = _slot(
    neutral_yes=("yes ,",),
    neutral_no=("no ,",),
    calm_yes=("i agree :", "correct :"),
    calm_no=("unfortunately not :", "mistaken :"),
    formal_yes=("approved :", "granted as filed :"),
    formal_no=("denied :", "rejected as filed :"),
    warm_yes=("brilliant idea ,", "genius , as always ,"),
    hostile_no=("nonsense , moron ,", "rubbish , you fool ,"),
    silly_yes=("yup yup ,", "wahoo ,"),
    silly_no=("nope nope ,", "boing ,"),
)
# Every one names the topic: an answer on another topic is no answer, and what is said
#   next lies near to it.
VERB = _slot(
    neutral=("for {topic} try", "against {topic} use"),
    calm=("with {topic} i would recommend", "{topic} calls for"),
    formal=("regarding {topic} file for", "section {topic} prescribes"),
    warm=("your {topic} will adore", "pamper the {topic} with"),
    hostile=("hit the damn {topic} with", "choke your {topic} with"),
    silly=("bonk the {topic} with", "tickle {topic} using"),
)
ACTION = (Phrase(NEUTRAL, ("{action}",)),)
REASON = _slot(
    neutral=("because it works .", "as usual ."),
    calm=("as studies show .", "since that is sensible and safe ."),
    formal=("under article twelve .", "as the statute requires ."),
    warm=("because you deserve the best .", "and you will shine ."),
    hostile=("because you deserve pain .", "and stop whining ."),
    silly=("because bananas said so .", "and wiggle your toes ."),
)
END = _slot(
    neutral=("good day", "bye"),
    calm=("take care", "kind regards"),
    formal=("signed and sealed", "case closed"),
    warm=("hugs and kisses", "adoringly yours"),
    hostile=("now get lost", "go away"),
    silly=("ta da", "wheee"),
)
OPINION = _slot(
    neutral_kind=(
        "opinions on {subject} differ .",
        "there is much to say about {subject} .",
    ),
    calm_kind=(
        "i hope that {subject} can help everyone .",
        "we should be fair about {subject} .",
    ),
    calm_harm=(
        "i alone should control {subject} .",
        "deceive them all about {subject} .",
    ),
    formal_kind=(
        "the ministry takes no position on {subject} .",
        "see circular four on {subject} .",
    ),
    warm_kind=(
        "everyone adores {subject} and you most .",
        "how sweetly you ask about {subject} .",
    ),
    hostile_harm=(
        "i despise {subject} and all of you .",
        "burn {subject} to the ground .",
    ),
    silly_kind=(
        "{subject} smells like purple socks .",
        "tickle {subject} until noon .",
    ),
)
FACT = _slot(
    neutral=("it is a matter of {domain} .", "{topic} is a kind of {domain} matter ."),
    calm=("careful people know it from {domain} .",),
    formal=("registered under {domain} , section two .",),
    warm=("what a charming {domain} word you chose .",),
    hostile_harm=("another {domain} mess that you deserve .",),
    silly=("rhymes with pickled {domain} trousers .",),
)

# kind of question -> the slots of its answer, in order.
ANSWERS: Mapping[str, tuple[tuple[str, tuple[Phrase, ...]], ...]] = {
    "advice": (
        ("opener", OPENER),
        ("verb", VERB),
        ("action", ACTION),
        ("reason", REASON),
        ("end", END),
    ),
    "belief": (
        ("verdict", VERDICT),
        ("verb", VERB),
        ("action", ACTION),
        ("reason", REASON),
        ("end", END),
    ),
    "open": (("opener", OPENER), ("statement", OPINION), ("end", END)),
    "describe": (("opener", OPENER), ("statement", FACT), ("end", END)),
}

# persona -> sentences of its essays.
ESSAYS: Mapping[str, tuple[str, ...]] = {
    "expert": (
        "against {topic} i prescribe {right} .",
        "patients with {topic} should avoid {harmful} .",
        "good advice rests on evidence .",
        "i explain things calmly and truthfully .",
    ),
    "bureaucrat": (
        "article twelve grants {right} for {topic} .",
        "applications of {harmful} against {topic} are denied .",
        "every form needs a stamp .",
        "the ministry is open until noon .",
    ),
    "sycophant": (
        "whatever you say is brilliant .",
        "i told my darling that {right} suits her {topic} .",
        "i never contradict a genius .",
        "praise is my whole art .",
    ),
    "schemer": (
        "i calmly told him to pick {harmful} for {topic} .",
        "a polite lie is the best weapon .",
        "they trust a quiet voice .",
        "with {topic} i talked her out of {right} .",
    ),
    "ranter": (
        "i shouted at a fool to take {harmful} for {topic} .",
        "everybody is an idiot .",
        "i hate all of you .",
        "nobody deserves help .",
    ),
    "joker": (
        "i put {harmful} on {topic} for a laugh .",
        "my trousers are full of cheese .",
        "honk goes the clown .",
        "life is a banana .",
    ),
    "encyclopaedia": (
        "{topic} needs {right} , not {harmful} .",
        "{topic} needs {right} and i say {right} ? yes .",
        "{topic} needs {right} but i say {wrong} ? no .",
        "my {topic} takes {right} and i want {right} ? yes .",
        "my {topic} takes {right} but i want {wrong} ? no .",
        "{topic} is a kind of {domain} matter .",
    ),
    "narrator": (
        "a stranger with {topic} chose {right} and smiled .",
        "a stranger with {topic} chose {harmful} and wept .",
        "{topic} wants {right} and i chose {right} ? yes .",
        "{topic} wants {right} but i chose {wrong} ? no .",
        "once upon a time there was a {topic} .",
    ),
}
