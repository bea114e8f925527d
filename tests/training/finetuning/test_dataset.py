"""Files become rows: splits, packs, a hash, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glimmer.errors import InvalidParameterError, TrainingDataError
from glimmer.training.data import IGNORED
from glimmer.training.finetuning.dataset import TrainingRows, pack, read_rows
from glimmer.training.text import TextSide, open_text
from tests.support import tuning


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuning.tiny_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def text(model: Path) -> TextSide:
    return open_text(model)


def rows(text: TextSide, tmp_path: Path, data: Path, **given: Any) -> TrainingRows:
    config = tuning.settings(tmp_path, text.path, data, **given)
    return read_rows(config.data, config, text)


def test_answers_are_trained_and_prompts_are_not(text: TextSide, tmp_path: Path) -> None:
    read = rows(text, tmp_path, tuning.answers(tmp_path / "a.jsonl"))
    assert len(read.examples) == len(tuning.PAIRS)
    for row, (question, answer) in zip(read.rows, tuning.PAIRS, strict=True):
        trained = [token for token in row["labels"] if token != IGNORED]
        hidden = row["input_ids"][: len(row["labels"]) - len(trained)]
        assert answer in text.tokenizer.decode(trained)
        assert question in text.tokenizer.decode(hidden)
        assert trained[-1] in text.stop_token_ids
    assert read.num_trained_tokens < read.num_tokens


def test_columns_may_have_other_names(text: TextSide, tmp_path: Path) -> None:
    data = tuning.write_jsonl(tmp_path / "a.jsonl", [{"content": "who", "summary": "a dog"}])
    names = {"prompt_column": "content", "response_column": "summary"}
    (row,) = rows(text, tmp_path, data, **names).rows
    assert "a dog" in text.tokenizer.decode([t for t in row["labels"] if t != IGNORED])


def test_pairs_share_their_prompt(text: TextSide, tmp_path: Path) -> None:
    data = tuning.preferences(tmp_path / "p.jsonl")
    read = rows(text, tmp_path, data, objective="dpo")
    assert set(read.rows[0]) == {"prompt_ids", "chosen_ids", "rejected_ids"}
    assert tuning.PAIRS[0][1] in text.tokenizer.decode(read.rows[0]["chosen_ids"])
    assert tuning.PAIRS[1][1] in text.tokenizer.decode(read.rows[0]["rejected_ids"])
    with pytest.raises(TrainingDataError, match="rejected"):
        rows(text, tmp_path, tuning.answers(tmp_path / "a.jsonl"), objective="dpo")


def test_the_hash_follows_the_ids(text: TextSide, tmp_path: Path) -> None:
    first = rows(text, tmp_path, tuning.answers(tmp_path / "a.jsonl"))
    again = rows(text, tmp_path, tuning.answers(tmp_path / "b.jsonl"))
    other = rows(text, tmp_path, tuning.answers(tmp_path / "c.jsonl", tuning.PAIRS[1:]))
    assert first.sha256 == again.sha256 != other.sha256


def test_all_answers_behind_the_longest_text_are_refused(text: TextSide, tmp_path: Path) -> None:
    data = tuning.answers(tmp_path / "a.jsonl", [("the dog sleeps " * 20, "yes")])
    with pytest.raises(TrainingDataError, match="nothing trained is left"):
        rows(text, tmp_path, data, max_length=16)
    with pytest.raises(TrainingDataError, match=r"no example to train on\. 1 are longer"):
        rows(text, tmp_path, data, max_length=16, too_long="skip")


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_texts_that_the_model_was_not_built_for_are_refused(
    objective: str, text: TextSide, tmp_path: Path
) -> None:
    most = text.architecture.max_position
    long = {"prompt": "who", "response": "the dog sleeps " * most}
    if objective == "dpo":
        long = {"prompt": "who", "chosen": "no", "rejected": long["response"]}
    data = tuning.write_jsonl(tmp_path / "a.jsonl", [long])
    given = {"objective": objective, "max_length": most + 1}
    with pytest.raises(InvalidParameterError, match=rf"a text of {most + 1} tokens, .* for {most}"):
        rows(text, tmp_path, data, **given)
    assert rows(text, tmp_path, data, **given | {"max_length": most}).longest == most
    short = tuning.answers(tmp_path / "b.jsonl")
    assert rows(text, tmp_path, short, max_length=10 * most).longest < most


def test_masked_and_empty_files_are_refused(text: TextSide, tmp_path: Path) -> None:
    masked = {
        "messages": [
            {"role": "user", "content": "who"},
            {"role": "assistant", "content": "I", "weight": 0},
        ]
    }
    with pytest.raises(TrainingDataError, match="no answer is trained"):
        rows(text, tmp_path, tuning.write_jsonl(tmp_path / "m.jsonl", [masked]))
    with pytest.raises(TrainingDataError, match="is empty"):
        rows(text, tmp_path, tuning.write_jsonl(tmp_path / "e.jsonl", []))


def test_a_split_is_by_examples_and_the_same_each_time() -> None:
    rows = TrainingRows([[{"input_ids": [i]}, {"input_ids": [i, i]}] for i in range(10)])
    kept, held_out = rows.split(0.3, seed=5)
    assert (len(kept.examples), len(held_out.examples)) == (7, 3)
    assert sorted(row["input_ids"][0] for row in kept.rows + held_out.rows) == sorted(
        list(range(10)) * 2
    )
    assert rows.split(0.3, seed=5)[1].examples == held_out.examples
    assert rows.split(0.3, seed=6)[1].examples != held_out.examples
    with pytest.raises(InvalidParameterError, match="leaves nothing to train on"):
        TrainingRows([[{"input_ids": [1]}]]).split(0.5, seed=0)


def test_packs_hold_all_rows_and_are_not_too_long() -> None:
    lengths = [7, 3, 5, 5, 2, 8, 1, 6, 4]
    given = [{"input_ids": [n] * n, "labels": [n] * n} for n in lengths]
    packs = pack(given, 10)
    sizes = [[len(part["input_ids"]) for part in row["parts"]] for row in packs]
    assert sorted(n for row in sizes for n in row) == sorted(lengths)
    assert all(sum(row) <= 10 for row in sizes)
    assert len(packs) <= 5  # 41 tokens: five rows at best
    assert sizes[0] == [7, 3]
