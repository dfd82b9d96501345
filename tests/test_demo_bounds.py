"""The demo awaits nobody for ever: neither a question behind others, nor an answer that does not come."""

import asyncio
import json
import time

import pytest

from kinject.demo import demo as demos
from kinject.demo import server
from kinject.demo.demo import Demo
from kinject.serving import Host


@pytest.fixture(scope="module")
def demo(small_world):
    return Demo(Host.load(small_world / "host", batch_size=1, window=1), [], name="h")


def asked(app, body):
    """(status, JSON) of POST /api/answer, as a server would ask."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/api/answer", "headers": headers, "query_string": b""}
    asyncio.run(app({**scope, "root_path": "", "scheme": "http", "server": ("localhost", 1)}, receive, send))
    return sent[0]["status"], json.loads(b"".join(one.get("body", b"") for one in sent[1:]))


@pytest.mark.parametrize(("bound", "module"), [("PATIENCE", demos), ("ANSWER_SECONDS", server)])
def test_a_question_behind_one_that_takes_long_is_told_to_come_again(demo, monkeypatch, bound, module):
    monkeypatch.setattr(demos, "PATIENCE", 2.0)
    monkeypatch.setattr(module, bound, 0.2)
    app, began = server.make_app(demo), time.monotonic()
    with demo._lock:  # as while another question is answered
        status, answer = asked(app, b'{"text": "city1 is in [MASK] .", "plugins": []}')
    assert status == 503 and "it did not come within" in answer["error"] and time.monotonic() - began < 5
    status, answer = asked(app, b'{"text": "city1 is in [MASK] .", "plugins": []}')
    assert (status == 200 and answer["labels"]) or bound == "ANSWER_SECONDS"
