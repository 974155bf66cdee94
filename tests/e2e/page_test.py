#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""page_test.py NIBBLE MODEL [PICTURE.png]: the server's page in headless Chromium, by keyboard alone.

Types a text, sends it with Enter, reads the answer as it streams, stops one with Escape, looks at the gauges, changes between
dark and light; with two recipes loaded, changes between them and reads their answers side by side; nothing may be asked for from outside and no message may reach the console. Exit code 77: no Chromium here.
"""
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page:
    """Chromium's debugging protocol over a pair of pipes: JSON messages that end with a zero byte."""

    def __init__(self, folder):
        command_read, self.commands = os.pipe()
        self.answers, answer_write = os.pipe()

        def pipes():
            os.dup2(command_read, 3)
            os.dup2(answer_write, 4)

        self.process = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--window-size=1100,800",
             f"--user-data-dir={folder}", "about:blank"], preexec_fn=pipes, close_fds=False, stderr=subprocess.DEVNULL)
        os.close(command_read)
        os.close(answer_write)
        self.held, self.number, self.session = b"", 0, None
        self.messages, self.asked = [], []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(domain + ".enable")

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.held:
                some = os.read(self.answers, 1 << 16)
                if not some:
                    raise RuntimeError("the browser is gone")
                self.held += some
            line, self.held = self.held.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                return answer["result"]
            if answer.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.messages.append(answer["params"])
            if answer.get("method") == "Network.requestWillBeSent":
                self.asked.append(answer["params"]["request"]["url"])

    def value(self, script):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"]
        return result.get("value")

    def wait(self, script, seconds=20):
        until = time.time() + seconds
        while time.time() < until:
            if self.value(f"Boolean({script})"):
                return
            time.sleep(0.05)
        raise AssertionError(f"never: {script}; the page says {self.value('document.body.innerText')!r}")

    def type(self, text):
        self.call("Input.insertText", text=text)

    def press(self, key, code):
        text = {"Enter": "\r", " ": " "}.get(key)
        for kind in ("rawKeyDown", "char", "keyUp") if text else ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code="Space" if key == " " else key, windowsVirtualKeyCode=code,
                      **({"text": text} if kind == "char" else {}))


def check(page, url, picture):
    page.call("Page.navigate", url=url + "/")
    page.wait("document.getElementById('model') && document.getElementById('model').textContent.includes('novelist')")
    page.wait("document.getElementById('pages').textContent.includes(' of ')")
    assert page.value("document.activeElement.id") == "prompt", "typing starts at once"
    page.type("<b>It was a dark</b> and stormy")
    page.press("Enter", 13)
    page.wait("document.querySelector('#talk li.assistant .figures')")
    assert page.value("document.querySelector('#talk li.user').innerText").endswith("<b>It was a dark</b> and stormy"), "text stays text"
    assert page.value("document.querySelector('#talk li.assistant').innerText.length") > 40
    page.value("document.getElementById('max_tokens').value = 3000")
    page.type("Once upon a time")
    page.press("Enter", 13)
    page.wait("document.querySelectorAll('#talk li.assistant').length == 2")
    page.wait("Number(document.getElementById('running').textContent) == 1")
    page.press("Escape", 27)
    page.wait("!document.getElementById('send').disabled")
    page.wait("Number(document.getElementById('running').textContent) == 0")
    assert page.value("document.getElementById('pick').checkVisibility()") is False, "nothing to choose from"
    before = page.value("getComputedStyle(document.body).backgroundColor")
    page.value("document.getElementById('theme').click()")
    assert page.value("getComputedStyle(document.body).backgroundColor") != before
    if picture:
        with open(picture, "wb") as file:
            file.write(base64.b64decode(page.call("Page.captureScreenshot")["data"]))
    assert not page.messages, page.messages
    outside = [u for u in page.asked if not u.startswith(url) and not u.startswith("data:")]
    assert not outside, outside


def tab_to(page, id):
    for _ in range(20):
        page.press("Tab", 9)
        if page.value("document.activeElement.id") == id:
            return
    raise AssertionError(f"Tab never reaches {id}")


def check_recipes(page, url, picture):
    page.call("Page.navigate", url=url + "/")
    page.wait("document.querySelectorAll('#pick option').length == 2")
    assert "exact" in page.value("document.getElementById('model').textContent")
    assert "32 KV bits" in page.value("document.getElementById('model').textContent")
    tab_to(page, "pick")
    page.press("ArrowDown", 40)
    page.wait("document.getElementById('model').textContent.startsWith('qserve')")
    page.value("document.getElementById('max_tokens').value = 40")
    page.value("document.getElementById('prompt').focus()")
    page.type("It was a dark and stormy")
    page.press("Enter", 13)
    page.wait("document.querySelector('#talk li.assistant .figures')")
    assert page.value("document.querySelector('#talk li.assistant .who').textContent").startswith("novelist-10m:qserve · 4.")
    tab_to(page, "beside")
    page.press(" ", 32)
    assert page.value("document.getElementById('beside').checked"), "the space bar ticks it"
    page.value("document.getElementById('prompt').focus()")
    page.type("Once upon a time")
    page.press("Enter", 13)
    page.wait("document.querySelectorAll('#talk li.side li.assistant .figures').length == 2")
    who = page.value("[...document.querySelectorAll('#talk li.side .who')].map((e) => e.textContent).join('|')")
    assert who.startswith("novelist-10m · 32 KV bits|novelist-10m:qserve · 4."), who
    boxes = page.value("[...document.querySelectorAll('#talk li.side li')].map((e) => e.getBoundingClientRect().top)")
    assert boxes[0] == boxes[1], "side by side"
    if picture:
        with open(picture.replace(".png", "_recipes.png"), "wb") as file:
            file.write(base64.b64decode(page.call("Page.captureScreenshot")["data"]))
    assert not page.messages, page.messages


def run(check_page, more, picture):
    server = subprocess.Popen([sys.argv[1], "serve", "-m", sys.argv[2], "--port", "0", "--no-log", "--quiet", *more],
                              stdout=subprocess.PIPE, text=True)
    url = server.stdout.readline().strip()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = Page(folder)
        try:
            check_page(page, url, picture)
        finally:
            page.process.kill()
            page.process.wait()
            server.send_signal(signal.SIGTERM)
            code = server.wait(timeout=40)
    print(f"the page works; {len(page.asked)} requests, all to the server, which ended with {code}")
    return code


def main():
    if not CHROMIUM:
        print("skipped: there is no Chromium here")
        return 77
    picture = sys.argv[3] if len(sys.argv) > 3 else ""
    return run(check, [], picture) or run(check_recipes, ["--recipes", "exact,qserve"], picture)


if __name__ == "__main__":
    sys.exit(main())
