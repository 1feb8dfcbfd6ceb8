"""Makes the keyboard's vocabulary from the Self-dialogue corpus and AOSP's word list.

    python scripts/keyboard_vocabulary.py -o pockmobile/keyboard/vocabulary.txt

Self-dialogue (Fainberg et al. 2018, BSD-3-Clause) says how often a word is used, AOSP's list
(Apache-2.0) how it is written, what is offensive, and what else people write.
"""

import argparse
import gzip
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pockmobile.keyboard.characters import is_digit, lower
from pockmobile.keyboard.tokenizer import UNKNOWN, tokenize
from pockmobile.keyboard.vocabulary import CLASSES, FIRST_OWN, NUM_OWN, Vocabulary
from scripts.keyboard_text import plain_message, split_writers
from scripts.realdata import data_path, load_nus_sms, load_self_dialogue

NUM_TOKENS: Final = 10_000
MOST_PER_WRITER: Final = 20
"""How often one writer's use of a word counts."""
LEAST_USES: Final = 12
"""Words that the corpus has less often give way to the most frequent ones of the list."""
_CHAT: Final = (
    "u ur r n k ya yea yeah yep yup nope nah hey hi hello haha hahaha hehe lol lmao rofl omg "
    "ok okay kk thx thanks ty pls plz cuz tmrw tonite 2nite 2day gr8 b4 l8r c gonna wanna "
    "gotta kinda sorta lemme gimme dunno outta im ill ive id dont cant wont didnt doesnt isnt "
    "thats whats theres youre msg msgs txt app apps pic pics ppl bf gf bff bro sis mum mom dad "
    "btw fyi idk imo tbh brb ttyl jk np ofc rn cya tho thru til gm gn bday xoxo aww ugh hmm "
    "oops yay wow duh meh eh ah oh asap nvm"
)
"""Forms of chat that all of English shares, chosen by hand: all are kept, however rare the
corpus has them. None is here because a corpus that measures personalisation has it."""


class Listed(NamedTuple):
    """A word of the list, as it is written; the more frequent the higher."""

    shown: str
    frequency: int
    is_offensive: bool


def main() -> int:
    """Writes the vocabulary and prints how much text it covers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    output: Path = parser.parse_args().output
    turns = list(load_self_dialogue())
    writers = split_writers(turns)
    counts = _counts([(t.writer, t.text) for t in turns], set(writers.train))
    listed = _aosp()
    entries = (*CLASSES, *_slots(), *_words(counts, listed))
    part = output.with_suffix(".part")
    part.write_text("\n".join(entries) + "\n", encoding="utf-8")
    part.replace(output)
    vocabulary = Vocabulary.load(output)
    for kind in ("train", "validation", "test"):
        chosen = set(getattr(writers, kind))
        _report(kind, [turn.text for turn in turns if turn.writer in chosen], vocabulary)
    _report("NUS SMS", [plain_message(message.text) for message in load_nus_sms()], vocabulary)
    return 0


def _report(kind: str, texts: Sequence[str], vocabulary: Vocabulary) -> None:
    tokens = [token for text in texts for token in tokenize(text)]
    num_unknown = vocabulary.encode(tokens).count(vocabulary.id(UNKNOWN))
    print(
        f"{kind}: {len(texts)} messages of {len(tokens) / len(texts):.1f} tokens, "
        f"{num_unknown / len(tokens):.2%} unknown"
    )


def _counts(texts: list[tuple[str, str]], writers: set[str]) -> Counter[str]:
    by_writer: dict[str, Counter[str]] = defaultdict(Counter)
    for writer, text in texts:
        if writer in writers:
            by_writer[writer].update(tokenize(text))
    total: Counter[str] = Counter()
    for own in by_writer.values():
        total.update({word: min(count, MOST_PER_WRITER) for word, count in own.items()})
    return Counter({word: count for word, count in total.items() if _is_word(word)})


def _is_word(token: str) -> bool:
    return token not in CLASSES and not any(map(is_digit, token))


def _aosp() -> dict[str, Listed]:
    """Returns the list by lower case; of two ways to write a word the more frequent.

    A word is offensive if one way to write it is that people use (frequency above 0).
    """
    path = data_path("words/aosp_en_US_wordlist.combined.gz")
    found: dict[str, Listed] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            fields = dict(f.partition("=")[::2] for f in line.strip().split(",") if "=" in f)
            if "word" not in fields or "not_a_word" in fields:
                continue
            offensive = "possibly_offensive" in fields or fields.get("flags") == "offensive"
            word = Listed(fields["word"], int(fields["f"]), offensive)
            other = found.get(lower(word.shown), word)
            better = max(word, other, key=lambda entry: entry.frequency)
            offensive = any(
                w.is_offensive and (w.frequency or w is better) for w in (word, other)
            )
            found[lower(word.shown)] = better._replace(is_offensive=offensive)
    return found


def _slots() -> list[str]:
    reserved = [f"<reserved:{number}>" for number in range(len(CLASSES), FIRST_OWN)]
    return [*reserved, *(f"<own:{number}>" for number in range(NUM_OWN))]


def _words(counts: Counter[str], listed: dict[str, Listed]) -> list[str]:
    """Returns the shown words by falling use, then those that only the list has."""
    room = NUM_TOKENS - FIRST_OWN - NUM_OWN
    allowed = {w for w in counts if not (w in listed and listed[w].is_offensive)}
    used = [w for w, n in counts.most_common() if n >= LEAST_USES and w in allowed]
    informal = [word for word in _CHAT.split() if tokenize(word) == [word]]
    frequent = sorted(listed.values(), key=lambda word: -word.frequency)
    others = [
        word.shown
        for word in frequent
        if not word.is_offensive and tokenize(word.shown) == [lower(word.shown)]
    ]
    chosen = dict.fromkeys(used[: room - len(informal)])
    chosen |= dict.fromkeys(informal)
    for word in (*map(lower, others), *allowed):
        if len(chosen) == room:
            break
        chosen[word] = None
    return [listed[word].shown if word in listed else word for word in chosen]


if __name__ == "__main__":
    sys.exit(main())
