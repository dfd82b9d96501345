"""The demo page: what its addresses say over HTTP, and, where there is a Chromium, what the page does with it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from served import PLUGLM, Served
from task_runs import parsed
from tiny_world import question, write_records

from kinject.cli.demo import main
from kinject.demo.demo import ALONE, EXAMPLES, NOTHING_READ, Demo, Example, examples_of
from kinject.demo.server import LONGEST_BODY, PAGE, address, listen, make_server, names_this
from kinject.errors import InputError

TEXT = "city3 is in [MASK] ."
TWO = "other Q55 is city3 in [MASK]"  # all texts are short, so that one padded length is compiled
NASTY = "bio <img src=x>"  # a folder's name is no markup

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium with its chromedriver on the PATH (apt-get install chromium-driver)"
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    made = Served(tmp_path_factory.mktemp("demo"))
    made.bio = made.plugin("bio", seed=2, knowledge=made.other_base().name, folder=made.folder / "more" / NASTY)
    write_records(made.folder / "examples.jsonl", [question(i) for i in range(9)])
    return made


@pytest.fixture(scope="module")
def demo(served):
    """Two plugins on two knowledge bases, whose names differ: `city3` is one's, `other Q55` the other's."""
    knowledge = (str(served.other_base()), str(served.knowledge))
    plugins = (str(served.plugin()), str(served.bio))
    return Demo.load(str(served.host()), plugins, knowledge, examples=[str(served.folder / "examples.jsonl")])


@contextmanager
def serving(demo):
    with listen("127.0.0.1", 0) as listening:
        server = make_server(demo)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield address(listening)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url(demo):
    with serving(demo) as found:
        yield found


def fetch(url, body=None, **headers):
    """(status, headers, content) of an address; `body` is posted as JSON unless it is bytes."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=1800) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def ask(url, text, *plugins):
    status, _, content = fetch(url + "api/answer", {"text": text, "plugins": plugins})
    return status, json.loads(content)


def test_the_page_names_no_other_machine_and_runs_nothing_inline(url):
    for path in PAGE:
        status, headers, content = fetch(url + path.lstrip("/"))
        assert status == 200 and b"http" not in content.replace(b"/api/", b"")
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    _, _, page = fetch(url)
    assert b"onclick" not in page and b"style=" not in page
    for wanted in (b'<label for="text">', b"<legend>", b'role="alert"', b'role="status"', b'lang="en"', b"viewport"):
        assert wanted in page
    script = fetch(url + "page.js")[2]
    assert b"innerHTML" not in script and b"insertAdjacent" not in script and b"eval" not in script


def test_what_can_be_chosen(url):
    about = json.loads(fetch(url + "api/about")[2])
    assert about["host"].endswith("host_cloze_0") and [one["name"] for one in about["plugins"]] == ["geo", NASTY]
    assert about["plugins"][0]["knowledge"] == {"name": "cities", "entities": 60}
    known = {question(i)["text"]: question(i)["label"] for i in range(9)}
    assert len(about["examples"]) == len({one["text"] for one in about["examples"]}) == EXAMPLES
    assert all(one["right"] == known[one["text"]] for one in about["examples"])


def test_one_entity_under_several_questions_and_one_question_under_several_entities_are_offered():
    kinds = ("land", "size", "near", "tongue")
    values = [
        {**question(i), "text": f"{kind}: city{i} [MASK]", "mentions": [], "kind": kind, "wording": kind}
        | {"mentions": [{"start": len(kind) + 2, "end": len(kind) + 2 + len(f"city{i}"), "entity": f"Q{i}"}]}
        for i in range(9)
        for kind in kinds
    ]
    asked = [re.fullmatch(r"(\w+): (\w+) \[MASK\]", one.text).groups() for one in examples_of(parsed(*values))]
    assert len({city for _, city in asked[:EXAMPLES]}) == 1 and len({kind for kind, _ in asked[:EXAMPLES]}) == EXAMPLES
    assert len({kind for kind, _ in asked[EXAMPLES:]}) == 1 and len({city for _, city in asked[EXAMPLES:]}) == EXAMPLES
    assert examples_of(parsed({"text": "no label"})) == [Example("no label", None)] and examples_of([]) == []


def test_an_answer_is_what_the_api_says(url, demo):
    """The page has no second way: `Host.predict` of the same host, with the same plugin in, says the same."""
    status, answer = ask(url, TEXT, "geo")
    assert status == 200 and answer["notice"] is None and answer["plugins"] == ["geo"]
    expected = next(demo.host.stream(TEXT, compare=True, explain=True)).to_json()
    assert {name: answer[name] for name in expected} == expected
    assert answer["entities"][0]["name"] == "city3" and answer["explain"]["entities"][0]["without"]
    with demo.host.unplugged():
        alone = next(demo.host.stream(TEXT)).to_json()
    assert answer["before"] == alone["labels"] != answer["labels"]


