"""The page: who gets in, what it shows, and in a browser how it is used."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from taplocal import page
from taplocal.page.server import BODY_LIMIT, FILES, STREAMS
from taplocal.page.views import Environment
from taplocal.session import Session
from tests.local.conftest import HANG_SECONDS, ROOT, Call, taplocal

Answer = tuple[int, dict[str, str], bytes]
Send = Callable[..., Answer]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def address(deployed: Session) -> str:
    """The URL with the token."""
    found = page.address(deployed.folder, "dev")
    assert found
    return found


@pytest.fixture(scope="module")
def raw(address: str) -> Send:
    """Sends a request without the cookie; headers of the same name may be given as a list."""

    def send(
        method: str, path: str, body: bytes | None = None, *headers: tuple[str, str]
    ) -> Answer:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=HANG_SECONDS)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        if "host" not in [name for name, _ in headers]:
            connection.putheader("host", urlsplit(address).netloc)
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        for name, text in headers:
            connection.putheader(name, text)
        connection.endheaders(body)
        answer = connection.getresponse()
        found = {name.lower(): text for name, text in answer.getheaders()}
        try:
            return answer.status, found, answer.read()
        finally:
            connection.close()

    return send


@pytest.fixture(scope="module")
def cookie(raw: Send, address: str) -> tuple[str, str]:
    """The header of who has signed in."""
    status, headers, _ = raw("GET", f"/?{urlsplit(address).query}")
    assert status == 303
    return "cookie", headers["set-cookie"].partition(";")[0]


@pytest.fixture(scope="module")
def ask(raw: Send, cookie: tuple[str, str]) -> Callable[..., Any]:
    """The JSON of a view; fails if it has none."""

    def asked(path: str, method: str = "GET", body: bytes | None = None) -> Any:
        status, _, text = raw(method, path, body, cookie)
        assert status == 200, text
        return json.loads(text)

    return asked


# --- Who gets in ---


def test_the_token_becomes_a_strict_cookie_and_is_no_key_of_the_emulator(
    raw: Send, address: str, deployed: Session
) -> None:
    query = urlsplit(address).query
    status, headers, _ = raw("GET", f"/?{query}")
    assert (status, headers["location"]) == (303, "/?env=dev")
    assert headers["set-cookie"].endswith("; Path=/; HttpOnly; SameSite=Strict")
    token = query.rpartition("=")[2]
    assert len(token) == 24 and token not in headers["set-cookie"]
    assert deployed.cloud.emulator.secret_key not in address + headers["set-cookie"]


EVIL = "http://evil.example"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((), 200),
        ((("sec-fetch-site", "same-origin"),), 200),
        ((("host", "evil.example:4567"),), 403),
        ((("host", "127.0.0.1"),), 403),  # of another port
        ((("host", ""),), 403),
        ((("host", "localhost.evil.example"),), 403),
        ((("origin", EVIL),), 403),
        ((("origin", "null"),), 403),
        ((("origin", "http://127.0.0.1:4566"),), 403),  # where files of users are
        ((("sec-fetch-site", "cross-site"),), 403),
        ((("sec-fetch-site", "same-site"),), 403),
        ((("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")), 403),
        ((("cookie", "taplocal-1=x"), ("cookie", "taplocal-2=y")), 403),
    ],
)
@pytest.mark.parametrize("path", ["/", "/environments", "/live?env=dev", "/page.js"])
def test_another_site_or_name_is_refused_also_with_the_cookie(
    raw: Send, cookie: tuple[str, str], headers: Any, status: int, path: str
) -> None:
    if path.startswith("/live") and status == 200:
        return  # which has no end
    found, shown, body = raw("GET", path, None, cookie, *headers)
    assert found == status, body
    assert "access-control-allow-origin" not in shown


@pytest.mark.parametrize(
    "given",
    [(), (("cookie", "taplocal-4567="),), (("cookie", "a=b"),), (("cookie", "taplocal-4567=\u00e9"),),
     (("authorization", "Bearer x"),)],
)  # fmt: skip
def test_without_the_cookie_nothing_is_shown_or_done(raw: Send, given: Any) -> None:
    for path in (*FILES, "/live", "/environments", "/part?name=api-http", "/nothing"):
        assert raw("GET", path, None, *given)[0] == 401, path
    for path in ("/call", "/upload?name=x", "/redrive", "/restore?name=x&kind="):
        assert raw("POST", path, b"{}", *given)[0] == 401, path


@pytest.mark.parametrize(
    "other", ["a=1", "a b=c", 'consent={"ads": 1}', "[a]=1", "a=\u00e9", "a", "=", '"', ""]
)
def test_cookies_of_other_programs_of_the_machine_lock_nobody_out(
    raw: Send, cookie: tuple[str, str], other: str
) -> None:
    name, own = cookie
    assert raw("GET", "/", None, (name, f"{other}; {own}; {other}"))[0] == 200


@pytest.mark.parametrize("token", ["", "x", "0" * 24, "\u00e9", "../../x"])
def test_another_token_opens_nothing(raw: Send, token: str) -> None:
    status, headers, _ = raw("GET", f"/?env=dev&token={token.encode().hex() if token else ''}")
    assert status == 401 and "set-cookie" not in headers


@pytest.mark.parametrize(
    "path",
    ["//etc/hostname", "/../emulator.json", "/%2e%2e/emulator.json", "/uplot/../server.py", "/page.js/",
     "/emulator.json", "/server.py", "/\\etc\\hostname", "/%00"],
)  # fmt: skip
def test_no_file_but_the_pages_own_is_served(raw: Send, cookie: tuple[str, str], path: str) -> None:
    status, _, body = raw("GET", path, None, cookie)
    assert status == 404, body


def test_every_response_carries_the_policies(raw: Send, cookie: tuple[str, str]) -> None:
    paths = [*FILES, "/environments", "/architecture?env=dev", "/nothing"]
    for headers in [*(raw("GET", path, None, cookie)[1] for path in paths), raw("GET", "/")[1]]:
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"


def test_nothing_is_fetched_from_elsewhere() -> None:
    for name, _ in FILES.values():
        text = (ROOT / "taplocal" / "page" / name).read_text()
        urls = set(re.findall(r"""["'(](?:https?:)?//[\w.]+""", text))
        assert urls <= {"'http://www.w3.org", '"http://www.w3.org'}, name
    code = (ROOT / "taplocal/page/page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", code)


