"""Differences of models and endpoints."""

from __future__ import annotations

from collections.abc import Iterator

from glimmer.catalogue import find_release
from glimmer.migration.addresses import Endpoint
from glimmer.migration.call import Call, Detector, Hit
from glimmer.migration.detectors import more_than, not_one_of, show
from glimmer.migration.hosted import OWN_NAMES, find_model, hosted_for
from glimmer.migration.rule import Rule
from glimmer.migration.target import Target

HOSTED_LACKS: dict[Endpoint, str] = {
    "completions": "Send the prompt as a message of user to /chat/completions.",
    "responses": "Use /chat/completions. (Z.ai documents responses for its Coding Plan alone.)",
    "tokenize": "POST model and messages to /api/paas/v4/tokenizer: it counts, but gives no ids.",
}
LOCAL_LACKS: tuple[Endpoint, ...] = (
    "images",
    "videos",
    "audio",
    "voice",
    "moderations",
    "assistant",
    "agents",
    "knowledge",
    "fine_tuning",
    "web_search",
    "tools",
    "reader",
    "file_parser",
    "ocr",
    "rerank",
)
_TALK: tuple[Endpoint, ...] = ("chat", "messages", "completions", "responses")


def _name(call: Call) -> str | None:
    name = call.parameters.get("model")
    return name if isinstance(name, str) and name else None


def _not_hosted(call: Call, target: Target) -> Iterator[Hit]:
    name = _name(call)
    if name is None or find_model(name) is not None:
        return
    release = find_release(name)
    if release is None:
        # The platform's own names are another rule's, and Anthropic's are what it makes of them.
        maybe = ("claude-",) if call.endpoint == "messages" else ()
        if name.lower().startswith(OWN_NAMES + maybe):
            return
    if target.model:
        fix = f"Write {target.model!r}."
    elif release is None:
        fix = "Choose one of the platform's, such as 'glm-4.7' or 'glm-4.5-air'."
    elif (nearest := hosted_for(release.name)) is not None:
        fix = f"Nearest is {nearest!r}: another model, so other answers."
    else:
        fix = "It is a base model, which the platform has none of: keep it here."
    yield Hit("model", f"the model {show(name)}", fix)


def _unlisted_model(call: Call, _: Target) -> Iterator[Hit]:
    name = _name(call)
    if name is None:
        return
    model = find_model(name)
    newer = model is None and find_release(name) is None and name.lower().startswith(OWN_NAMES)
    if newer or (model is not None and not model.is_listed):
        yield Hit("model", f"the model {show(name)}")


def _not_local(call: Call, target: Target) -> Iterator[Hit]:
    name = _name(call)
    if name is None or find_release(name) is not None:
        return
    model = find_model(name)
    if target.model:
        fix = f"Write {target.model!r}."
    elif model is not None and model.local is not None:
        fix = (
            f"Nearest is {model.local!r}: another model, so other answers. `glimmer plan "
            f"{model.local}` tells what memory it takes."
        )
    elif model is not None and model.kind != "text":
        fix = "Nothing here does its work: keep it on the platform."
    else:
        fix = "Write the name that the server was started with; `glimmer list` names the releases."
    yield Hit("model", f"the model {show(name)}", fix)


def _any_call(call: Call, _: Target) -> Iterator[Hit]:
    yield Hit("url", f"the endpoint {call.endpoint}", HOSTED_LACKS.get(call.endpoint))


def _embedding_name(*, is_hosted: bool) -> Detector:
    def detect(call: Call, _: Target) -> Iterator[Hit]:
        name = _name(call)
        if name is not None and name.lower().startswith("embedding-") is is_hosted:
            yield Hit("model", f"the embedding model {show(name)}")

    return detect


def _dimensions(call: Call, target: Target) -> Iterator[Hit]:
    name = target.model or _name(call)
    allowed = (1024,) if name == "embedding-2" else (256, 512, 1024, 2048)
    for hit in not_one_of("dimensions", *allowed)(call, target):
        yield hit._replace(fix=f"Use {', '.join(map(str, allowed))}.")


MODEL_RULES = (
    Rule(
        id="model-hosted",
        to="hosted",
        severity="error",
        detects="a model that the platform does not have: a release's name, another vendor's",
        why="The platform would answer with error 1211, no such model.",
        fix="Choose one of the platform's models.",
        source="reference",
        endpoints=_TALK,
        detect=_not_hosted,
    ),
    Rule(
        id="model-unlisted",
        to="hosted",
        severity="note",
        detects="a model of the platform's that its chat reference does not list, any more or yet",
        why="The platform retires and adds models.",
        fix="Look it up in the platform's list of models first.",
        source="reference",
        endpoints=_TALK,
        detect=_unlisted_model,
    ),
    Rule(
        id="model-local",
        to="local",
        severity="error",
        detects="a model of which there is no release for this machine",
        why="The server answers for the models that it was started with.",
        fix="Write the name that the server was started with.",
        source="here",
        endpoints=_TALK,
        detect=_not_local,
    ),
    Rule(
        id="embedding-model-hosted",
        to="hosted",
        severity="error",
        detects="embeddings of a model other than embedding-2 and embedding-3",
        why="The platform embeds with embedding-2 and embedding-3. The vectors of this server are "
        "means of a chat model's hidden states: the two cannot be compared.",
        fix="Use embedding-3, and compute every stored vector anew.",
        source="reference",
        endpoints=("embeddings",),
        detect=_embedding_name(is_hosted=False),
    ),
    Rule(
        id="embedding-model-local",
        to="local",
        severity="error",
        detects="embeddings of embedding-2 or embedding-3",
        why="There is no release of them. The vectors of this server are means of a chat model's "
        "hidden states: the two cannot be compared.",
        fix="Name the local model, compute every stored vector anew, and measure whether they "
        "serve; a model made for embedding may serve better.",
        source="here",
        endpoints=("embeddings",),
        detect=_embedding_name(is_hosted=True),
    ),
    Rule(
        id="embedding-dimensions",
        to="hosted",
        severity="error",
        detects="dimensions other than 256, 512, 1024 and 2048",
        why="embedding-3 offers 256, 512, 1024 and 2048, embedding-2 has 1024.",
        fix="Use 256, 512, 1024 or 2048.",
        source="reference",
        endpoints=("embeddings",),
        detect=_dimensions,
    ),
    Rule(
        id="embedding-batch",
        to="hosted",
        severity="error",
        detects="more than 64 inputs in one request for embeddings",
        why="embedding-3 takes 64 inputs, each of at most 3072 tokens.",
        fix="Send them 64 at a time.",
        source="reference",
        endpoints=("embeddings",),
        detect=more_than("input", 64),
    ),
    Rule(
        id="endpoint-hosted",
        to="hosted",
        severity="error",
        detects="/v1/completions, /v1/responses, /tokenize, /detokenize",
        why="The platform has no such endpoint.",
        fix="Use /chat/completions.",
        source="reference",
        endpoints=tuple(HOSTED_LACKS),
        detect=_any_call,
    ),
    Rule(
        id="endpoint-local",
        to="local",
        severity="error",
        detects="images, video, audio, moderation, assistants, agents, knowledge, search, ...",
        why="This server has nothing that could do it and answers with an error.",
        fix="Keep these requests on the platform.",
        source="here",
        endpoints=LOCAL_LACKS,
        detect=_any_call,
    ),
)
