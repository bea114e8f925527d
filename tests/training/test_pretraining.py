"""Pre-training with torch: the network sees what it should, a run can be resumed, the engine fills
blanks with what comes of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glimmer import LLM, SamplingParams, load
from glimmer.cli.main import main
from glimmer.errors import InvalidParameterError, OutOfMemoryError, TrainingError, UsageError
from glimmer.training.blank_infilling import IGNORED, KINDS, Objective, corrupt, pack
from glimmer.training.pretraining.config import PretrainConfig, load_pretrain_config
from tests.support.reference import Network
from tests.training.test_blank_infilling import FIRST, TOKENS, VOCAB, network
from tests.training.test_pretraining_texts import TEXTS

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def chatglm() -> Any:
    """The network of the objective's tests, as the class that is trained."""
    from glimmer.hf.chatglm import ChatGLMConfig
    from glimmer.training.pretraining.network import BlankInfillingNetwork

    reference: Network = network()
    a = reference.a
    model = BlankInfillingNetwork(
        ChatGLMConfig(
            vocab_size=a.vocab_size, hidden_size=a.hidden_size, num_layers=a.num_layers,
            num_attention_heads=a.num_heads, inner_hidden_size=a.intermediate_size,
            max_sequence_length=a.max_position, bos_token_id=TOKENS.start, eos_token_id=TOKENS.end,
            mask_token_id=TOKENS.mask, gmask_token_id=TOKENS.gmask,
        )
    )  # fmt: skip
    from glimmer.families import all_families
    from tests.support.families import assemble

    layout = all_families()["chatglm"].weight_map.layout("official")
    assert layout is not None
    weights = {name: w.astype(np.float32) for name, w in reference.w.items()}
    tensors = assemble(layout, a, weights)
    state = {name: torch.from_numpy(np.ascontiguousarray(t)) for name, t in tensors.items()}
    model.load_state_dict(state | {"lm_head.weight": state["transformer.word_embeddings.weight"]})
    return model.eval()


def test_torch_predicts_what_the_definition_says_and_nothing_leaks() -> None:
    """Packed rows of all kinds; then each hidden token changed in turn, which moves no prediction
    that must not see it."""
    from glimmer.training.pretraining.network import collate

    model = chatglm()
    rng = np.random.default_rng(3)
    texts = [rng.integers(FIRST, VOCAB, n) for n in (14, 9, 11)]
    pieces = [
        corrupt(text, Objective(masked_share=0.4), TOKENS, rng, kind=kind,
                sentence_ends=np.arange(len(text)) % 4 == 3)
        for text, kind in zip(texts, KINDS, strict=True)
    ]  # fmt: skip
    row = pack(pieces, TOKENS, sum(piece.length for piece in pieces) + 3)
    expected = network().logits_at(row.token_ids, row.positions, row.attention_mask())

    def predict(token_ids: Any) -> Any:
        batch = collate([row])
        batch["input_ids"] = torch.from_numpy(token_ids)[None]
        hidden = model.transformer(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
        ).last_hidden_state
        return model.lm_head(hidden)[0].numpy()

    with torch.no_grad():
        before = predict(row.token_ids)
        np.testing.assert_allclose(before, expected, atol=2e-3, rtol=0)
        for place in np.flatnonzero(~row.is_context & (row.pieces >= 0)):
            token_ids = row.token_ids.copy()
            token_ids[place] = FIRST + (token_ids[place] + 1) % (VOCAB - FIRST)
            moved = np.abs(predict(token_ids) - before).max(axis=1) > 1e-4
            may_see = (row.pieces == row.pieces[place]) & (np.arange(len(moved)) >= place)
            assert not moved[~may_see].any()
            assert moved[place]