def test_what_is_too_long_is_refused(raw: Send, cookie: tuple[str, str]) -> None:
    status, _, body = raw("POST", "/upload?env=dev&name=x", bytes(BODY_LIMIT + 1), cookie)
    assert (status, b"taplocal upload" in body) == (413, True)


def test_streams_are_bounded_and_let_go(address: str, cookie: tuple[str, str], raw: Send) -> None:
    host = urlsplit(address).netloc
    streams = [http.client.HTTPConnection(host, timeout=HANG_SECONDS) for _ in range(STREAMS)]
    for each in streams:
        each.request("GET", "/live?env=dev", headers=dict([cookie]))
        assert each.getresponse().status == 200
    assert raw("GET", "/live?env=dev", None, cookie)[0] == 429
    for each in streams:
        each.close()
    status = 0
    for _ in range(100):
        connection = http.client.HTTPConnection(host, timeout=HANG_SECONDS)
        connection.request("GET", "/live?env=dev", headers=dict([cookie]))
        status = connection.getresponse().status
        connection.close()
        if status == 200:
            break
        time.sleep(0.1)
    assert status == 200


def test_an_unknown_environment_part_or_method_is_an_error_that_says_so(
    raw: Send, cookie: tuple[str, str]
) -> None:
    for path, told in {
        "/part?env=prod&name=x": "prod is not deployed",
        "/part?env=dev&name=x": "there is no part x",
        "/part?env=dev": "KeyError",
        "/trace?env=dev&id=nothing": 'nothing has the id "nothing"',
    }.items():
        status, _, body = raw("GET", path, None, cookie)
        assert status >= 400 and told in json.loads(body)["error"]
    assert raw("DELETE", "/environments", None, cookie)[0] == 404


