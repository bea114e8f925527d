"""ChatGLM-6B's own class: where tokens stand, what they see, losses, generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from glimmer.errors import InvalidParameterError
from glimmer.hf.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glimmer.hf.chatglm.layout import make_mask, make_positions, next_positions
from tests.support import families

MASK, GMASK, START = 292, 291, 290
BLANKS = (GMASK, MASK)
ARCHITECTURE = families.tiny_architecture("chatglm")


def network(**choices: Any) -> ChatGLMForConditionalGeneration:
    torch.manual_seed(0)
    config = ChatGLMConfig(
        vocab_size=300,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        inner_hidden_size=48,
        bos_token_id=START,
        eos_token_id=299,
        pad_token_id=3,
        mask_token_id=MASK,
        gmask_token_id=GMASK,
        initializer_range=0.2,
        **choices,
    )
    return ChatGLMForConditionalGeneration(config).eval()


TEXTS = [
    [10, 11, 12, 13, GMASK, START, 20, 21],
    [10, MASK, 14, START, 22],
    [MASK, GMASK, 15, START, 22, 23, 24],
]


def batch(texts: list[list[int]], side: str = "left") -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, texts))
    ids = torch.full((len(texts), width), 3)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        where = slice(width - len(text), None) if side == "left" else slice(len(text))
        ids[row, where] = torch.tensor(text)
        mask[row, where] = 1
    return ids, mask


@st.composite
def texts(draw: st.DrawFn) -> list[int]:
    ordinary = st.integers(4, 280)
    before = draw(st.lists(ordinary, max_size=6))
    blanks = draw(st.lists(st.sampled_from(BLANKS), min_size=1, max_size=2))
    for blank in blanks:
        before.insert(draw(st.integers(0, len(before))), blank)
    behind = draw(st.lists(st.sampled_from([5, 6, START, *BLANKS]), max_size=5))
    return [*before, START, *behind]


@settings(max_examples=60)
@given(st.lists(texts(), min_size=1, max_size=3), st.sampled_from(["left", "right"]))
def test_positions_and_masks_are_the_engines(given_texts: list[list[int]], side: str) -> None:
    ids, padding = batch(given_texts, side)
    positions = make_positions(ids, padding, START, BLANKS)
    seen = make_mask(positions, padding, 0)
    assert seen is not None
    for row, text in enumerate(given_texts):
        layout = ARCHITECTURE.layout(text)
        real = padding[row].bool()
        assert tuple(positions[row, 0, real].tolist()) == layout.positions
        assert tuple(positions[row, 1, real].tolist()) == layout.block_positions
        among = seen[row, 0][real][:, real]
        for query in range(len(text)):
            for key in range(len(text)):
                assert among[query, key] == (key <= query or key < layout.context_length)
        assert not seen[row, 0][real][:, ~real].any()
        more = next_positions(positions[row : row + 1, :, real], 3)
        for i in range(3):
            place = len(text) + i
            assert more[0, 0, i] == layout.position(place)
            assert more[0, 1, i] == layout.block_position(place)


@pytest.mark.parametrize(
    ("ids", "words"),
    [([10, GMASK, 11], "start token"), ([10, 11, START], "blank"), ([3, 3], "start token")],
)
def test_a_text_needs_blank_and_start(ids: list[int], words: str) -> None:
    with pytest.raises(InvalidParameterError, match=words):
        make_positions(torch.tensor([ids]), None, START, BLANKS)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    model = network()
    ids, padding = batch(TEXTS, side)
    logits = model(ids, attention_mask=padding).logits
    assert torch.isfinite(logits).all()
    for row, text in enumerate(TEXTS):
        alone = model(torch.tensor([text])).logits[0]
        torch.testing.assert_close(logits[row, padding[row].bool()], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_start_token_at_once_behind_padding() -> None:
    """Then no padding row has a context to look at."""
    ids, padding = batch([[START, GMASK, 5], [7, 8, GMASK, START, 9]])
    assert torch.isfinite(network()(ids, attention_mask=padding).logits).all()


@torch.no_grad()
def test_step_by_step_with_the_cache() -> None:
    model = network()
    ids, padding = batch(TEXTS)
    whole = model(ids, attention_mask=padding).logits
    positions = make_positions(ids, padding, START, BLANKS)
    first = model(
        ids[:, :-1], attention_mask=padding[:, :-1], position_ids=positions[..., :-1],
        use_cache=True,
    )  # fmt: skip
    last = model(
        ids[:, -1:], attention_mask=padding, position_ids=positions[..., -1:], cache=first.cache
    )
    torch.testing.assert_close(last.logits, whole[:, -1:], atol=1e-5, rtol=1e-5)
    # Several at once, as drafts come: these texts go on behind their start tokens.
    more = torch.tensor([[20, 21, 22], [23, 24, 25], [26, 27, 28]])
    longer, kept = torch.cat([ids, more], dim=1), torch.cat([padding, torch.ones_like(more)], dim=1)
    behind = next_positions(positions, 3)
    steps = model(more, attention_mask=kept, position_ids=behind, cache=last.cache).logits
    whole = model(longer, attention_mask=kept).logits[:, -3:]
    torch.testing.assert_close(steps, whole, atol=1e-5, rtol=1e-5)


def test_the_loss_is_of_the_next_token_where_a_label_is() -> None:
    model = network()
    ids, padding = batch(TEXTS)
    labels = ids.masked_fill(padding == 0, -100)
    labels[:, :-3] = -100
    output = model(ids, attention_mask=padding, labels=labels)
    expected = functional.cross_entropy(
        output.logits[:, :-1].reshape(-1, 300), labels[:, 1:].reshape(-1), ignore_index=-100
    )
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    ids, padding = batch(TEXTS)
    gradients = []
    for checkpointing in (False, True):
        model = network().train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(ids, attention_mask=padding, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0]["transformer.layers.0.mlp.dense_h_to_4h.weight"].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


# PEFT asks for what transformers has renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_lora_trains_with_gradient_checkpointing_and_generates() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["query_key_value", "dense_4h_to_h"]
    )
    model = peft.get_peft_model(network(), config).train()
    model.base_model.model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    ids, padding = batch(TEXTS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(4):
        loss = model(ids, attention_mask=padding, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    prompt = torch.tensor([TEXTS[0][:6]])
    made = model.eval().generate(input_ids=prompt, max_new_tokens=3, do_sample=False)
    assert made.shape[1] > prompt.shape[1]


def test_a_mask_of_pairs_is_taken_as_it_is() -> None:
    """As for blank infilling with several texts in one row."""
    model = network()
    alone = [model(torch.tensor([text])).logits[0] for text in TEXTS]
    ids = torch.tensor([[token for text in TEXTS for token in text]])
    positions = torch.cat(
        [make_positions(torch.tensor([text]), None, START, BLANKS) for text in TEXTS], dim=-1
    )
    seen = torch.block_diag(
        *[
            make_mask(make_positions(torch.tensor([text]), None, START, BLANKS), None, 0)[0, 0]  # type: ignore[index]
            for text in TEXTS
        ]
    ).bool()
    logits = model(ids, attention_mask=seen[None, None], position_ids=positions).logits[0]
    torch.testing.assert_close(logits, torch.cat(alone), atol=1e-5, rtol=1e-5)
    with pytest.raises(InvalidParameterError, match="position_ids"):
        model(ids, attention_mask=seen[None, None])


def test_generate_for_a_batch_is_generate_alone() -> None:
    model = network()
    prompts = [text[: text.index(START) + 1] for text in TEXTS]
    ids, padding = batch(prompts)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    together = model.generate(ids, attention_mask=padding, **options)
    for row, prompt in enumerate(prompts):
        (alone,) = model.generate(torch.tensor([prompt]), **options)
        made = alone[len(prompt) :].tolist()
        assert together[row, ids.shape[1] :].tolist()[: len(made)] == made


def test_beams_keep_their_positions() -> None:
    model = network()
    prompts = [text[: text.index(START) + 1] for text in TEXTS]
    ids, padding = batch(prompts)
    options: dict[str, Any] = {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2}
    together = model.generate(ids, attention_mask=padding, do_sample=False, **options)
    assert together.shape[0] == 2 * len(prompts)
    for row, prompt in enumerate(prompts):
        alone = model.generate(torch.tensor([prompt]), do_sample=False, **options)
        made = together[2 * row : 2 * row + 2, ids.shape[1] :]
        assert made.tolist() == alone[:, len(prompt) :].tolist()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers of itself
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_drafts_change_nothing(seed: int) -> None:
    """transformers counts both rows of their positions on; they belong to the blank."""

    def lively() -> ChatGLMForConditionalGeneration:
        model = network(tie_word_embeddings=False)
        model.lm_head.weight.data = torch.randn(
            300, 32, generator=torch.Generator().manual_seed(seed)
        )
        return model

    model = lively()
    words = torch.randint(10, 14, (1, 20), generator=torch.Generator().manual_seed(seed))
    prompt = torch.cat([words, torch.tensor([[GMASK, START]])], dim=-1)
    options: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False}
    expected = model.generate(prompt, **options)
    places: list[torch.Tensor] = []
    model.transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: places.append(kwargs["position_ids"]), with_kwargs=True
    )
    for drafts in (
        {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
        {"assistant_model": lively()},
    ):
        places.clear()
        assert torch.equal(model.generate(prompt, **options, **drafts), expected)
        assert len(places) < expected.shape[1] - prompt.shape[1]  # several at once
        for positions in places:
            assert (positions[:, 0][positions[:, 1] > 0] == 20).all()


def test_what_cannot_be_computed_is_refused() -> None:
    model = network()
    prompt = torch.tensor([TEXTS[0]])
    with pytest.raises(InvalidParameterError, match=r"one step|one piece"):
        model.generate(prompt, max_new_tokens=2, prefill_chunk_size=2)
    with pytest.raises(InvalidParameterError, match="static cache"):
        model.generate(prompt, max_new_tokens=2, cache_implementation="static")
    embedded = model.get_input_embeddings()(prompt)
    with pytest.raises(InvalidParameterError, match="position_ids"):
        model(inputs_embeds=embedded)
    with pytest.raises(InvalidParameterError, match=r"\[batch, 2, tokens\].*\[1, 8\]"):
        model(prompt, position_ids=torch.arange(8)[None])
    with pytest.raises(InvalidParameterError, match="position_ids"):
        model.generate(inputs_embeds=embedded, max_new_tokens=2)
    with pytest.raises(InvalidParameterError, match="either"):
        model()
    with pytest.raises(InvalidParameterError, match="position_encoding_2d"):
        ChatGLMConfig(position_encoding_2d=False)


@torch.no_grad()
def test_half_precision_and_training_mode_run() -> None:
    model = network().bfloat16().train()
    ids, padding = batch(TEXTS)
    exact = network()(ids, attention_mask=padding).logits
    logits = model(ids, attention_mask=padding).logits
    assert logits.dtype == torch.bfloat16
    real = padding.bool()
    assert (logits.float() - exact)[real].abs().mean() < 0.05 * exact[real].abs().mean() + 0.05
    assert model(ids, attention_mask=padding, use_cache=True).cache.get_seq_length() == ids.shape[1]
