"""Markup in every text of runs and results, opened in a browser: none of it becomes elements.

The pages are opened without their content security policy, so that escaping alone must do. A
control shows that the same markup acts where it is not escaped.
"""

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from analyses.claims import Claim
from analyses.page import write_report
from analyses.results import Meta, Results
from opdprobe.cli.parser import main
from opdprobe.store import RunWriter
from opdprobe.testing import synthetic_step

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH"),
    pytest.mark.skipif(sys.platform == "win32", reason="names of files hold markup"),
]

ACT = "document.title=&quot;stolen&quot;;window.stolen=1"
ACTS = 'document.title="stolen";window.stolen=1'
# Ways out of a text, an attribute in any quotes, a comment, a script, a style and a title.
MARKUP = (
    f"<script>{ACTS}</script><img src=x data-stolen onerror='{ACTS}'>"
    f"\"><svg data-stolen onload='{ACTS}'></svg>'><b data-stolen>b</b>-->"
    "</title></style></textarea>"
    f"</script><script>{ACTS}</script><iframe data-stolen srcdoc='<b>'></iframe>"
    f"<a data-stolen href='javascript:{ACTS}'>a</a>"
    "<meta http-equiv=refresh content='0;url=data:,x'>"
    f"' data-stolen autofocus onfocus='{ACTS}' \" data-stolen onmouseover=\"{ACT}\" ${{{ACTS}}}"
)
# After the page has unpacked its data, look at all that it can show.
PLAY = """<script>(async () => {
const wait = (ms) => new Promise((r) => setTimeout(r, ms));
const end = Date.now() + 4000;
const press = (element, kind) => element.dispatchEvent(new Event(kind, {bubbles: true}));
while (document.getElementById("status") && Date.now() < end) await wait(20);
for (const one of document.querySelectorAll("details")) one.open = true;
for (const one of document.querySelectorAll("select"))
  for (let i = 0; i < Math.min(one.options.length, 6); i++) {
    if (one.id === "only") break;
    one.selectedIndex = i; press(one, "change"); await wait(20);
  }
for (const one of [...document.querySelectorAll("[data-token]")].slice(0, 24)) {
  one.click();
  one.dispatchEvent(new PointerEvent("pointerover", {pointerType: "mouse", bubbles: true}));
}
const query = document.getElementById("query");
if (query) { query.value = "script"; document.getElementById("search").requestSubmit(); }
await wait(100);
for (const one of document.querySelectorAll("#found button, #worst button")) one.click();
await wait(50);
const out = document.createElement("output");
out.textContent = JSON.stringify({
  ran: window.stolen === 1, title: document.title,
  made: document.querySelectorAll("[data-stolen], iframe, svg, base").length,
  shown: document.body.innerText.includes("onerror=")});
document.body.append(out);
})();</script>"""


def opened(page: Path, folder: Path) -> dict:
    """What became of a page, without its policy, when all of it was looked at."""
    text, n = re.subn(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8")
    )
    assert n == 1
    start, body, end = text.rpartition("</body>")
    copy = folder / "opened.html"
    copy.write_text(start + PLAY + body + end, encoding="utf-8")
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", "--dump-dom",
        copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r"<output>(.*?)</output>", done.stdout, re.DOTALL)
    assert found is not None, "the page did not get so far"
    return json.loads(html.unescape(found[1]))


class _Tags(HTMLParser):
    """The names of a page's elements and attributes."""

    def __init__(self, text):
        super().__init__()
        self.names = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names |= {tag, *(name for name, _ in attrs)}


def hostile_run(folder: Path, extra: str = ""):
    """A run with markup in the names of its files, models, settings, metrics, prompts, tokens."""
    name = f"run {MARKUP}".replace("/", "⁄")[:200] + extra
    attrs = {model: {"name": MARKUP, "revision": MARKUP} for model in ("student", "teacher")}
    attrs |= {"versions": {MARKUP: MARKUP}, "commit": MARKUP, "prompts": MARKUP}
    attrs |= {"chat_template": {"variables": {MARKUP: MARKUP}, "system_prompt": MARKUP}}
    config = {MARKUP: MARKUP, "objective": MARKUP, "nested": {MARKUP: [MARKUP]}, "k": 4}
    writer = RunWriter(folder / name, attrs=attrs, config=config, resume=False)
    for step in (0, 5):
        ds = synthetic_step(step, n_rollouts=2, length=8, k=4, seed=step)
        ds["prompt_id"] = ("rollout", [f"{MARKUP}{i}" for i in range(2)])
        writer.write_step(step, ds)
        writer.log_metrics(step, {"loss": 1.0, MARKUP: 2.0})
        writer.log_evaluation(step, MARKUP, [f"{MARKUP}{i}" for i in range(2)], [1.0, 0.0])
    tokenizer = folder / name / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    special = [{"id": 63, "content": f"{MARKUP}63", "special": True}]
    (tokenizer / "tokenizer.json").write_text(
        json.dumps(
            {
                "model": {"vocab": {f"{MARKUP}{i}": i for i in range(63)}},
                "added_tokens": special,
            }
        )
    )
    return folder / name


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    runs = [str(hostile_run(folder)), str(hostile_run(folder, "2"))]
    blank = BytesIO()
    Image.new("RGB", (40, 20), "white").save(blank, "png")
    with pytest.MonkeyPatch.context() as patch:  # pictures hold no markup, and take long to draw
        patch.setattr(
            "opdprobe.report.draw.images", lambda panels: [blank.getvalue() for _ in panels]
        )
        assert main(["report", *runs, "--out", str(folder / "report.html")]) == 0
    assert main(["view", *runs, "--out", str(folder / "view.html")]) == 0
    # A reproduction's report: of the user's own results, whose names may come from anywhere.
    claims = [Claim(MARKUP, MARKUP, MARKUP, 0.9, 0.85, 0.96, 0.95, [0.9], MARKUP, "supported")]
    table = {MARKUP: {"student": MARKUP, "teacher": MARKUP, MARKUP: MARKUP}}
    meta = Meta(MARKUP, [0], 16, 64, 512, MARKUP, table, MARKUP, MARKUP)
    info = PngInfo()
    info.add_itxt("Description", MARKUP)
    Image.new("RGB", (40, 20), "white").save(folder / "fig06.png", pnginfo=info)
    results = Results("fig06", MARKUP, MARKUP, MARKUP, meta, [], claims)
    write_report(folder / "reproduced.html", [results], folder, title=MARKUP)
    return folder


def test_the_markup_acts_where_it_is_not_escaped(tmp_path):
    page = tmp_path / "raw.html"
    page.write_text(
        '<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="x">'
        f"<body>{MARKUP.replace('<meta', '<x')}</body>",
        encoding="utf-8",
    )
    found = opened(page, tmp_path)
    assert found["ran"]
    assert found["title"] == "stolen"
    assert found["made"] > 3


@pytest.mark.parametrize("name", ["report", "report-view", "view", "reproduced"])
def test_markup_is_text_in_every_page(pages, tmp_path, name):
    page = pages / f"{name}.html"
    found = opened(page, tmp_path)
    assert not found["ran"]
    assert found["title"] != "stolen"
    assert found["made"] == 0
    assert found["shown"], "the page does not show the markup at all"
    assert not _Tags(page.read_text(encoding="utf-8")).names & {"data-stolen", "onload", "iframe"}