# --- What it shows ---


def test_what_goes_on_is_shown(deployed: Session, ann: Call) -> None:
    sent = ann("POST", "/items", '{"name": "seen on the page"}')
    live = Environment(deployed.folder, "dev").live(0)
    ids = [each["message"]["requestId"] for each in live["requests"]]
    assert sent.headers["apigw-requestid"] in ids
    alarms = {
        each.inputs["name"]
        for each in deployed.state.resources.values()
        if each.type.endswith((":MetricAlarm", ":CompositeAlarm"))
    }
    assert {each["name"] for each in live["alarms"]} == alarms
    assert {"api-http", "files-table", "web-fleet-group"} <= live["parts"].keys()
    assert live["parts"]["web-fleet-group"]["text"] == "1 of 1"
    made = [each["changed"] for each in live["parts"].values()]
    assert min(made) > 0 and max(made) < time.time()
    assert [x["shares"] for x in live["releases"]] == [{"1": 1}] * 4
    assert live["web"] and live["complete"]


def test_a_part_tells_what_it_does_and_the_command_that_tells_more(ask: Any) -> None:
    part = ask("/part?env=dev&name=files-records-function")
    assert "fails to files-records-dead-letters" in part["does"]
    assert part["is"] == ["files-uploads-bucket notifies it"]
    assert part["tags"]["Component"] == "files"
    assert part["command"].endswith("aws lambda get-function --function-name tap-stack-files-dev")


def test_the_dashboard_is_the_programs(ask: Any, deployed: Session, ann: Call) -> None:
    ann("GET", "/items")
    drawn = [x for x in deployed.state.resources.values() if x.type.endswith(":Dashboard")]
    bodies = [json.loads(each.inputs["dashboardBody"]) for each in drawn]
    defined = {x["properties"]["title"] for body in bodies for x in body["widgets"]} - {"Alarms"}
    found = ask("/dashboard?env=dev&minutes=15")
    assert sorted(x["title"] for x in found) == sorted(defined)
    (requests,) = [x for x in found if x["title"] == "API requests"]
    assert requests["series"][0]["name"] == "Count Sum" and requests["series"][0]["points"]


def test_an_alarm_has_its_history_and_its_section_of_the_runbook(ask: Any) -> None:
    found = ask("/alarm?env=dev&name=tap-stack-files-dead-letters-dev")
    assert "redrive" in found["runbook"]
    assert isinstance(found["history"], list)


def test_the_api_is_called_as_a_person(ask: Any) -> None:
    routes = {f"{x['method']} {x['path']}" for x in ask("/routes?env=dev")}
    assert {"POST /items", "GET /files/{id}/content"} <= routes
    body = json.dumps({"name": "Ann's $HOME"})
    sent = {"method": "POST", "path": "/items", "user": "page@example.com", "body": body}
    found = ask("/call?env=dev", "POST", json.dumps(sent).encode())
    assert found["status"] == 201 and json.loads(found["body"])["name"] == "Ann's $HOME"
    words = ["python", "-m", "taplocal", "call", "POST", "/items", body]
    assert shlex.split(found["command"]) == [*words, "--user", "page@example.com"]


def test_a_file_is_dropped_recorded_and_followed(ask: Any) -> None:
    sent = ask("/upload?env=dev&name=a.txt&type=text/plain&user=page@example.com", "POST", b"hello")
    assert sent["status"] == 204 and sent["id"]
    found = _followed(ask, sent["id"])
    assert found["record"]["content_type"] == "text/plain"
    # The access log's line and the function's, of the request that asked for the form, and its own.
    lines = [x["message"].get("message", "access") for x in found["lines"]]
    assert sorted(lines) == ["access", "file", "request"]
    assert "FilesRecorded" in found["metrics"]
    calls = [each["what"] for each in found["calls"]]
    assert calls[-3:] == ["s3 HeadObject", "s3 GetObject", "dynamodb TransactWriteItems"]


