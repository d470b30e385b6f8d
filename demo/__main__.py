"""Runs the demonstration: `python -m demo [--env dev|staging|prod]`; exits 1 if a check fails."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Annotated, Any

import typer

from taplocal.cloud import isolate

isolate()  # before anything can make an SDK client

from demo.files import Files  # noqa: E402
from demo.releases import Releases, wait_until_ok  # noqa: E402
from demo.report import Report  # noqa: E402
from demo.web import Web  # noqa: E402
from taplocal import access, session  # noqa: E402
from taplocal.access import Response  # noqa: E402
from taplocal.console import hints  # noqa: E402
from taplocal.errors import TapLocalError  # noqa: E402
from taplocal.session import Session  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
WAIT_SECONDS = 20

Call = Callable[..., Response]


class Demonstration:
    """One environment, deployed and exercised step by step."""

    def __init__(self, env: str, report: Report):
        self.env, self.report, self.check = env, report, report.check
        self.run_id = f"demo-{uuid.uuid4().hex[:8]}"  # part of each id

    def run(self) -> None:
        """All steps in order."""
        self.deploy()
        self.sign_in()
        self.good_requests()
        self.lists()
        self.rejected_requests()
        self.logs_and_metrics()
        self.alarm()
        self.deploy_again()
        self.releases()
        Files(self.session, self.report, self.taplocal, self.run_id).run()
        Web(self.session, self.report, self.run_id).run()

    # Steps

    def deploy(self) -> None:
        self.report.step(f"Deploy tap_stack.py, environment {self.env}, on an embedded AWS")
        done = self.up()
        counts = Counter(done["counts"])
        found = self.taplocal("status")
        self.check(
            "up, status: deployed, unfinished", (True, []), (found["deployed"], found["unfinished"])
        )
        self.report.say(
            f"{counts.total()} resources ({dict(counts)}) in {done['seconds']} s at {done['emulator']}"
        )
        count = len(done["differences"])
        self.report.say(f"{count} things are not as on AWS: `up --explain` lists them")
        self.session: Session = session.opened(ROOT, self.env)

    def sign_in(self) -> None:
        self.report.step(
            "A person signs in (authorization code with PKCE), a machine gets an access token"
        )
        self.ann = self.caller(access.person_token(self.session, "ann@example.com"))
        self.check(
            "ann signs in and lists her items", 200, self.ann("GET", "/items?limit=1").status
        )
        self.bob = self.caller(access.person_token(self.session, "bob@example.com"))
        self.check(
            "bob signs in and lists his items", 200, self.bob("GET", "/items?limit=1").status
        )
        self.robot = self.caller(access.machine_token(self.session))
        self.check("a machine lists its items", 200, self.robot("GET", "/items?limit=1").status)

    def good_requests(self) -> None:
        self.report.step("Valid requests to each endpoint")
        ann, path = self.ann, f"/items/{self.run_id}"
        body = f'{{"id": "{self.run_id}", "name": "tea ☕", "SELECT": {{"a.b": [1.50, null]}}, "big": {10**37 + 1}}}'
        created = ann("POST", "/items", body)
        self.check(
            "POST /items with an id of the client",
            (201, path),
            (created.status, created.headers["location"]),
        )
        fields = json.loads(ann("GET", path).body)
        self.check(
            "GET: Unicode, a reserved word, a dot in a name", {"a.b": [1.5, None]}, fields["SELECT"]
        )
        self.check("... and 38 digits, exactly", 10**37 + 1, fields["big"])
        etag = created.headers["etag"]
        head = ann("HEAD", path)
        self.check("HEAD", (200, "", etag), (head.status, head.body, head.headers["etag"]))
        anonymous = self.caller("")
        for open_path in ("/health", "/openapi.yaml"):
            self.check(f"GET {open_path} without a token", 200, anonymous("GET", open_path).status)
        self.check("GET with If-None-Match", 304, ann("GET", path, if_none_match=etag).status)
        replaced = ann("PUT", path, '{"name": "coffee"}', if_match=etag)
        self.check("PUT with If-Match", (200, 2), (replaced.status, replaced.json()["version"]))
        patched = ann(
            "PATCH",
            path,
            '{"hot": true, "name": null}',
            content_type="application/merge-patch+json",
        )
        self.check(
            "PATCH merges, null removes",
            (True, False),
            (patched.json()["hot"], "name" in patched.json()),
        )
        key = {"idempotency_key": self.run_id}
        twice = [ann("POST", "/items", '{"n": 1}', **key) for _ in range(2)]
        self.check(
            "POST twice with one Idempotency-Key",
            (201, True),
            (twice[1].status, twice[0].body == twice[1].body),
        )
        self.check("DELETE", 204, ann("DELETE", path).status)
        preflight = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
        url = f"{self.session.state.api_url}/items"
        if self.env == "dev":  # the other environments have no CORS origin
            allowed = access.request("OPTIONS", url, headers=preflight).headers.get(
                "access-control-allow-origin"
            )
            self.check("OPTIONS, a CORS preflight", "http://localhost:3000", allowed)

    def lists(self) -> None:
        self.report.step("Lists: newest first, a page at a time, by index")
        ids = [
            self.ann("POST", "/items", f'{{"category": "{self.run_id}"}}').json()["id"]
            for _ in range(5)
        ]
        path, pages = f"/items?category={self.run_id}&limit=2", []
        page = self.ann("GET", path).json()
        pages.append(page)
        while "next" in page:
            page = self.ann("GET", f"{path}&next={page['next']}").json()
            pages.append(page)
        found = [item["id"] for page in pages for item in page["items"]]
        self.check(
            "GET /items?category=&limit=2, all pages", (3, True), (len(pages), found == ids[::-1])
        )
        theirs = self.bob("GET", f"/items?category={self.run_id}").json()
        self.check("bob lists the same category", {"items": []}, theirs)
        foreign = self.bob("GET", f"{path}&next={pages[0]['next']}").status
        self.check("bob uses ann's next token", 400, foreign)

    def rejected_requests(self) -> None:
        self.report.step("Requests that are rejected")
        ann, item = self.ann, f"{self.run_id}-2"
        ann("POST", "/items", f'{{"id": "{item}"}}')
        reader = self.caller(access.machine_token(self.session, "items/read"))
        anonymous = self.caller("")
        unsigned = self.caller("eyJhbGciOiJub25lIn0.e30.")
        for what, status, response in (
            ("malformed JSON", 400, ann("POST", "/items", "{")),
            ("NaN", 400, ann("POST", "/items", '{"a": NaN}')),
            ("a duplicate member name", 400, ann("POST", "/items", '{"a": 1, "a": 2}')),
            ("100,000 levels deep", 400, ann("POST", "/items", "[" * 100_000)),
            ("a forged next token", 400, ann("GET", "/items?next=AAAA")),
            ("no token", 401, anonymous("GET", "/items")),
            ("an unsigned token", 401, unsigned("GET", "/items")),
            ("writing without the scope items/write", 403, reader("POST", "/items", "{}")),
            ("a missing item", 404, ann("GET", f"/items/{item}-not")),
            ("bob reads ann's item", 404, self.bob("GET", f"/items/{item}")),
            ("bob deletes ann's item", 404, self.bob("DELETE", f"/items/{item}")),
            ("an unknown path", 404, ann("GET", "/nothing")),
            ("a method that is not allowed", 405, ann("PUT", "/items", "{}")),
            ("an id that ann has already", 409, ann("POST", "/items", f'{{"id": "{item}"}}')),
            (
                "If-Match with an old version",
                412,
                ann("PUT", f"/items/{item}", "{}", if_match='"old"'),
            ),
            ("an item above 400 KB", 413, ann("POST", "/items", json.dumps({"a": "x" * 410_000}))),
            (
                "an unsupported content type",
                415,
                ann("POST", "/items", "a=1", content_type="text/plain"),
            ),
            ("a content coding", 415, ann("POST", "/items", "{}", content_encoding="gzip")),
            ("a number of 39 digits", 422, ann("POST", "/items", f'{{"a": {10**38 + 1}}}')),
            ("an unpaired surrogate", 422, ann("POST", "/items", '{"a": "\\ud800"}')),
            (
                "another body with the same Idempotency-Key",
                422,
                ann("POST", "/items", "{}", idempotency_key=self.run_id),
            ),
        ):
            self.check(
                what,
                f"{status} {self.content_type(status)}",
                f"{response.status} {response.headers['content-type']}",
            )

    @staticmethod
    def content_type(status: int) -> str:
        """API Gateway itself responds with 401 and 403; HTTP APIs cannot change that body."""
        return "application/json" if status in (401, 403) else "application/problem+json"

    def logs_and_metrics(self) -> None:
        self.report.step("Logs and metrics: a log line for each request, with embedded metrics")
        lines = self.log_lines()
        self.check(
            "a line for each outcome",
            True,
            {"ItemsCreated", "ItemsRead", "RequestsRejected"} <= lines.keys(),
        )
        for metric, count in sorted(lines.items()):
            self.report.say(f"{self.session.outputs['function_name']}: {metric} {count}")
        self.check("requests that failed", 0, lines["RequestsFailed"])

    def alarm(self) -> None:
        self.report.step("An alarm notifies a subscriber")
        name = f"tap-stack-rotation-errors-{self.env}"
        function = f"tap-stack-rotation-{self.env}"  # no release watches its alarm
        wait_until_ok(self.session.cloud.client("cloudwatch"), name)
        with subscriber(self.session) as messages:
            self.session.cloud.client("cloudwatch").put_metric_data(
                Namespace="AWS/Lambda",
                MetricData=[
                    {
                        "MetricName": "Errors",
                        "Dimensions": [
                            {"Name": "FunctionName", "Value": function},
                            {"Name": "Resource", "Value": f"{function}:live"},
                        ],
                        "Value": 1,
                    }
                ],
            )
            deadline = time.monotonic() + WAIT_SECONDS
            while name not in messages and time.monotonic() < deadline:
                time.sleep(0.1)
        self.check(
            "the alarm of one error of the rotation",
            name,
            name if name in messages else "none",
        )

    def deploy_again(self) -> None:
        self.report.step("Deploy again without a change")
        done = self.up()
        self.check("python -m taplocal up", ["unchanged"], list(done["counts"]))
        self.report.say(f"in {done['seconds']} s")

    def releases(self) -> None:
        path = f"/items/{self.run_id}-2"
        Releases(self.env, self.report, lambda: self.ann("GET", path)).run()

    # Tools

    def up(self, *options: str) -> Any:
        """Deploys by the command line."""
        return self.taplocal("up", *options)

    def taplocal(self, command: str, *options: str) -> Any:
        """The JSON value that a taplocal command prints."""
        command_line = [
            sys.executable,
            "-m",
            "taplocal",
            command,
            "--env",
            self.env,
            "--json",
            *options,
        ]
        with self.report.silent():  # its progress is on standard error
            done = subprocess.run(
                command_line, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
            )
        if done.returncode:
            raise TapLocalError(f"`taplocal {command}` failed")
        return json.loads(done.stdout)

    def caller(self, token: str) -> Call:
        """A function that calls the API with a token; _ in header names stands for -."""

        def call(method: str, path: str, body: str | None = None, **headers: str) -> Response:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return access.call(self.session, method, path, token, body, named)

        return call

    def log_lines(self) -> Counter[str]:
        """The sums of the metrics in the function's log (embedded metric format)."""
        group = f"/aws/lambda/{self.session.outputs['function_name']}"
        totals: Counter[str] = Counter()
        pages = self.session.cloud.client("logs").get_paginator("filter_log_events")
        for page in pages.paginate(logGroupName=group):
            for event in page["events"]:
                if event["message"].startswith('{"level"'):
                    line = json.loads(event["message"])
                    for directive in line.get("_aws", {}).get("CloudWatchMetrics", ()):
                        totals.update(
                            {each["Name"]: line[each["Name"]] for each in directive["Metrics"]}
                        )
        return totals


