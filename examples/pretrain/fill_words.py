"""How many words the engine fills in right: words of held-out texts, one at a time, are a [MASK].

Words of one token each, for a blank does not say how long it is. "told" is the likeliest token of
all but the end; "by itself" is a fill that ends where the model ends it, and is right if it is that
word and nothing else. Beside them the guess that knows frequencies alone: the commonest of these
words in the training texts.

    python examples/pretrain/fill_words.py MODEL FOLDER

FOLDER has train.jsonl and held_out.jsonl, as stdlib_texts.py writes them.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import glimmer

_NUM_WORDS = 400
_AROUND = 400
"""Characters before and behind the word that the model is shown."""
_WORD = re.compile(r"(?<= )[A-Za-z]+(?=[ .,])")


def main(model: str, folder: Path) -> None:
    llm = glimmer.LLM(model)
    tokenizer = llm.model.tokenizer
    counts = Counter(w for text in texts(folder / "train.jsonl") for w in _WORD.findall(text))
    commonest = counts.most_common(1)[0][0]
    blanks = list(words(folder / "held_out.jsonl", lambda word: len(tokenizer.encode(word)) == 1))
    greedy = glimmer.SamplingParams(temperature=0, max_new_tokens=8)
    never = dict.fromkeys(llm.model.stop_token_ids, -100.0)
    one_token = replace(greedy, max_new_tokens=1, logit_bias=never)
    for name, params in (("told", one_token), ("by itself", greedy)):
        fills = [llm.infill(f"{a}[MASK]{b}", params).fills[0].text.strip() for a, _, b in blanks]
        right = sum(fill == word for fill, (_, word, _) in zip(fills, blanks, strict=True))
        print(f"{name}: {right} of {len(blanks)} words right ({right / len(blanks):.1%})")
    guessed = sum(word == commonest for _, word, _ in blanks)
    print(f"always {commonest!r}: {guessed} right ({guessed / len(blanks):.1%})")


def texts(file: Path) -> Iterator[str]:
    for line in file.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)["text"]


def words(file: Path, is_taken: Callable[[str], bool]) -> Iterator[tuple[str, str, str]]:
    """What stands before a word, the word, and what stands behind it; the same each time."""
    rng = random.Random(1)
    every = [(text, match) for text in texts(file) for match in _WORD.finditer(text)]
    found = [(text, match) for text, match in every if is_taken(match[0])]
    for text, match in rng.sample(found, min(_NUM_WORDS, len(found))):
        start, end = match.span()
        yield text[max(0, start - _AROUND) : start], match[0], text[end : end + _AROUND]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