def _followed(ask: Any, id_: str) -> Any:
    deadline = time.monotonic() + HANG_SECONDS
    while True:
        try:
            found = ask(f"/trace?env=dev&id={id_}")
            if len(found["calls"]) >= 3:
                return found
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def test_a_request_is_followed_on_the_command_line(deployed: Session, ann: Call) -> None:
    sent = ann("POST", "/items", '{"name": "x"}')
    id_ = sent.headers["apigw-requestid"]
    data = ["--data", str(deployed.folder)]
    found = json.loads(taplocal("trace", id_, "--json", *data).stdout)
    assert len(found["lines"]) == 2  # of the gateway and of the function
    assert "dynamodb PutItem" in " ".join(each["what"] for each in found["calls"])
    shown = taplocal("trace", id_, *data).stdout
    assert "POST /items" in shown and "dynamodb" in shown
    refused = taplocal("trace", "nothing", *data)
    assert refused.returncode == 1 and refused.stderr.startswith(
        'error: nothing has the id "nothing"'
    )


def test_open_prints_the_url_and_needs_what_is_deployed(
    deployed: Session, address: str, tmp_path: Path
) -> None:
    found = taplocal("open", "--print", "--data", str(deployed.folder))
    assert found.stdout.strip() == address
    refused = taplocal("open", "--print", "--data", str(tmp_path))
    assert "is not deployed" in refused.stderr and "Traceback" not in refused.stderr


def test_the_estimate_is_that_of_the_command(ask: Any) -> None:
    found = ask("/cost?env=dev")
    assert {"api", "files"} <= {name.split()[0].lower() for name in found["fixed"]}
    assert sum(row["dollars"] for rows in found["fixed"].values() for row in rows) > 0
    assert found["choices"]


# --- In a browser ---


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="there is no Playwright: make page")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with api.sync_playwright() as run:
        found = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Tab:
    """A tab with the page, and what its console said."""

    def __init__(self, browser: Any, url: str, scheme: str = "light", width: int = 1280):
        self.context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}, accept_downloads=False
        )
        self.context.set_default_timeout(1000 * HANG_SECONDS)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda each: self.said.append(each.text))
        self.page.on("pageerror", lambda each: self.said.append(str(each)))
        self.page.on("request", lambda each: self.asked.append(each.url))
        self.page.goto(url)
        self.page.wait_for_selector(".part", state="attached")


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Callable[..., Tab]]:
    tabs: list[Tab] = []

    def opened(url: str = address, **options: Any) -> Tab:
        tabs.append(Tab(browser, url, **options))
        return tabs[-1]

    yield opened
    for each in tabs:
        each.context.close()


def test_each_view_has_its_data(tab: Callable[..., Tab], ann: Call, address: str) -> None:
    sent = ann("POST", "/items", '{"name": "in the browser"}')
    id_ = sent.headers["apigw-requestid"]
    opened = tab()
    found = opened.page
    found.locator("#last button", has_text=id_).click()
    found.locator("#followed summary", has_text="POST /items").wait_for()
    found.locator("#routes td", has_text="POST /items").first.wait_for()
    found.locator(".part[data-part=api-items-function]").click()
    found.locator("#part li", has_text="writes, reads api-items").wait_for()
    found.locator("#part code", has_text="get-function").wait_for()
    assert found.locator(".edge.near").count() == 5
    found.locator("#widgets .uplot").first.wait_for()
    found.locator("#alarm-list button", has_text="files-dead-letters").click()
    found.locator("#alarm pre", has_text="redrive").wait_for()
    assert "version" in found.locator("#shares").inner_text()
    found.locator("#call button").click()
    found.locator("#answer pre").first.wait_for()
    found.locator("#estimate").click()
    found.locator("#dollars .bar").first.wait_for()
    assert opened.said == []
    assert {urlsplit(each).netloc for each in opened.asked} == {urlsplit(address).netloc}
    assert "token" not in found.url