def test_plugins_are_switched(url):
    _, geo = ask(url, TWO, "geo")
    _, bio = ask(url, TWO, NASTY)
    _, both = ask(url, TWO, NASTY, "geo")
    _, none = ask(url, TWO)
    answers = [one["labels"] for one in (geo, bio, both, none)]
    assert all(one != other for i, one in enumerate(answers) for other in answers[:i])
    assert [one["plugin"] for one in both["entities"]] == [NASTY, "geo"]
    assert none["notice"] == ALONE and none["labels"] == none["before"] == geo["before"]
    _, unread = ask(url, TEXT, NASTY)
    assert unread["notice"] == NOTHING_READ and unread["labels"] == unread["before"]
    assert ask(url, TWO, "geo")[1] == geo, "nothing of the questions between is left"


def test_what_cannot_be_answered_is_one_line(url):
    def refused(status, says, **request):
        got, _, content = fetch(url + "api/answer", **request)
        line = json.loads(content)["error"]
        assert got == status and says in line and "\n" not in line, (got, line)

    refused(422, "text: it is empty; type a sentence", body={"text": " \n", "plugins": ["geo"]})
    refused(422, "text: field text has 0 [MASK]", body={"text": "city3", "plugins": []})
    refused(422, "did you mean geo?", body={"text": TEXT, "plugins": ["goe"]})
    refused(422, "text: it has 10,001 characters", body={"text": "x" * 10_001})
    refused(422, "it is not JSON", body=b"{")
    refused(422, "the field text is missing", body={"text": 3})
    refused(422, "no list of names", body={"text": TEXT, "plugins": "geo"})
    refused(413, "more than", body=b"x" * (LONGEST_BODY + 1))
    refused(415, "application/json", body=b"{}", **{"Content-Type": "text/plain"})
    refused(422, "text: field 'text' has half of a surrogate", body=b'{"text": "\\ud800 [MASK]"}')
    refused(422, "key 'text' stands twice", body=b'{"text": "a", "text": "b"}')
    refused(422, "it is not JSON", body=b"[" * 60_000)
    foreign = {"Host": "elsewhere.example"}
    for status, path, headers in ((400, "", foreign), (404, "../setup.py", {}), (404, "none", {})):
        got, _, content = fetch(url + path, **headers)
        assert got == status and json.loads(content)["error"], "every answer is JSON"
    got, _, content = fetch(url + "api/answer")
    assert got == 405 and "Method Not Allowed" in json.loads(content)["error"]
    assert ask(url, TEXT, "geo")[0] == 200


@pytest.mark.parametrize(
    ("header", "bind", "ours"),
    [
        ("127.0.0.1:8000", "127.0.0.1", True),
        ("LOCALHOST.:8000", "127.0.0.1", True),
        ("[::1]:8000", "127.0.0.1", True),
        ("192.168.0.7", "127.0.0.1", False),
        ("elsewhere.example", "0.0.0.0", False),
        ("192.168.0.7:8000", "0.0.0.0", True),
        ("[fe80::1]:8000", "::", True),
        ("", "0.0.0.0", False),
        ("box.lan:80", "box.lan", True),
        ("127.0.0.1.elsewhere.example", "0.0.0.0", False),
    ],
)
def test_a_host_header_names_this_machine_or_is_refused(header, bind, ours):
    assert names_this(header, bind) is ours


@pytest.mark.slow  # its answers are those of test_predict.py; here only the way to them
def test_passages_are_handed_on(served):
    plugin = served.plugin("memory_plugin", knowledge=None, method=PLUGLM)
    with pytest.raises(InputError, match="it answers from a memory of passages"):
        Demo.load(str(served.host()), [str(plugin)])
    demo = Demo.load(str(served.host()), [str(plugin)], memory=[str(served.memory(plugin))])
    answer = demo.answer(TEXT, [plugin.name])
    assert answer["notice"] is None and len(answer["explain"]["passages"]) == 2


