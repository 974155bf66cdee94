#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The real `openai` and `anthropic` clients against the real server: clients_test.py NIBBLE MODEL.

Skips (exit code 77), and says so, where the packages are not installed:
    python3 -m venv out/e2e && out/e2e/bin/pip install openai anthropic
    out/e2e/bin/python tests/e2e/clients_test.py out/release/nibble models/novelist-10m
"""
import asyncio
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request

try:
    import anthropic
    import openai
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

TEMPLATE = """{% for m in messages %}[{{ m.role }}] {{ m.content }}
{% for c in m.tool_calls or [] %}<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>
{% endfor %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
KEY = "a-key"
WEATHER = {"type": "object", "properties": {"city": {"enum": ["London", "Paris"]}}, "required": ["city"],
           "additionalProperties": False}


class Server:
    def __init__(self, nibble, model):
        self.folder = tempfile.TemporaryDirectory()
        template = os.path.join(self.folder.name, "t.jinja")
        with open(template, "w") as file:
            file.write(TEMPLATE)
        self.process = subprocess.Popen(
            [nibble, "serve", "-m", model, "-a", "novelist", "--port", "0", "--api-key", KEY, "--no-log",
             "--chat-template-file", template], stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()  # the server answers from here on
        if not self.url:
            raise SystemExit("the server did not start")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=30)
        self.process.stdout.close()
        return code


def user(text):
    return [{"role": "user", "content": text}]


def completions(client):
    whole = client.completions.create(model="novelist", prompt="It was a dark", max_tokens=20, temperature=0)
    stream = client.completions.create(model="novelist", prompt="It was a dark", max_tokens=20, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in stream) == whole.choices[0].text
    assert whole.usage.completion_tokens == 20 and whole.choices[0].finish_reason == "length"
    many = client.completions.create(model="novelist", prompt=["One", "Two"], n=2, max_tokens=4, seed=7)
    assert [c.index for c in many.choices] == [0, 1, 2, 3]
    again = client.completions.create(model="novelist", prompt=["One", "Two"], n=2, max_tokens=4, seed=7)
    assert [c.text for c in many.choices] == [c.text for c in again.choices]
    best = client.completions.create(model="novelist", prompt="One", n=1, best_of=3, max_tokens=4)
    assert len(best.choices) == 1 and best.usage.completion_tokens == 12


def echo_and_logprobs(client):
    got = client.completions.create(model="novelist", prompt=[[5, 6, 7, 8]], max_tokens=1, logprobs=2, echo=True,
                                    temperature=0).choices[0].logprobs
    assert len(got.tokens) == len(got.token_logprobs) == len(got.top_logprobs) == 5
    assert got.token_logprobs[0] is None and all(p <= 0 for p in got.token_logprobs[1:])
    chat = client.chat.completions.create(model="novelist", messages=user("Hi"), max_tokens=3, logprobs=True,
                                          top_logprobs=2, temperature=0).choices[0].logprobs.content
    assert len(chat) == 3 and all(t.top_logprobs[0].logprob >= t.logprob for t in chat)
    assert all(bytes(t.bytes).decode(errors="replace") for t in chat)


def tokenize(client, text):
    root = str(client.base_url).removesuffix("v1/")
    request = urllib.request.Request(root + "tokenize", json.dumps({"prompt": text}).encode(),
                                     {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]


def perplexity(client, nibble, model):
    """What lm-eval computes from echoed logprobs is what `nibble eval` prints."""
    text = os.path.join(os.path.dirname(__file__), "../../texts/Doyle_Hound_1902.txt")
    evaluated = json.loads(subprocess.run([nibble, "eval", "-m", model, "--text", text, "--window", "256", "--max-windows", "4", "--json"],
                                          capture_output=True, check=True, text=True).stdout)
    with open(text) as file:
        words = file.read()[:20000]
    ids = tokenize(client, words)
    bos, ids = ids[0], ids[1:]
    total = 0.0
    for i in range(4):
        window = [bos] + ids[i * 255:(i + 1) * 255]
        got = client.completions.create(model="novelist", prompt=[window], max_tokens=0, logprobs=0, echo=True)
        total -= sum(got.choices[0].logprobs.token_logprobs[1:])
    assert abs(math.exp(total / (4 * 255)) - evaluated["perplexity"]) < 1e-3, (math.exp(total / (4 * 255)), evaluated["perplexity"])


def chats(client):
    whole = client.chat.completions.create(model="novelist", messages=user("Who goes there?"), max_tokens=16, temperature=0)
    stream = list(client.chat.completions.create(model="novelist", messages=user("Who goes there?"), max_tokens=16,
                                                 temperature=0, stream=True, stream_options={"include_usage": True}))
    assert stream[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == whole.choices[0].message.content
    assert stream[-1].usage.completion_tokens == whole.usage.completion_tokens == 16
    go_on = client.chat.completions.create(
        model="novelist", messages=user("Hi") + [{"role": "assistant", "content": "Once upon"}], max_tokens=4,
        extra_body={"continue_final_message": True, "add_generation_prompt": False})
    assert go_on.choices[0].message.content


def structured(client):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"],
              "additionalProperties": False}
    got = client.chat.completions.create(
        model="novelist", messages=user("A number"), max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert 0 <= json.loads(got.choices[0].message.content)["n"] <= 9
    got = client.completions.create(model="novelist", prompt="x", extra_body={"guided_regex": "[ab]{5}"})
    assert re.fullmatch("[ab]{5}", got.choices[0].text)
    got = client.completions.create(model="novelist", prompt="x", extra_body={"guided_choice": ["yes", "no"]})
    assert got.choices[0].text in ("yes", "no")


def tools(client):
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
    choice = {"type": "function", "function": {"name": "weather"}}
    got = client.chat.completions.create(model="novelist", messages=user("Rain?"), tools=[tool], tool_choice=choice, max_tokens=80)
    call = got.choices[0].message.tool_calls[0]
    assert got.choices[0].finish_reason == "tool_calls" and call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("London", "Paris")
    stream = client.chat.completions.create(model="novelist", messages=user("Rain?"), tools=[tool], tool_choice=choice,
                                            max_tokens=80, stream=True)
    deltas = [c.choices[0].delta.tool_calls[0] for c in stream if c.choices and c.choices[0].delta.tool_calls]
    assert deltas[0].index == 0 and json.loads("".join(d.function.arguments for d in deltas))["city"]


def others(client):
    assert [m.id for m in client.models.list()] == ["novelist"]
    assert client.models.retrieve("novelist").id == "novelist"
    vectors = client.embeddings.create(model="novelist", input=["a dark night", "a bright day"])  # base64 by default
    assert len(vectors.data) == 2 and abs(sum(x * x for x in vectors.data[0].embedding) - 1) < 1e-3
    numbers = client.embeddings.create(model="novelist", input="a dark night", encoding_format="float")
    assert max(abs(a - b) for a, b in zip(numbers.data[0].embedding, vectors.data[0].embedding)) < 1e-6


def responses(client):
    whole = client.responses.create(model="novelist", input="Who goes there?", max_output_tokens=16, temperature=0)
    assert whole.status == "incomplete" and whole.incomplete_details.reason == "max_output_tokens" and whole.output_text
    text, last = "", None
    for event in client.responses.create(model="novelist", input="Who goes there?", max_output_tokens=16, temperature=0, stream=True):
        last = event
        if event.type == "response.output_text.delta":
            text += event.delta
    assert text == whole.output_text == last.response.output_text and last.type == "response.incomplete"


def errors(client, url):
    for what, kind in [({"model": "other", "prompt": "x"}, openai.NotFoundError), ({"model": "novelist", "prompt": "x", "n": 0}, openai.BadRequestError),
                       ({"model": "novelist", "prompt": "x", "extra_body": {"guided_regex": "["}}, openai.BadRequestError)]:
        try:
            client.completions.create(**what)
            raise AssertionError(what)
        except kind as error:
            assert error.body["message"], error.body
    try:
        openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0).models.list()
        raise AssertionError("a wrong key")
    except openai.AuthenticationError:
        pass


async def together(url, count):
    client = openai.AsyncOpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0)

    async def one(i):
        stream = await client.completions.create(model="novelist", prompt=f"Chapter {i}", max_tokens=30, temperature=0, stream=True)
        return "".join([c.choices[0].text async for c in stream])

    texts = await asyncio.gather(*[one(i) for i in range(count)])
    for i in (0, count - 1):
        alone = await client.completions.create(model="novelist", prompt=f"Chapter {i}", max_tokens=30, temperature=0)
        assert texts[i] == alone.choices[0].text
    await client.close()


def messages(url):
    client = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)
    ask = {"model": "novelist", "system": "Be brief.", "messages": user("Who goes there?")}
    whole = client.messages.create(max_tokens=16, extra_body={"temperature": 0}, **ask)
    assert whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 16
    with client.messages.stream(max_tokens=16, extra_body={"temperature": 0}, **ask) as stream:
        text = "".join(stream.text_stream)
        assert text == whole.content[0].text == stream.get_final_message().content[0].text
    assert client.messages.count_tokens(**ask).input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    tool = {"name": "weather", "input_schema": WEATHER}
    call = client.messages.create(max_tokens=80, tools=[tool], tool_choice={"type": "any"}, **ask)
    assert call.stop_reason == "tool_use" and call.content[0].input["city"] in ("London", "Paris")
    stop = client.messages.create(max_tokens=200, stop_sequences=["the"], extra_body={"temperature": 0}, **ask)
    assert stop.stop_reason in ("stop_sequence", "max_tokens", "end_turn")
    try:
        client.messages.create(max_tokens=5, model="other", messages=user("x"))
        raise AssertionError("another model")
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error"


def main():
    server = Server(sys.argv[1], sys.argv[2])
    client = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0)
    cases = [lambda f=f: f(client) for f in (completions, echo_and_logprobs, chats, structured, tools, others, responses)]
    names = ["completions", "echo_and_logprobs", "chats", "structured", "tools", "others", "responses"]
    cases += [lambda: perplexity(client, sys.argv[1], sys.argv[2]), lambda: errors(client, server.url), lambda: asyncio.run(together(server.url, 40)), lambda: messages(server.url)]
    names += ["perplexity", "errors", "together", "messages"]
    failed = 0
    for name, case in zip(names, cases):
        try:
            case()
            print(f"ok      {name}")
        except Exception as error:  # every case is tried, whatever becomes of the others
            failed += 1
            print(f"FAILED  {name}: {type(error).__name__}: {error}")
    code = server.stop()
    print(f"{len(cases) - failed} of {len(cases)} pass with openai {openai.__version__}, anthropic {anthropic.__version__}; "
          f"the server ended with {code}")
    return 1 if failed or code != 0 else 0


if __name__ == "__main__":
    sys.exit(main())