@contextmanager
def subscriber(opened: Session) -> Iterator[Messages]:
    """Subscribes a local HTTP server to the alerts topic; yields the messages that it receives."""
    messages = Messages()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Logs nothing."""

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sns = opened.cloud.client("sns")
    subscription = sns.subscribe(
        TopicArn=opened.outputs["alerts_topic_arn"],
        Protocol="http",
        Endpoint=f"http://127.0.0.1:{server.server_port}/",
        ReturnSubscriptionArn=True,
    )["SubscriptionArn"]
    try:
        confirm(opened, messages)
        yield messages
    finally:
        sns.unsubscribe(SubscriptionArn=subscription)
        server.shutdown()


class Messages(list[str]):
    """The messages of a subscriber; `in` searches all of them."""

    def __contains__(self, text: object) -> bool:
        return any(str(text) in each for each in self)


def confirm(opened: Session, messages: Messages) -> None:
    """Confirms the subscription."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not messages and time.monotonic() < deadline:
        time.sleep(0.05)
    for each in map(json.loads, messages):
        if each.get("Type") == "SubscriptionConfirmation":
            opened.cloud.client("sns").confirm_subscription(
                TopicArn=each["TopicArn"], Token=each["Token"]
            )


def main(env: Annotated[str, typer.Option(help="dev, staging or prod")] = "dev") -> None:
    """Deploys the stack on this machine and checks all of it."""
    report = Report()
    demonstration = Demonstration(env, report)
    try:
        demonstration.run()
    except TapLocalError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    status = report.summary()
    print("\nThe stack is still running.")
    print(hints(demonstration.session, env))
    raise typer.Exit(status)


if __name__ == "__main__":
    typer.run(main)