def test_the_loss_is_that_of_what_was_taken_out() -> None:
    from glimmer.training.pretraining.network import collate
    from glimmer.training.pretraining.trainer import score_network

    model = chatglm()
    rng = np.random.default_rng(4)
    rows = [
        pack([corrupt(rng.integers(FIRST, VOCAB, 20), Objective(), TOKENS, rng, kind="mask")],
             TOKENS, 48) for _ in range(3)
    ]  # fmt: skip
    losses, inner_losses, hits = [], [], []
    for row in rows:
        logits = network().logits_at(row.token_ids, row.positions, row.attention_mask())
        logits = logits.astype(np.float64)
        places = np.flatnonzero(row.targets != IGNORED)
        targets = row.targets[places]
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses += (-logs[places, targets]).tolist()
        inner = targets != TOKENS.end
        places, targets = places[inner], targets[inner]
        # Given that the span goes on.
        logits[:, TOKENS.end] = -np.inf
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        inner_losses += (-logs[places, targets]).tolist()
        hits += (logits[places].argmax(axis=1) == targets).tolist()
    batch = collate(rows)
    batch.pop("kinds")
    with torch.no_grad():
        found = model(**batch)
        assert found["loss"].item() == pytest.approx(np.mean(losses), abs=1e-3)
        shared = model(**batch, num_items_in_batch=torch.tensor(10))
        assert shared["loss"].item() == pytest.approx(np.sum(losses) / 10, abs=1e-2)
    score = score_network(model, rows, TOKENS.end, batch_size=2)
    assert score.num_tokens == len(hits) < len(losses)
    assert score.loss == pytest.approx(np.mean(inner_losses), abs=1e-3)
    assert score.accuracy == pytest.approx(np.mean(hits))


