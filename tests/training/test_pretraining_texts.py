"""From files to rows: documents, tokenizer, sentences, packing. Without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimmer.errors import InvalidParameterError, ModelNotFoundError
from glimmer.families.chatglm.tokenizer import ChatGLMTokenizer
from glimmer.families.chatglm.tokenizer_training import MIN_VOCAB_SIZE, train_tokenizer
from glimmer.training.blank_infilling import PADDING, Objective
from glimmer.training.pretraining.config import PRESETS, PretrainConfig, load_pretrain_config
from glimmer.training.pretraining.corpus import (
    MIN_DOCUMENT_TOKENS,
    Corpus,
    SentenceMarks,
    TrainingRows,
    read_documents,
)
from glimmer.training.pretraining.measures import Score, to_metrics, unigram_score
from glimmer.training.pretraining.texts import (
    blank_tokens,
    encode,
    known_tokenizer,
    read_tokenizer,
    split_documents,
)

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    f"The {animal} sat on the {place}. It was {size}!\n\tThen  it went to sleep, on os.path {n}.\n"
    for n, animal in enumerate(("cat", "dog", "fox", "fish", "quick brown bird"))
    for place in ("mat", "lazy dog", "roof", "hill")
    for size in ("large", "very small", "old")
] + ["你好，世界！今天天气怎么样？人工智能助手可以回答问题。"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> ChatGLMTokenizer:
    return train_tokenizer(TEXTS, MIN_VOCAB_SIZE + 60, character_coverage=1.0)


def test_a_trained_tokenizer_is_of_chatglms_kind(tokenizer: ChatGLMTokenizer) -> None:
    for text in (*TEXTS, "unseen ß 字 text", "a\tb\n\n   c"):
        normal = unicodedata.normalize("NFKC", text)  # as ChatGLM-6B's has it
        assert tokenizer.decode(tokenizer.encode(text)).strip() == normal.strip()
    tokens = blank_tokens(tokenizer)
    ids = tokenizer.encode_blanks("The cat [MASK] on the mat.[gMASK]")
    assert ids.count(tokens.mask) == ids.count(tokens.gmask) == 1
    special = tokenizer.special_tokens
    assert [special[name] for name in ("<s>", "</s>", "<pad>")] == [1, 2, 3]
    assert tokenizer.encode("\n")[-1:] != tokenizer.encode("n")[-1:]
    assert len(tokenizer.encode("\t" + " " * 80 + "\n")) <= 5
    again = train_tokenizer(TEXTS, MIN_VOCAB_SIZE + 60, character_coverage=1.0)
    assert again.model_bytes == tokenizer.model_bytes


def test_a_tokenizer_does_not_depend_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a run may each train one, on machines with other numbers of cores."""
    from pydoc_data.topics import topics

    texts = list(topics.values())[:20]
    made = set()
    for cores in (1, 4):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        made.add(train_tokenizer(texts, MIN_VOCAB_SIZE + 400).model_bytes)
    assert len(made) == 1


def test_a_text_without_line_breaks_is_learnt_from() -> None:
    line = "人工智能助手可以回答问题。" * 4000  # 156 KB
    tokenizer = train_tokenizer([line, *TEXTS], MIN_VOCAB_SIZE + 60, character_coverage=1.0)
    assert len(tokenizer.encode("人工智能助手可以回答问题。")) <= 3


def test_what_cannot_be_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match=f"at least {MIN_VOCAB_SIZE}"):
        train_tokenizer(TEXTS, 300)
    with pytest.raises(InvalidParameterError, match="No tokenizer could be trained"):
        train_tokenizer([], 5000)
    with pytest.raises(ModelNotFoundError, match=r"no ice_text.model in"):
        read_tokenizer(tmp_path)


