"""A tokenizer.json of Hugging Face's ``tokenizers``, where it describes byte-level BPE.

The file is taken apart and not handed to the library as it is: the library matches the file's
special tokens in any text, and a user's text must not become one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from glimmer.errors import TokenizerError
from glimmer.tokenizers.byte_level_bpe import ByteLevelBPETokenizer
from glimmer.tokenizers.pre_tokenizers import PreTokenizer
from glimmer.tokenizers.text import refuse_pointer


def byte_level_bpe_from_json(data: bytes, what: str) -> ByteLevelBPETokenizer:
    """The tokenizer in a file's bytes; ``what`` names the file in errors.

    Normalisers other than none, and what the file would put before and after a text, are not looked
    at but refused or left to the chat template.

    Raises:
        TokenizerError: not such a file, a damaged one, or another kind of tokenizer.
    """
    refuse_pointer(data, what)
    try:
        file = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(
            f"{what} is not JSON ({error}); it is truncated or damaged: download it again"
        ) from error
    try:
        return _build(file)
    except TokenizerError as error:
        raise TokenizerError(f"{what}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise TokenizerError(
            f"{what} is not a tokenizer.json, or is damaged: {type(error).__name__} {error}"
        ) from error


def _build(file: Any) -> ByteLevelBPETokenizer:
    model = file["model"]
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"the model is {model['type']!r}; only byte-level BPE is read")
    for option in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise TokenizerError(f"the model has {option} {model[option]!r:.40}, which is not read")
    if file.get("normalizer"):
        raise TokenizerError(f"it normalises text ({file['normalizer'].get('type')!r})")
    vocab: dict[str, int] = dict(model["vocab"])
    added = {entry["id"]: entry for entry in file.get("added_tokens", ())}
    by_id: dict[int, str] = {token_id: token for token, token_id in vocab.items()}
    by_id.update({token_id: entry["content"] for token_id, entry in added.items()})
    count = len(by_id)
    if any(type(i) is not int for i in by_id) or sorted(by_id) != list(range(count)):
        raise TokenizerError(f"the ids of its {count} tokens are not 0 to {count - 1}")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return ByteLevelBPETokenizer(
        [by_id[i] for i in range(count)],
        merges,
        pre_tokenizer=_pre_tokenizer(file["pre_tokenizer"], bool(model.get("ignore_merges"))),
        control_ids=[i for i, entry in added.items() if entry["special"]],
        added_ids=[i for i, entry in added.items() if not entry["special"]],
    )


def _pre_tokenizer(steps: Mapping[str, Any], ignore_merges: bool) -> PreTokenizer:
    listed = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    kinds = [step["type"] for step in listed]
    if kinds[-2:] != ["Split", "ByteLevel"] or kinds[:-2] not in ([], ["Digits"]):
        raise TokenizerError(
            f"it cuts text by {', '.join(map(str, kinds))}; only Split and then ByteLevel is read, "
            "with Digits before them or not"
        )
    *digits, split, byte_level = listed
    if (
        split.get("invert")
        or split["behavior"] != "Isolated"
        or byte_level.get("add_prefix_space")
        or byte_level.get("use_regex", True)
        or not all(step["individual_digits"] for step in digits)
    ):
        raise TokenizerError("it cuts text in a way that is not read")
    return PreTokenizer(
        split["pattern"]["Regex"],
        individual_digits=bool(digits),
        ignore_merges=ignore_merges,
    )