def test_a_dropped_file_appears_and_its_name_is_only_text(tab: Callable[..., Tab]) -> None:
    opened = tab()
    found, name = opened.page, "<img src=x onerror=alert(1)>.txt"
    found.set_input_files("#choose", {"name": name, "mimeType": "text/plain", "buffer": b"hello"})
    found.locator("#uploads", has_text="sent in").wait_for()
    found.locator("#recorded button", has_text="<img src=x").wait_for()
    assert found.locator("#recorded img, #uploads img").count() == 0
    found.locator("#uploads button").click()
    found.locator("#followed td", has_text="text/plain").first.wait_for()
    assert opened.said == []


def test_all_of_it_is_used_by_keyboard(tab: Callable[..., Tab]) -> None:
    found = tab().page
    found.keyboard.press("Tab")
    assert found.evaluate("document.activeElement.className") == "skip"
    seen = set()
    for _ in range(1_000):  # each listed request, file and alarm is one
        found.keyboard.press("Tab")
        seen.add(found.evaluate("document.activeElement.dataset.part || document.activeElement.id"))
        if "estimate" in seen:
            break
    assert {"env", "picture", "api-http", "web-fleet-group", "choose", "show", "redrive"} <= seen
    assert {"minutes", "replay", "route", "estimate"} <= seen
    found.locator(".part[data-part=api-http]").focus()
    found.keyboard.press("Enter")
    found.locator("#part h2", has_text="api-http").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_it_is_accessible_and_fits(tab: Callable[..., Tab], scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.base", reason="there is no axe: make page")
    found = tab(scheme=scheme, width=width).page
    found.locator("#widgets .widget").first.wait_for()
    found.locator(".part[data-part=files-records-function]").click()
    found.locator("#part table").wait_for()
    found.evaluate(axe.AXE_FILE_PATH.read_text())
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
    results = found.evaluate("rules => axe.run(document, rules)", rules)
    problems = [
        f"{x['id']}: {node['html'][:120]}: {node['failureSummary']}"
        for x in results["violations"]
        for node in x["nodes"]
    ]
    assert problems == []
    assert found.evaluate("document.documentElement.scrollWidth") <= width


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[list[str]]:
    """The options of an example with its own local cloud: an API without files and alarms.

    By the command line: this process has the event loop of Playwright.
    """
    options = ["--program", str(ROOT / "examples" / "api_only"), "--data", str(tmp_path)]
    assert taplocal("up", *options).returncode == 0
    yield options
    taplocal("down", *options)


def test_empty_views_say_so_and_a_restart_is_survived(
    tab: Callable[..., Tab], alone: list[str], tmp_path: Path
) -> None:
    url = page.address(tmp_path, "dev")
    opened = tab(url)
    found = opened.page
    for place, text in {
        "#last": "None yet",
        "#recorded": "None in the last 15 minutes",
        "#alarm-list": "has no alarms",
        "#widgets": "has no dashboard",
        "#snapshot-list": "There are no snapshots",
        "#waiting": "None is waiting",
    }.items():
        found.locator(place, has_text=text).wait_for()
    taplocal("down", "--keep-data", *alone)
    found.locator("#state", has_text="has stopped").wait_for()
    found.locator("#estimate").click()
    found.locator("#dollars", has_text="does not answer").wait_for()
    found.locator("#call button").click()
    found.locator("#answer", has_text="does not answer").wait_for()
    taplocal("up", *alone)
    assert page.address(tmp_path, "dev") == url
    found.locator("#state", has_text="has stopped").wait_for(state="detached")
    assert taplocal("call", "GET", "/health", "--user", "a@example.com", *alone).returncode == 0
    found.locator("#last", has_text="/health").wait_for()
