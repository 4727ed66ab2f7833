"""OpenAI's Python library against the server that OPENAI_BASE_URL names."""

import asyncio

import openai
from openai import AsyncOpenAI, OpenAI

client = OpenAI(max_retries=0, timeout=60)
HI = [{"role": "user", "content": "What is 2+3?"}]


def models():
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "nanochat"


def whole():
    answer = client.chat.completions.create(model="tiny", messages=HI, max_tokens=8, seed=1)
    again = client.chat.completions.create(model="tiny", messages=HI, max_tokens=8, seed=1)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == again.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id == answer.id


def stream():
    whole = client.chat.completions.create(model="tiny", messages=HI, max_tokens=12, seed=3)
    parts = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=12, seed=3, stream=True,
        stream_options={"include_usage": True},
    )
    text, finish, usage = "", None, None
    for chunk in parts:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content, (text, whole)
    assert finish == whole.choices[0].finish_reason
    assert usage == whole.usage


def helper():
    """The library's own accumulator checks the shape of every event."""
    whole = client.chat.completions.create(model="tiny", messages=HI, max_tokens=6, seed=1)
    with client.chat.completions.stream(model="tiny", messages=HI, max_tokens=6, seed=1) as events:
        kinds = {event.type for event in events}
        so_far = events.current_completion_snapshot
    assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
    assert so_far.choices[0].message.content == whole.choices[0].message.content


def samples():
    answer = client.chat.completions.create(model="tiny", messages=HI, max_tokens=4, n=3, temperature=1.5)
    assert [c.index for c in answer.choices] == [0, 1, 2]


def parts():
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "!"}]},
    ]
    assert client.chat.completions.create(model="tiny", messages=messages, max_tokens=2).choices


def completions():
    answer = client.completions.create(model="tiny", prompt=["The cat", "A dog"], max_tokens=3, n=2)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    text = "".join(c.choices[0].text for c in client.completions.create(
        model="tiny", prompt="The", max_tokens=3, seed=1, stream=True) if c.choices)
    assert text == client.completions.create(model="tiny", prompt="The", max_tokens=3, seed=1).choices[0].text


def refusals():
    def refused(kind, **more):
        try:
            client.chat.completions.create(**{"model": "tiny", "messages": HI, **more})
        except kind as error:
            return error
        raise AssertionError(f"{more} was taken")

    assert refused(openai.BadRequestError, temperature=9).param == "temperature"
    assert refused(openai.BadRequestError, messages=[]).param == "messages"
    assert refused(openai.BadRequestError, max_tokens=10**6).code == "context_length_exceeded"
    assert refused(openai.NotFoundError, model="gpt-4o").code == "model_not_found"
    weather = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    assert "weather" in str(refused(openai.BadRequestError, tools=weather))
    stranger = OpenAI(api_key="some-other-key", max_retries=0)
    try:
        stranger.models.list()
        raise AssertionError("a wrong key was taken")
    except openai.AuthenticationError:
        pass


def many():
    async def ask(number):
        several = AsyncOpenAI(max_retries=0, timeout=60)
        return await several.chat.completions.create(model="tiny", messages=HI, max_tokens=4, seed=number)

    async def all_of_them():
        return await asyncio.gather(*(ask(i) for i in range(16)))

    assert len(asyncio.run(all_of_them())) == 16


for check in [models, whole, stream, helper, samples, parts, completions, refusals, many]:
    check()
    print(f"openai {openai.__version__} (python): {check.__name__} ok")