def test_documents_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second\n")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").write_bytes(b"\xff")
    (tmp_path / "deep").mkdir()
    lines = [{"body": "a"}, {"body": "line\u2028same"}, {"body": ""}]
    (tmp_path / "a.jsonl").write_text(
        "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    )
    (tmp_path / "deep" / "c.md").write_text("\ufeffthird")  # as editors of Windows begin a file
    (tmp_path / "deep" / "d.jsonl").write_text('\ufeff{"body": "fourth"}')
    found = list(read_documents([tmp_path, tmp_path / "b.txt"], "body"))
    assert found == ["a", "line\u2028same", "second\n", "third", "fourth", "second\n"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": 1}', "line 2, must be an object with text in 'text'"),
        ("x.jsonl", b'{"text": "a"}\n{"txt": "a"}', "it has 'txt'. Name the field"),
        ("x.jsonl", b"{", "line 1, is not JSON"),
        ("x.jsonl", b'{"text": "a\\ud800"}', "line 1, has half of a surrogate pair"),
        ("x.txt", b"caf\xe9", "byte 3 is 0xe9"),
        ("x.txt", "中文".encode("gb18030"), "iconv -f GB18030"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidParameterError, match=said):
        list(read_documents([tmp_path / name], "text"))
    with pytest.raises(ModelNotFoundError, match="no file or folder"):
        list(read_documents([tmp_path / "nothing"], "text"))


def test_sentences_end_where_they_end(tokenizer: ChatGLMTokenizer) -> None:
    marks = SentenceMarks.of(tokenizer)

    def sentences(text: str) -> list[str]:
        ids = np.array(tokenizer.encode(text))
        ends = [int(end) + 1 for end in np.flatnonzero(marks.mark(ids))]
        pieces = np.split(ids, ends)
        written = (b"".join(map(tokenizer.token_bytes, piece.tolist())) for piece in pieces)
        return [w.decode() for w in written if w]

    assert sentences("It sat on os.path 3. Then it went! Was it old? no end") == [
        " It sat on os.path 3.", " Then it went!", " Was it old?", " no end"
    ]  # fmt: skip
    assert sentences("one\ntwo") == [" one\n", "two"]
    assert sentences("你好！世界。天气") == [" 你好!", "世界。", "天气"]


def rows_of(tokenizer: ChatGLMTokenizer, texts: list[str], **values: Any) -> TrainingRows:
    objective = Objective()
    length = values.pop("row_length", 96)
    corpus = Corpus(encode(texts, tokenizer), SentenceMarks.of(tokenizer), objective, length)
    return TrainingRows(corpus, objective, blank_tokens(tokenizer), length, 3, **values)


def test_every_text_comes_once_in_a_pass(tokenizer: ChatGLMTokenizer) -> None:
    texts = [*TEXTS, " ".join(TEXTS[:20]), "x"]
    rows = rows_of(tokenizer, texts, seed=1)
    assert sorted(n for row in rows.packed for n in row) == list(range(len(rows.corpus.texts)))
    # Nothing is lost but what is too short.
    whole = np.concatenate(encode(texts[:-1], tokenizer))
    found = np.concatenate(rows.corpus.texts)
    assert len(whole) - MIN_DOCUMENT_TOKENS < len(found) <= len(whole)
    # The long one is cut where sentences end.
    assert [rows.corpus.sentence_ends(i)[-1] for i in range(60)] == [True] * 60
    made = [rows.row(i) for i in range(rows.rows_per_pass)]
    assert {len(row.token_ids) for row in made} == {96}
    assert sum(row.pieces.max() + 1 for row in made) == len(rows.corpus.texts)
    assert np.mean([np.count_nonzero(row.pieces != PADDING) for row in made]) > 0.6 * 96


def test_texts_that_are_all_too_short(tokenizer: ChatGLMTokenizer) -> None:
    marks = SentenceMarks.of(tokenizer)
    with pytest.raises(InvalidParameterError, match="texts that are held out hold no document of"):
        Corpus(encode(["x"], tokenizer), marks, Objective(), 96, name="texts that are held out")


def test_rows_of_single_spans_are_full(tokenizer: ChatGLMTokenizer) -> None:
    """A [gMASK] takes two tokens more than its text: no room is kept for other spans."""
    objective = Objective(mix={"gmask": 1})
    marks = SentenceMarks.of(tokenizer)
    corpus = Corpus(encode([" ".join(TEXTS)], tokenizer), marks, objective, 64)
    assert max(map(len, corpus.texts)) == 62
    rows = TrainingRows(corpus, objective, blank_tokens(tokenizer), 64, 3, seed=1)
    assert (
        max(np.count_nonzero(rows.row(i).pieces != PADDING) for i in range(len(rows.packed))) == 64
    )


def test_rows_depend_on_seed_and_number_alone(tokenizer: ChatGLMTokenizer) -> None:
    first, second = (rows_of(tokenizer, TEXTS, seed=1) for _ in range(2))
    count = first.rows_per_pass
    order = [5, 2 * count + 1, 0, count]  # in any order, as after a resume
    for number in order:
        assert first.row(number).token_ids.tolist() == second.row(number).token_ids.tolist()
    other = rows_of(tokenizer, TEXTS, seed=2)
    same = [first.row(i).token_ids.tolist() == other.row(i).token_ids.tolist() for i in range(5)]
    assert not any(same)
    passes = [
        sorted(first.row(i).token_ids.tobytes() for i in range(n * count, (n + 1) * count))
        for n in range(2)
    ]
    assert passes[0] != passes[1], "each pass has other blanks"


def test_a_guess_by_frequency(tokenizer: ChatGLMTokenizer) -> None:
    rows = rows_of(tokenizer, TEXTS, seed=1, kind="gmask")
    sample = [rows.row(i) for i in range(rows.rows_per_pass)]
    counts = rows.corpus.counts(tokenizer.vocab_size)
    score = unigram_score(sample, counts, rows.tokens.end)
    assert 0 < score.accuracy < 0.3
    # On the texts that it counts, it loses their entropy, or nearly so.
    share = counts[counts > 0] / counts.sum()
    assert score.loss == pytest.approx(-(share * np.log(share)).sum(), rel=0.1)
    assert score.perplexity == pytest.approx(np.exp(score.loss))
    uniform = unigram_score(sample, np.zeros(tokenizer.vocab_size, np.int64), rows.tokens.end)
    assert uniform.perplexity == pytest.approx(tokenizer.vocab_size)
    metrics = to_metrics({"mask": Score(1, 2.0, 0.5), "gmask": Score(3, 1.0, 1.0)})
    assert metrics["eval_loss"] == 1.25
    assert metrics["eval_mask_accuracy"] == 0.5


def config_of(tmp_path: Path, **values: Any) -> PretrainConfig:
    given = {"data": tmp_path / "texts", "output": tmp_path / "out", **values}
    return load_pretrain_config(None, given)


def test_documents_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{number:02}.txt").write_text(text + str(number))
    config = config_of(tmp_path, held_out_share=0.1)
    train, held_out = split_documents(config)
    assert len(held_out) == 6
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == len(TEXTS)
    assert split_documents(config) == (train, held_out)
    assert split_documents(config_of(tmp_path, held_out_share=0))[1] == []
    other = config_of(tmp_path, held_out=str(tmp_path / "texts" / "00.txt"))
    assert len(split_documents(other)[0]) == len(TEXTS)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("alone")
    with pytest.raises(InvalidParameterError, match="no text to train on"):
        split_documents(config_of(tmp_path, data=tmp_path / "one"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InvalidParameterError, match=r"empty.txt: there is no text to measure on"):
        split_documents(config_of(tmp_path, held_out=tmp_path / "empty.txt"))


def test_a_base_has_its_own_tokenizer(tmp_path: Path) -> None:
    from tests.test_export import folder

    glm = folder(tmp_path, "chatglm", "official")
    found = known_tokenizer(config_of(tmp_path, base=str(glm), row_length=256))
    assert found is not None
    assert found.model_bytes == (glm / "ice_text.model").read_bytes()
    named = known_tokenizer(config_of(tmp_path, tokenizer=glm))
    assert named is not None
    assert named.special_tokens == found.special_tokens
    with pytest.raises(InvalidParameterError, match=r"row_length is 257, but .* of 256 tokens"):
        known_tokenizer(config_of(tmp_path, base=str(glm), row_length=257))
    other = folder(tmp_path, "glm4_0414", "native")
    with pytest.raises(InvalidParameterError, match="goes on with ChatGLM-6B"):
        known_tokenizer(config_of(tmp_path, base=str(other)))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stepz": 1}, "no setting 'stepz'. The settings are data, output"),
        ({"data": []}, "data"),
        ({"steps": 0}, "steps: Input should be greater than or equal to 1"),
        ({"preset": "6B"}, "preset"),
        ({"hidden": 100, "heads": 3}, "a multiple of 4"),
        ({"base": "x", "layers": 2, "hidden": 8}, "has its own layers, hidden"),
        ({"base": "x", "preset": "10M"}, "base has its own preset"),
        ({"base": "x", "vocab_size": 900}, "base has its own vocab_size"),
        ({"tokenizer": "x", "vocab_size": 900}, "tokenizer has its own vocab_size"),
        ({"held_out": "x", "held_out_share": 0.1}, "held_out or held_out_share, not both"),
        ({"held_out_share": 0, "eval_every": 5}, "held_out_share is 0"),
        ({"mix": {"mask": float("inf")}}, "mix.mask: Input should be a finite number"),
        ({"warmup": float("inf")}, "warmup: Input should be a finite number"),
        ({"row_length": 512, "max_length": 256}, "may not exceed max_length"),
        ({"mix": {"mask": -1}}, "none below 0"),
        ({"mix": {"word": 1}}, "mix"),
        ({"masked_share": 2}, "masked_share must be above 0"),
    ],
)
def test_wrong_settings(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameterError, match=said):
        config_of(tmp_path, **values)


def test_a_config_that_was_told_in_full_is_allowed(tmp_path: Path) -> None:
    """As report.json has it."""
    for given in ({"base": "x"}, {"tokenizer": "x"}, {"held_out": "x"}):
        config = config_of(tmp_path, **given)
        assert load_pretrain_config(None, config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "pretrain").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_examples_are_allowed(path: Path) -> None:
    pytest.importorskip("yaml")
    assert load_pretrain_config(path).steps > 0


def test_settings_of_a_file(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    file = tmp_path / "config.yaml"
    file.write_text("data: texts\noutput: out\npreset: 10M\nlayers: 3\nmix: {mask: 1, gmask: 1}\n")
    file.write_text(file.read_text() + "mixed_precision: no\n")  # false, as YAML reads it
    config = load_pretrain_config(file, {"steps": 7, "output": "other"})
    assert config.mixed_precision == "no"
    assert (config.steps, config.output) == (7, Path("other"))
    assert config.size == PRESETS["10M"].model_copy(update={"layers": 3})
    assert config.objective.mix == {"mask": 1, "gmask": 1}
    file.write_text("- data")
    with pytest.raises(InvalidParameterError, match="must hold keys and values"):
        load_pretrain_config(file)
    file.write_text("output: [")
    with pytest.raises(InvalidParameterError, match="is not YAML"):
        load_pretrain_config(file)
    with pytest.raises(ModelNotFoundError, match="no configuration file"):
        load_pretrain_config(tmp_path / "nothing.yaml")
    with pytest.raises(InvalidParameterError, match="data: it is missing: Texts"):
        load_pretrain_config(None, {"output": "x"})


def test_the_documents_list_every_key_and_its_default() -> None:
    yaml = pytest.importorskip("yaml")
    page = (ROOT / "docs" / "pretraining.md").read_text(encoding="utf-8")
    table = page.partition("## Every key")[2]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \|$", table, re.MULTILINE)
    made = load_pretrain_config(None, {"data": "texts", "output": "out"})
    assert [name for name, _, _ in rows] == list(PretrainConfig.model_fields)
    for name, default, description in rows:
        field, value = PretrainConfig.model_fields[name], getattr(made, name)
        assert description == field.description, name
        if field.is_required() or value in (None, []):
            assert default.strip() == ("" if field.is_required() else "none"), name
        else:
            told = yaml.safe_load(default.strip().strip("`"))
            told = "no" if told is False and name == "mixed_precision" else told
            assert told == (list(value) if isinstance(value, tuple) else value), name


def test_the_texts_need_no_torch() -> None:
    modules = ("blank_infilling", "pretraining.config", "pretraining.corpus", "pretraining.texts",
               "pretraining.measures")  # fmt: skip
    statement = "; ".join(f"import glimmer.training.{name}" for name in modules)
    check = f"{statement}; import sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
