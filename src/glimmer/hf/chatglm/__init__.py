"""ChatGLM-6B, the first generation, as a model of transformers.

Later generations run in transformers' own GLM classes; this network is in none. The ``model_type``
of its files is also that of three other generations' official files. The Auto classes know a model
by that word alone, so it is registered for the first generation, the one that has nothing else, and
``ChatGLMConfig`` refuses the keys of the others with the way to load them (``glimmer.hf.load``,
which looks at the keys). With ``trust_remote_code=True`` transformers takes a repository's own code
for them as before.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from glimmer.families.chatglm.export import MODEL_TYPE
from glimmer.hf.chatglm.configuration import ChatGLMConfig
from glimmer.hf.chatglm.generation import ChatGLMForConditionalGeneration
from glimmer.hf.chatglm.modeling import ChatGLMModel

AutoConfig.register(MODEL_TYPE, ChatGLMConfig)
AutoModel.register(ChatGLMConfig, ChatGLMModel)
AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForConditionalGeneration)

__all__ = ["ChatGLMConfig", "ChatGLMForConditionalGeneration", "ChatGLMModel"]
