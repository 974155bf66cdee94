#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""report_page_test.py NIBBLE: the page of `nibble compare` in headless Chromium, at the width of a desk and of a phone.

Checks the picture (not blank), the drawn document (a mark a recipe in each plot, a row in the table, names as text), and that
the script complains about nothing and asks for nothing from outside. Then breaks the page in four ways that must each be
caught. Exit code 77: there is no Chromium here.
"""
import html.parser
import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

SOURCE = pathlib.Path(__file__).resolve().parent.parent
RECIPES = ["exact", "kv8", "qserve", "kivi2", "k=int8-token v=int4-token"]
WIDTHS = [1280, 390]
HOSTILE = "<img src=x onerror=console.error(1)>&amp;'\" novel.txt"  # a file name that must stay text


def make_page(nibble, folder):
    text = folder / HOSTILE
    text.write_bytes((SOURCE / "texts/Doyle_Hound_1902.txt").read_bytes()[:60000])
    page = folder / "report.html"
    command = [nibble, "compare", "-m", str(SOURCE / "models/novelist-10m"), "--text", str(text), "--recipes", ",".join(RECIPES)]
    command += ["--window", "256", "--max-windows", "2", "--context", "400", "--trials", "1", "-o", str(page), "--json"]
    data = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return page.read_text(encoding="utf-8"), data


class Browser:
    def __init__(self, program, folder):
        self.program, self.folder = program, folder

    def run(self, url, width, *options):
        # Headless windows have a least width, so the page is shown in a frame of the width that is meant.
        command = [self.program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-extensions"]
        command += ["--no-first-run", "--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=4000"]
        command += [f"--user-data-dir={self.folder}/profile", f"--window-size={max(width, 600)},1600", *options, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.stdout, re.findall(r"CONSOLE[^\n]*", done.stderr)

    def look(self, page, width):
        """The drawn document, messages of the console, and the rows of pixels (RGB) of a picture."""
        file, frame = self.folder / "page.html", self.folder / "frame.html"
        picture = self.folder / f"page-{width}.png"
        file.write_text(page, encoding="utf-8")
        frame.write_text(f'<body style="margin:0"><iframe src="page.html" style="width:{width}px;height:1600px;border:0"></iframe>')
        dom, messages = self.run(file.as_uri(), width, "--dump-dom")
        _, more = self.run(frame.as_uri(), width, f"--screenshot={picture}")
        return dom, messages + more, read_png(picture.read_bytes())


def read_png(data):
    """Rows of RGB bytes of an 8-bit PNG without interlacing (RGB or RGBA), which is what browsers write."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed = 8, b""
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height, depth, color, _, _, interlace = struct.unpack(">IIBBBBB", body)
        if kind == b"IDAT":
            packed += body
        at += size + 12
    assert depth == 8 and interlace == 0 and color in (2, 6)
    step, raw, rows = 3 if color == 2 else 4, zlib.decompress(packed), []
    previous = bytearray(width * step)
    for y in range(height):
        start = y * (width * step + 1)
        rule, line = raw[start], bytearray(raw[start + 1 : start + 1 + width * step])
        for x in range(len(line)):
            a, b, c = line[x - step] if x >= step else 0, previous[x], previous[x - step] if x >= step else 0
            if rule == 1:
                line[x] = (line[x] + a) & 255
            elif rule == 2:
                line[x] = (line[x] + b) & 255
            elif rule == 3:
                line[x] = (line[x] + (a + b) // 2) & 255
            elif rule == 4:
                p = a + b - c
                nearest = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
                line[x] = (line[x] + nearest) & 255
        rows.append(line)
        previous = line
    return width, step, rows


class Reader(html.parser.HTMLParser):
    """Counts what a page shows."""

    def __init__(self):
        super().__init__()
        self.marks, self.labels, self.rows, self.images, self.outside, self.ready = 0, 0, 0, 0, [], False
        self.headline, self.where = "", []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        classes = (attributes.get("class") or "").split()
        self.marks += tag == "g" and "mark" in classes
        self.labels += tag == "text" and "name" in classes
        self.images += tag == "img"
        self.rows += tag == "tr" and "data-recipe" in attributes
        self.ready |= attributes.get("data-ready") == "yes"
        for key in ("src", "href"):
            if not (attributes.get(key) or "data:").startswith(("data:", "#")):
                self.outside.append(attributes[key])
        self.where.append(attributes.get("id"))

    def handle_endtag(self, tag):
        if self.where:
            self.where.pop()

    def handle_data(self, data):
        if "headline" in self.where[-2:]:
            self.headline += data


def faults(browser, page, data, widths):
    found = []
    for width in widths:
        dom, messages, (pixels, step, rows) = browser.look(page, width)
        reader = Reader()
        reader.feed(dom)
        found += [f"console: {m}" for m in messages]
        recipes = len(data["recipes"])
        if not reader.ready:
            found.append("the script did not come to its end")
        if reader.marks != 2 * recipes:
            found.append(f"{reader.marks} marks for {recipes} recipes in two plots")
        if reader.labels < 3:
            found.append(f"only {reader.labels} names in the plots")
        if reader.rows != 3 * recipes:  # retrieval, layers, all figures
            found.append(f"{reader.rows} rows for {recipes} recipes in three tables")
        if reader.images or reader.outside:
            found.append(f"images or addresses: {reader.outside}")
        if data["recommended"] not in reader.headline:
            found.append(f"the head line is '{reader.headline}'")
        colors = {bytes(row[x : x + 3]) for row in rows[::3] for x in range(0, min(width, pixels) * step, 3 * step)}
        if len(colors) < 40:
            found.append(f"{len(colors)} colours at {width} pixels: a blank picture")
    return found


def main():
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        print("skipped: there is no Chromium here (tools/packages-ci.txt names it), so the page was not looked at")
        return 77
    with tempfile.TemporaryDirectory(prefix="nibble-page-") as name:
        folder = pathlib.Path(name)
        page, data = make_page(sys.argv[1], folder)
        browser = Browser(program, folder)
        found = faults(browser, page, data, WIDTHS)
        for fault in found:
            print(f"report page: {fault}")
        broken = {
            "an error in the script": page.replace("drawPlots();\nlet width", "drawPlots(;\nlet width"),
            "a recipe that is not drawn": page.replace("for (const r of order) {", "for (const r of order.slice(1)) {"),
            "a picture from outside": page.replace("<main>", '<main><img src="https://nibble.invalid/x.png">'),
            "a name that becomes markup": page.replace("if (text !== undefined) e.textContent = text;\n  if (parent) parent.appendChild(e);\n  return e;\n}\nfunction svg", "if (text !== undefined) e.innerHTML = text;\n  if (parent) parent.appendChild(e);\n  return e;\n}\nfunction svg").replace('$("foot").textContent', '$("foot").innerHTML'),
        }
        for what, wrong in broken.items():
            if wrong == page or not faults(browser, wrong, data, WIDTHS[:1]):
                found.append(what)
                print(f"report page: {what} was not noticed")
    print("the page is drawn at both widths, and each of four faults is noticed" if not found else f"{len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