def settings(tmp_path: Path, **values: Any) -> PretrainConfig:
    texts = tmp_path / "texts.jsonl"
    if not texts.exists():
        texts.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    given = {
        "data": texts, "output": tmp_path / "out", "vocab_size": 480, "layers": 2, "hidden": 32,
        "heads": 2, "inner": 64, "row_length": 64, "batch_size": 4, "steps": 6, "log_every": 1,
        "save_every": 3, "eval_every": 3, "held_out_share": 0.1, "held_out_rows": 4,
        "device": "cpu", "learning_rate": 5e-3, **values,
    }  # fmt: skip
    return load_pretrain_config(None, given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[PretrainConfig, Any]:
    from glimmer.training import pretrain

    config = settings(tmp_path_factory.mktemp("pretrain"), gradient_accumulation=2)
    return config, pretrain(config)


def test_a_run_writes_a_model_that_the_engine_fills_with(
    finished: tuple[PretrainConfig, Any],
) -> None:
    config, result = finished
    assert result.steps == 6
    assert [entry["step"] for entry in result.losses] == [1, 2, 3, 4, 5, 6]
    assert result.losses[-1]["loss"] < result.losses[0]["loss"]
    # Of each kind that occurred, told beside the whole.
    for kind in KINDS:
        assert any(f"{kind}_loss" in entry for entry in result.losses)
        assert result.scores[kind].num_tokens == result.unigram[kind].num_tokens > 0
    report = json.loads((config.output / "report.json").read_text())
    assert report["finished"]
    assert report["held_out"]["eval_mask_loss"] == result.scores["mask"].loss
    assert report["parameters"] == result.num_parameters
    assert report["processes"] == 1
    assert report["versions"]["torch"] == torch.__version__
    assert (config.output / "loss.png").read_bytes()[1:4] == b"PNG"
    assert [e["step"] for e in report["evaluations"]] == [3, 6]
    assert report["evaluations"][-1]["eval_mask_loss"] == result.scores["mask"].loss
    for folder in (result.model, config.output / "checkpoints" / "checkpoint-3"):
        model = load(folder, num_threads=1)
        assert model.architecture.blanks is not None
        assert model.architecture.blanks.several
        assert model.architecture.num_layers == 2
    output = LLM(load(result.model, num_threads=1)).infill(
        "The [MASK] sat on the [MASK].[gMASK]", SamplingParams(temperature=0, max_new_tokens=8)
    )
    assert len(output.fills) == 3
    assert output.text.startswith("The")


def test_engine_and_torch_score_blanks_alike(finished: tuple[PretrainConfig, Any]) -> None:
    """Teacher-forced by torch, the engine's greedy fills are the likeliest tokens."""
    from glimmer.training.blank_infilling import Piece, Span
    from glimmer.training.pretraining.network import collate, known_network
    from glimmer.training.pretraining.texts import blank_tokens

    _, result = finished
    native = load(result.model, weights="float32", num_threads=1)
    llm = LLM(native)
    params = SamplingParams(temperature=0, max_new_tokens=6, ignore_eos=True, loop_guard=False)
    text = "The fox [MASK] on the [MASK]. It was [MASK]!"
    output = llm.infill(text, params)
    ids = native.encode_blanks(text)
    tokens = blank_tokens(native.tokenizer)  # type: ignore[arg-type]
    places = [i for i, token in enumerate(ids) if token == tokens.mask]
    spans = tuple(
        Span(place, np.array(fill.token_ids)) for place, fill in zip(places, output.fills,
                                                                      strict=True)
    )  # fmt: skip
    row = pack([Piece("mask", np.array(ids), spans)], tokens)
    model = known_network(str(result.model)).eval()
    batch = collate([row])
    with torch.no_grad():
        hidden = model.transformer(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
        ).last_hidden_state
        likeliest = model.lm_head(hidden)[0].argmax(dim=-1).numpy()
    targets = row.targets[~row.is_context]
    counted = targets != tokens.end
    assert likeliest[~row.is_context][counted].tolist() == targets[counted].tolist()


def test_the_torch_engine_fills_the_same(finished: tuple[PretrainConfig, Any]) -> None:
    from glimmer.hf import runner

    _, result = finished
    params = SamplingParams(temperature=0, max_new_tokens=6, ignore_eos=True, loop_guard=False)
    native = LLM(load(result.model, weights="float32", num_threads=1))
    torch_llm = LLM(runner.load(result.model, dtype="float32", device="cpu"))
    for method in ("parts", "substitute"):
        expected = native.infill("The fox [MASK] on[sMASK][gMASK]", params, method=method)
        found = torch_llm.infill("The fox [MASK] on[sMASK][gMASK]", params, method=method)
        assert found.token_ids == expected.token_ids


def test_a_resumed_run_has_the_same_losses(
    finished: tuple[PretrainConfig, Any], tmp_path: Path
) -> None:
    from glimmer.training import pretrain

    config, whole = finished
    again = config.model_copy(update={"output": tmp_path / "out"})
    shutil.copytree(config.output, again.output)
    shutil.rmtree(again.output / "model")
    shutil.rmtree(again.output / "checkpoints" / "checkpoint-6")
    resumed = pretrain(again, resume=True)
    assert [e["loss"] for e in resumed.losses] == [e["loss"] for e in whole.losses]
    assert resumed.scores == whole.scores
    with pytest.raises(InvalidParameterError, match=r"other settings \(steps 6 -> 7\)"):
        pretrain(again.model_copy(update={"steps": 7}), resume=True)
    less = tmp_path / "less.jsonl"
    less.write_text("\n".join(config.data[0].read_text().split("\n")[:-1]))
    shutil.copytree(again.output, tmp_path / "copy")
    run = tmp_path / "copy" / "checkpoints" / "run.json"
    run.write_text(run.read_text().replace(str(config.data[0]), str(less)))
    other = again.model_copy(update={"data": [less], "output": tmp_path / "copy"})
    with pytest.raises(InvalidParameterError, match="begun with other texts"):
        pretrain(other, resume=True)
    with pytest.raises(InvalidParameterError, match="exists already"):
        pretrain(again)
    with pytest.raises(InvalidParameterError, match="no checkpoint to resume from"):
        pretrain(again.model_copy(update={"output": tmp_path / "new"}), resume=True)


def test_passes_of_a_step_add_up(finished: tuple[PretrainConfig, Any], tmp_path: Path) -> None:
    """Four rows twice are eight at once."""
    from glimmer.training import pretrain

    config, twice = finished
    given = {"batch_size": 8, "gradient_accumulation": 1, "output": tmp_path / "out"}
    once = pretrain(config.model_copy(update=given))
    for one, two in zip(once.losses, twice.losses, strict=True):
        told = {key: value for key, value in two.items() if key.endswith(("loss", "norm"))}
        assert {key: one[key] for key in told} == pytest.approx(told, rel=1e-4)


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(
    finished: tuple[PretrainConfig, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glimmer.training import pretrain
    from glimmer.training.pretraining.trainer import BlankTrainer

    config, whole = finished
    again = config.model_copy(update={"output": tmp_path / "out"})
    with monkeypatch.context() as patch:
        interrupt_at(patch, BlankTrainer, 7)
        stopped = pretrain(again)
    assert stopped.model is None
    assert stopped.steps == 4  # of two passes each
    assert stopped.checkpoint == again.output / "checkpoints" / "checkpoint-4"
    assert not json.loads((again.output / "report.json").read_text())["finished"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidParameterError, match="begun with 1 processes, and not with 2"):
        pretrain(again, resume=True)
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(InvalidParameterError, match=r"--resume goes on .* and --force replaces"):
        pretrain(again, resume=True, overwrite=True)
    resumed = pretrain(again, resume=True)
    assert [e["loss"] for e in resumed.losses] == [e["loss"] for e in whole.losses]
    assert resumed.scores == whole.scores
    # One that ended before its model was written.
    shutil.rmtree(again.output / "model")
    assert pretrain(again, resume=True).scores == whole.scores
    assert load(again.output / "model", num_threads=1).architecture.num_layers == 2
    (again.output / "checkpoints" / "run.json").unlink()
    with pytest.raises(InvalidParameterError, match=r"run.json, which tells what .* be read"):
        pretrain(again, resume=True)


def interrupt_at(patch: pytest.MonkeyPatch, trainer: Any, number: int) -> None:
    """Ctrl-C in the pass of this number."""
    original, passes = trainer.compute_loss, []

    def compute_loss(self: Any, *args: Any, **values: Any) -> Any:
        passes.append(1)
        if len(passes) == number:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args, **values)

    patch.setattr(trainer, "compute_loss", compute_loss)


def test_what_is_no_number_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where losses are told more seldom than checkpoints are written."""
    from glimmer.training import pretrain
    from glimmer.training.pretraining.trainer import BlankTrainer

    original = BlankTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **values: Any) -> Any:
        loss = original(self, *args, **values)
        return loss * float("nan") if self.state.global_step >= 3 else loss

    monkeypatch.setattr(BlankTrainer, "compute_loss", compute_loss)
    config = settings(tmp_path, log_every=100, save_every=2, eval_every=None)
    with pytest.raises(TrainingError, match="Step 4: the loss is nan"):
        pretrain(config)
    folders = sorted(path.name for path in (config.output / "checkpoints").glob("checkpoint-*"))
    assert folders == ["checkpoint-2"]
    assert not (config.output / "model").exists()


def test_a_lack_of_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from glimmer.training import pretrain
    from glimmer.training.pretraining.trainer import BlankTrainer

    def compute_loss(*_args: Any, **_values: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(BlankTrainer, "compute_loss", compute_loss)
    with pytest.raises(OutOfMemoryError, match="Lower batch_size or row_length"):
        pretrain(settings(tmp_path))


def test_nothing_is_deleted_before_a_run_is_sure_to_begin(
    finished: tuple[PretrainConfig, Any], tmp_path: Path
) -> None:
    from glimmer.training import pretrain

    config, result = finished
    output = tmp_path / "out"
    shutil.copytree(config.output, output)
    again = settings(tmp_path, output=output)

    def refused(given: PretrainConfig, said: str, error: type[Exception] = UsageError) -> None:
        before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        with pytest.raises(error, match=said):
            pretrain(given, overwrite=True)
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before

    refused(again.model_copy(update={"vocab_size": 100}), "vocab_size must be at least")
    refused(again.model_copy(update={"mixed_precision": "fp16"}), "which is for GPUs")
    refused(again.model_copy(update={"tokenizer": tmp_path}), "no ice_text.model")
    inside = {"base": str(output / "model"), "held_out_share": 0.0}
    refused(again.model_copy(update=inside), "which this run would replace")
    # Someone's own folder, that happens to hold one of the same name.
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "thesis.txt").write_text("years of work")
    refused(again.model_copy(update={"output": tmp_path / "own"}), "not the folder of a run")
    # What failed stands in nobody's way.
    fresh = again.model_copy(update={"output": tmp_path / "new", "vocab_size": 100})
    refused(fresh, "vocab_size must be at least")
    made = pretrain(fresh.model_copy(update={"vocab_size": 480, "steps": 1}))
    assert made.steps == 1
    (fresh.output / "model" / "of_before").touch()
    pretrain(fresh.model_copy(update={"vocab_size": 480, "steps": 2}), overwrite=True)
    assert not (fresh.output / "model" / "of_before").exists()
    assert result.model.is_dir()


def test_what_a_base_says_of_itself_stays(tmp_path: Path) -> None:
    """Its licence; and that it fills one blank at a time, if it learns no other way."""
    from glimmer.training import pretrain
    from tests.test_export import folder

    base = folder(tmp_path, "chatglm", "official")
    (base / "MODEL_LICENSE").write_text("for research")
    config = settings(tmp_path)
    given = {"base": str(base), "data": config.data[0], "output": tmp_path / "out", "steps": 1,
             "row_length": 64, "batch_size": 2, "device": "cpu", "held_out_share": 0}  # fmt: skip
    for mix, several in (({"gmask": 1}, False), ({"gmask": 1, "mask": 1}, True)):
        made = pretrain(load_pretrain_config(None, {**given, "mix": mix}), overwrite=several)
        assert made.model is not None
        assert (made.model / "MODEL_LICENSE").read_text() == "for research"
        for path in (made.model, tmp_path / "out" / "checkpoints" / "checkpoint-1"):
            blanks = load(path, num_threads=1).architecture.blanks
            assert blanks is not None
            assert blanks.several == several


def test_training_goes_on_with_a_model(
    finished: tuple[PretrainConfig, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Continued pre-training, from the command line; a ChatGLM-6B checkpoint is such a folder."""
    _, before = finished
    config = settings(tmp_path)
    arguments = [
        "--data", str(config.data[0]), "--output", str(tmp_path / "more"), "--base",
        str(before.model), "--steps", "2", "--set", "learning_rate=1.0e-4", "--json",
    ]  # fmt: skip
    file = tmp_path / "config.yaml"
    file.write_text(
        "row_length: 64\nbatch_size: 4\nlog_every: 1\ndevice: cpu\n"
        "held_out_rows: 4\nmix: {mask: 1}\n"
    )
    assert main(["pretrain", str(file), *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 2
    # It begins where the other ended, not anew.
    assert told["first_loss"] < (before.losses[0]["loss"] + before.losses[-1]["loss"]) / 2
    assert set(told["scores"]) == {"mask"}
    assert load(told["model"], num_threads=1).architecture.num_layers == 2
    assert main(["pretrain", str(file), *arguments]) == 2  # it exists already
    assert main(["pretrain", str(file), *arguments[:-1], "--force"]) == 0
    assert "Blanks in texts that were held out" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    """Half the rows of a step each; also the loss of each kind, and the weights at the end."""
    settings(tmp_path)  # writes the texts
    file = tmp_path / "config.yaml"
    file.write_text(
        f"data: {tmp_path}/texts.jsonl\nvocab_size: 480\nlayers: 2\nhidden: 32\nheads: 2\n"
        "inner: 64\nrow_length: 64\nsteps: 4\nlog_every: 1\nheld_out_share: 0.1\n"
        "held_out_rows: 4\ndevice: cpu\nlearning_rate: 5.0e-3\n"
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    reports = []
    for name, processes, rows in (("one", [], 4), ("two", launch, 2)):
        command = [
            sys.executable, *processes, "-m", "glimmer", "pretrain", str(file), "--output",
            str(tmp_path / name), "--set", f"batch_size={rows}",
        ]  # fmt: skip
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((tmp_path / name / "report.json").read_text()))
    one, two = reports
    for before, after in zip(one["losses"], two["losses"], strict=True):
        told = {k: v for k, v in before.items() if k.endswith("loss")}
        assert {k: v for k, v in after.items() if k.endswith("loss")} == pytest.approx(
            told, rel=1e-5
        )
    assert two["held_out"] == pytest.approx(one["held_out"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_blanks_are_filled_better_than_by_frequency(tmp_path: Path) -> None:
    """A small run on the documentation that Python ships: docs/pretraining.md has a longer one."""
    from examples.pretrain.stdlib_texts import main as write_texts

    from glimmer.training import pretrain

    write_texts(tmp_path / "texts")
    config = load_pretrain_config(
        None,
        {
            "data": tmp_path / "texts" / "train.jsonl",
            "held_out": tmp_path / "texts" / "held_out.jsonl",
            "output": tmp_path / "out", "preset": "tiny", "vocab_size": 2000, "row_length": 256,
            "batch_size": 8, "steps": 300, "learning_rate": 3e-3, "held_out_rows": 32,
            "device": "cpu",
        },
    )  # fmt: skip
    result = pretrain(config)
    for kind in KINDS:
        score, guess = result.scores[kind], result.unigram[kind]
        assert score.perplexity < 0.75 * guess.perplexity, kind
        assert score.accuracy > guess.accuracy, kind
