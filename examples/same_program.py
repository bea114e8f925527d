"""The same program against this machine and against the hosted platform: only BASE_URL, API_KEY and
MODEL differ. Needs `pip install openai`.
"""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ.get("API_KEY", "none"))
model = os.environ.get("MODEL", "glm-4.5-air")
messages = [{"role": "user", "content": "What is the capital of France? One sentence."}]

answer = client.chat.completions.create(model=model, messages=messages, temperature=0.1)
print(answer.choices[0].message.content)
print(answer.choices[0].finish_reason, answer.usage.prompt_tokens, answer.usage.completion_tokens)

for chunk in client.chat.completions.create(
    model=model, messages=messages, temperature=0.1, stream=True
):
    if chunk.choices and (text := chunk.choices[0].delta.content):
        print(text, end="|", flush=True)
print()
