"""An example as it is trained: every token, those that the loss counts highlighted."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from glimmer.tokenizers import Tokenizer
    from glimmer.training.data import Encoded
    from glimmer.training.data.checking import Shown

_TRAINED, _OTHER = "bold black on green", "dim"
# Of control tokens, which a text may also spell.
_CONTROL = " underline"
# Where there are no colours, these stand around what is trained.
_OPEN, _CLOSE = "⟦", "⟧"
_NEW_LINE = "↵"


def print_labels(shown: Shown, tokenizer: Tokenizer) -> None:
    """Write an example to standard output."""
    from rich.text import Text

    from glimmer.cli import terminal

    console = terminal.tables()
    in_colour = console.is_terminal and not console.no_color
    preference = shown.example.rejected is not None
    for place, sequence in enumerate(shown.sequences):
        what = ("chosen, ", "rejected, ")[place] if preference and place < 2 else ""
        console.print(
            Text(
                f"line {shown.example.line}: {what}{len(sequence.token_ids)} tokens, "
                f"{sequence.num_trained} trained",
                style="bold",
            )
        )
        console.print(labelled(sequence, tokenizer, in_colour), soft_wrap=True)
        console.print()


def labelled(sequence: Encoded, tokenizer: Tokenizer, in_colour: bool) -> Text:
    """The text of a sequence, harmless to a terminal; control tokens by their names."""
    from rich.text import Text

    from glimmer.training.data import IGNORED

    names = {token_id: token for token, token_id in tokenizer.special_tokens.items()}
    pairs = zip(sequence.token_ids, sequence.labels, strict=True)
    text = Text()
    runs = itertools.groupby(pairs, lambda pair: (pair[1] != IGNORED, pair[0] in names))
    was_trained = False
    for (trained, control), run in runs:
        ids = [token_id for token_id, _ in run]
        if control:
            said = "".join(names[i] for i in ids)
        else:
            said = b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", errors="replace")
        if not in_colour and trained != was_trained:
            text.append(_OPEN if trained else _CLOSE)
        was_trained = trained
        style = (_TRAINED if trained else _OTHER) + (_CONTROL if control else "")
        text.append(_printable(said), style=style if in_colour else "")
    if not in_colour and was_trained:
        text.append(_CLOSE)
    return text


def _printable(text: str) -> str:
    from glimmer.cli import terminal

    return terminal.printable(text).replace("\n", f"{_NEW_LINE}\n")
