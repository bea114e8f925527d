"""/v1/models, /v1/embeddings, /tokenize and /detokenize: what needs no answer of the model."""

from __future__ import annotations

import base64
import json
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request, Response

from glimmer.errors import GlimmerError
from glimmer.server import jobs, shape
from glimmer.server.access import Caller
from glimmer.server.errors import ApiError
from glimmer.server.json_body import JsonRoute
from glimmer.server.openai.replies import (
    Embeddings,
    ModelList,
    ModelReply,
    Prompt,
    Tokens,
    documented,
)
from glimmer.server.openai.requests import DetokenizeBody, EmbeddingBody, TokenizeBody
from glimmer.server.service import Service
from glimmer.server.sse import while_connected
from glimmer.server.web import EmbeddingsCaller, ModelsCaller, ServiceOf, TokenizeCaller

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.get("/v1/models", responses=documented(ModelList))
async def list_models(service: ServiceOf, caller: ModelsCaller) -> dict[str, Any]:
    """The models, and what else they are called."""
    allowed = [
        (name, created)
        for name, created in service.pool.names()
        if caller.key is None
        or caller.key.allows_model(name)
        or caller.key.allows_model(service.pool.resolve(name))
    ]
    return {"object": "list", "data": [_model(service, *model) for model in allowed]}


@router.get("/v1/models/{name:path}", responses=documented(ModelReply))
async def retrieve_model(name: str, service: ServiceOf, caller: ModelsCaller) -> dict[str, Any]:
    """One of them."""
    own = service.resolve(name, caller)
    return _model(service, name, dict(service.pool.names())[own])


@router.post("/v1/embeddings", responses=documented(Embeddings))
async def create_embeddings(
    request: Request, body: EmbeddingBody, service: ServiceOf, caller: EmbeddingsCaller
) -> dict[str, Any]:
    """A vector for each text: the mean over its tokens of the last layer's hidden states, of
    length 1. The models were not trained for that: good for rough likeness, no more."""
    return await embed(request, body, service, caller)


@router.post("/tokenize", responses=documented(Tokens))
async def tokenize(body: TokenizeBody, service: ServiceOf, caller: TokenizeCaller) -> Response:
    """The tokens of a text, or of messages with what the template adds."""
    if (body.prompt is None) == (body.messages is None):
        raise ApiError("conflict", "Give either prompt or messages.", param="prompt")

    name = service.resolve(body.model or service.pool.default_name, caller)
    async with service.pool.use(name) as llm:
        model = llm.model

        def encode() -> bytes:
            """The whole answer: there may be millions."""
            if body.prompt is not None:
                ids = model.tokenizer.encode(body.prompt, body.allow_special)
            else:
                assert body.messages is not None
                ids = model.chat_template.encode(body.messages, body.tools)
            told: dict[str, Any] = {
                "tokens": ids,
                "count": len(ids),
                "max_model_len": llm.max_model_len,
            }
            if body.return_token_strs:
                told["token_strs"] = [
                    model.tokenizer.token_bytes(i).decode("utf-8", errors="replace") for i in ids
                ]
            return json.dumps(told, ensure_ascii=False).encode()

        try:
            content = await anyio.to_thread.run_sync(encode)
        except GlimmerError as error:
            raise jobs.refusal(error) from error
        return Response(content, media_type="application/json")


@router.post("/detokenize", responses=documented(Prompt))
async def detokenize(
    body: DetokenizeBody, service: ServiceOf, caller: TokenizeCaller
) -> dict[str, Any]:
    """The text of tokens."""
    name = service.resolve(body.model or service.pool.default_name, caller)
    async with service.pool.use(name) as llm:
        tokenizer = llm.model.tokenizer
        if bad := [i for i in body.tokens if not 0 <= i < tokenizer.vocab_size]:
            raise ApiError(
                "invalid",
                f"The token id {bad[0]} is not below {tokenizer.vocab_size}.",
                param="tokens",
            )
        return {"prompt": await anyio.to_thread.run_sync(tokenizer.decode, body.tokens)}


async def embed(
    request: Request, body: EmbeddingBody, service: Service, caller: Caller
) -> dict[str, Any]:
    """Raises ApiError."""
    vectors, usage = await while_connected(request, service.embed(body.model, body.prompts, caller))
    size = body.dimensions or vectors.shape[1]
    if size != vectors.shape[1]:
        raise ApiError(
            "unsupported",
            f"Vectors of this model have {vectors.shape[1]} numbers and cannot be shortened.",
            param="dimensions",
        )
    data: list[dict[str, Any]] = []
    for index, vector in enumerate(vectors):
        numbers: str | list[float] = vector.tolist()
        if body.encoding_format == "base64":
            numbers = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": numbers})
    return {"object": "list", "data": data, "model": body.model, "usage": shape.usage(usage)}


def _model(service: Service, name: str, created: int) -> dict[str, Any]:
    told = {"id": name, "object": "model", "created": created, "owned_by": "glimmer"}
    own = service.pool.resolve(name)
    if own != name:
        told["root"] = own
    if (llm := service.pool.loaded().get(own)) is not None:
        told["max_model_len"] = llm.max_model_len
    return told