def test_what_does_not_belong_together_is_told_before_the_page_is_there(served, capsys):
    host, plugin, knowledge = (str(one) for one in (served.host(), served.plugin(), served.knowledge))

    def refused(says, *arguments):
        assert main(["--host", host, "--port", "0", "--no-compilation-cache", *arguments]) == 2
        told = capsys.readouterr()
        assert says in told.err and told.err.count("\n") == 1 and not told.out

    refused("which is none of those given", "--plugin", plugin)
    refused("vectors of another embedding space", "--plugin", plugin, "--knowledge", str(served.other_base(dim=8)))
    refused("there is no plugin that reads it", "--plugin", plugin, "--knowledge", knowledge, "--memory", "m")
    refused("--port", "--plugin", plugin, "--port", "99999")


def test_the_command(served):
    """As a process: it prints its address, answers there, and Ctrl-C ends it without a word."""
    command = [sys.executable, "-m", "kinject", "demo", "--host", served.host(), "--plugin", served.plugin()]
    command += ["--knowledge", served.knowledge, "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(list(map(str, command)), env=environment, **pipes) as running:
        try:
            where = running.stdout.readline().split()[2]
            assert where.startswith("http://127.0.0.1:") and fetch(where)[0] == 200
        finally:
            running.send_signal(signal.SIGINT)
            _, error = running.communicate(timeout=1800)
    assert running.returncode == 0 and error == ""


@pytest.fixture(scope="module")
def browser(url):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for one in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=390,844"):
        options.add_argument(one)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    driver.set_page_load_timeout(1800)
    yield driver
    driver.quit()


class Page:
    """The page as somebody at the keyboard sees it."""

    def __init__(self, driver, url):
        from selenium.webdriver.support.ui import WebDriverWait

        self.driver, self.wait = driver, WebDriverWait(driver, 1800, 0.05)
        driver.get(url)
        self.wait.until(lambda _: self.all("#plugins input"))

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def texts(self, css):
        return [one.text for one in self.all(css)]

    def done(self):
        """Waits until no question is open."""
        self.wait.until(lambda _: self.all("#ask")[0].is_enabled())
        return self

    def type(self, text):
        from selenium.webdriver.common.keys import Keys

        (area,) = self.all("#text")
        area.clear()
        area.send_keys(text, Keys.ENTER)
        return self.done()

    def tick(self, number):
        self.all("#plugins input")[number].click()
        return self.done()


@needs_browser
def test_type_and_switch_the_plugin_and_the_answer_changes(browser, url):
    page = Page(browser, url).type(TWO)
    assert page.texts("#marked mark") == ["city3"], "the first plugin is chosen at the beginning"
    assert page.texts("#after-title") == ["With geo"]
    geo, before = page.texts("#after .score"), page.texts("#before .score")
    assert len(geo) == len(before) == 5 and geo != before
    assert page.all("#reasons td")[0].text == "city3" and page.all("#reasons td")[1].text.endswith("points")
    page.tick(0).tick(1)
    assert page.texts("#after .score") != geo and page.texts("#before .score") == before
    assert page.texts("#marked mark") == ["other Q55"] and page.texts("#after-title") == [f"With {NASTY}"]
    page.tick(1)
    assert page.texts("#status") == [ALONE] and not page.all("#after")[0].is_displayed()
    page.tick(0)
    assert page.texts("#after .score") == geo
    assert page.texts("#right") == [""], "nobody knows"
    offered = page.all("#examples button")[1].text
    page.all("#examples button")[1].click()
    page.done()
    (label,) = (question(i)["label"] for i in range(9) if question(i)["text"] == offered)
    assert page.texts("#marked") == [offered] and page.texts("#right") == [f"Right is: {label}"]


@needs_browser
def test_errors_are_shown_and_no_text_becomes_markup(browser, url):
    page = Page(browser, url)
    text = "<b>city3 😀 city4 [MASK]"
    browser.execute_script("document.getElementById('text').value = arguments[0]", text)  # the driver types no 😀
    page.all("#ask")[0].click()
    assert page.done().texts("#marked") == [text]
    assert page.texts("#marked mark") == ["city3", "city4"], "offsets count code points"
    assert not page.all("#results b, #results img, #plugins img")
    assert page.all("#plugins label")[1].text.startswith(NASTY)
    page.type("")
    assert page.texts("#error") == ["text: it is empty; type a sentence"] and not page.all("#results")[0].is_displayed()
    page.type("city3")
    assert "has 0 [MASK]" in page.texts("#error")[0]
    assert page.tick(0).tick(1).type("city3 [MASK]").texts("#status") == [NOTHING_READ] and page.texts("#error") == [""]
    width = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(width) == 0, "no scrolling to the side on a phone"
    unnamed = [one.accessible_name for one in page.all("input, textarea, button") if not one.accessible_name]
    assert not unnamed
    assert not [one for one in browser.get_log("browser") if "422" not in one["message"]]
