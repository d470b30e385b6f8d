"""The commands: `python -m taplocal up | status | outputs | token | call | upload ...`."""

from __future__ import annotations

import difflib
import functools
import gc
import json
import mimetypes
import os
import shlex
import shutil
import sys
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from taplocal.cloud import Cloud, isolate

isolate()  # before anything can make an SDK client

from botocore.exceptions import BotoCoreError, ClientError  # noqa: E402

from ops import report as reports  # noqa: E402
from ops.redrive import STOPPED, progress  # noqa: E402
from ops.redrive import redrive as redrive_messages  # noqa: E402
from taplocal import access, exports, page, ready, session, snapshots, web  # noqa: E402
from taplocal.console import Console  # noqa: E402
from taplocal.differences import by_meaning  # noqa: E402
from taplocal.errors import InterruptError, TapLocalError, of_folder  # noqa: E402
from taplocal.logs import Logs, maybe_json  # noqa: E402
from taplocal.project import Project, nearest  # noqa: E402
from taplocal.session import Session  # noqa: E402
from taplocal.sources import Sources  # noqa: E402

app = typer.Typer(
    help="The local cloud: tap-stack on an embedded AWS, without Docker or an account.",
    no_args_is_help=True,
    result_callback=lambda *_: sys.stdout.flush(),  # what cannot be written is an error, too
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")

Env = Annotated[
    str,
    typer.Option(
        help="Environment: dev, staging or prod, or one of them with a name behind it: dev-jane.",
        autocompletion=lambda: ["dev", "staging", "prod"],
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON value and nothing else to standard output.")
]
Program = Annotated[
    Path,
    typer.Option(
        help="Folder of the Pulumi program, or one below it.",
        file_okay=False,
        exists=True,
        callback=nearest,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Data folder of the local cloud.", show_default=".taplocal in the program's folder"
    ),
]
Config = Annotated[
    list[str] | None, typer.Option("--config", "-c", help="A setting, as KEY=VALUE.")
]
User = Annotated[
    str | None,
    typer.Option(help="E-mail address of the person to sign in. Default: a machine."),
]
Client = Annotated[
    str | None,
    typer.Option(help="Name of the machine to get the token for. Default: the only one."),
]
Scope = Annotated[
    str, typer.Option(help="Scopes to request, separated by spaces. Default: all of the client's.")
]


@app.command()
def up(
    env: Env = "dev",
    config: Config = None,
    other: Annotated[
        str | None,
        typer.Option(
            "--emulator",
            help="Data folder of another local cloud, whose emulator to use.",
        ),
    ] = None,
    program: Program = Path(),
    data: Data = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="List what is not as on AWS, with the reasons.")
    ] = False,
    ignore_protect: Annotated[
        bool,
        typer.Option("--ignore-protect", help="Replace and delete what is protected, as well."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Deploy the program, or update what is deployed."""
    console = Console(quiet=as_json)
    gc.disable()  # the process ends: after the run a collection would take most of a second
    with console.working("deploying"):
        opened, summary = session.up(
            program,
            env,
            folder=data,
            emulator=other,
            config=dict(_pair(each) for each in config or ()),
            ignore_protect=ignore_protect,
            say=console.say,
            report=console.step,
        )
    if as_json:
        steps = [vars(step) for step in summary.steps if step.action != "unchanged"]
        counts = dict(summary.counts())
        _print(
            {
                "environment": env,
                "emulator": opened.cloud.emulator.url,
                "seconds": round(summary.seconds, 2),
                "counts": counts,
                "steps": steps,
                "outputs": opened.outputs,
                "differences": [
                    {**vars(each), "touches": sorted(summary.differences[each.key])}
                    for rows in by_meaning(summary.differences).values()
                    for each in rows
                ],
            }
        )
    else:
        console.summary(env, summary, opened, explain)
    ready.start()


@app.command()
def dev(
    env: Env = "dev",
    config: Config = None,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Have each function wait for a debugger, such as VS Code."),
    ] = False,
    program: Program = Path(),
    data: Data = None,
) -> None:
    """Deploy each change of the program when it is saved, and print the logs: until Ctrl-C."""
    from taplocal import dev as watching

    folder = (data or session.folder_of(program)).resolve()
    settings = dict(_pair(each) for each in config or ())
    watching.run(watching.Target(program.resolve(), env, folder, settings), Console(), debug)


@app.command("env")
def variables(
    env: Env = "dev", program: Program = Path(), data: Data = None, as_json: Json = False
) -> None:
    """Print the variables for the AWS CLI and SDKs: eval "$(python -m taplocal env)"."""
    found = _variables(env, program, data)
    unset = "unset AWS_PROFILE AWS_SESSION_TOKEN"
    lines = [unset, *(f"export {name}={shlex.quote(value)}" for name, value in found.items())]
    _print(found) if as_json else print("\n".join(lines))


def _variables(env: str, program: Path, data: Path | None) -> dict[str, str]:
    cloud = session.opened(program, env, data).cloud
    return cloud.emulator.environment(cloud.region)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "allow_interspersed_args": False,
        "ignore_unknown_options": True,
    }
)
def aws(
    context: typer.Context, env: Env = "dev", program: Program = Path(), data: Data = None
) -> None:
    """Run the AWS CLI on the local cloud: aws s3 ls."""
    command = shutil.which("aws")
    if not command:
        raise TapLocalError(
            "the AWS CLI is not installed: get its version 2, see docs.aws.amazon.com/cli"
        )
    found = _variables(env, program, data)
    # Version 1 of the CLI heeds no variable for SQS and RDS: it has addresses of its own for them.
    words = [command, "--endpoint-url", found["AWS_ENDPOINT_URL"], *context.args]
    os.execve(command, words, {**os.environ, **found})  # noqa: S606 - no shell


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise TapLocalError(f"--config takes KEY=VALUE, not {json.dumps(text)}")
    return key, value


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise TapLocalError(f"--header takes 'name: value', not {json.dumps(text)}")
    return name.strip(), value.strip()


@app.command()
def status(
    env: Env = "dev", program: Program = Path(), data: Data = None, as_json: Json = False
) -> None:
    """Show what is deployed and whether it is running."""
    folder = (data or session.folder_of(program)).resolve()
    condition, state, found = session.condition(folder, env)
    unfinished = sorted(each.name for each in state.resources.values() if each.pending)
    if condition == "partial" and not unfinished:
        unfinished = ["the last run, which did not reach its end: `up` finishes it"]
    fields = {
        "environment": env,
        "condition": condition,
        "deployed": condition == "complete",
        "resources": len(state.resources),
        "unfinished": unfinished,
        "emulator": found.url if found else None,
        "running": bool(found and found.running()),
        "environments": session.deployed_environments(folder),
        "api_url": state.api_url,
        "web_url": state.web_url,
        "web": session.web_parts(Cloud(found, state.region), state)
        if found and condition in ("complete", "partial")
        else [],
        "releases": [
            f"{each.name} goes on, or failed" if each.pending else each.outputs.get("verdict")
            for each in state.resources.values()
            if each.type.endswith(":Rollout")
        ],
    }
    _print(fields) if as_json else Console().fields(fields)


@app.command()
def outputs(
    name: Annotated[str | None, typer.Argument(help="Name of an output. Default: all.")] = None,
    env: Env = "dev",
    program: Program = Path(),
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Print the stack's outputs."""
    values = session.opened(program, env, data).outputs
    if name is not None and name not in values:
        near = difflib.get_close_matches(name, values, 1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(values)}"
        raise TapLocalError(f"there is no output {json.dumps(name)}: {hint}")
    if as_json:
        _print(values if name is None else values[name])
    elif name is not None:
        print(values[name])
    else:
        Console().fields(values)


@app.command()
def token(
    user: User = None,
    client: Client = None,
    scope: Scope = "",
    env: Env = "dev",
    program: Program = Path(),
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Sign in and print an access token."""
    text = _token(session.opened(program, env, data), user, client, scope)
    _print({"access_token": text, "token_type": "Bearer"}) if as_json else print(text)


def _token(opened: Session, user: str | None, client: str | None, scope: str = "") -> str:
    if user and client:
        raise TapLocalError("--user names a person and --client a machine: give one of them")
    if user:
        return access.person_token(opened, user, scope)
    return access.machine_token(opened, scope, client or "")


@app.command()
def call(
    method: Annotated[str, typer.Argument(help="GET, POST, PUT, PATCH, DELETE ...")],
    path: Annotated[str, typer.Argument(help="Path and query, such as '/items?limit=5'.")],
    body: Annotated[
        str | None, typer.Argument(help="JSON body; - reads it from standard input.")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="A header, as 'name: value'.")
    ] = None,
    fail: Annotated[
        bool, typer.Option("--fail", help="Exit with status 1 for a response of 400 and above.")
    ] = False,
    user: User = None,
    client: Client = None,
    scope: Scope = "",
    env: Env = "dev",
    program: Program = Path(),
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Send a request to the API with a new access token and print the response."""
    if method.upper() not in METHODS:
        near = difflib.get_close_matches(method.upper(), METHODS, 1, 0)
        raise TapLocalError(f"there is no method {json.dumps(method)}: did you mean {near[0]}?")
    opened = session.opened(program, env, data)
    text = sys.stdin.read() if body == "-" else body
    headers = dict(_header(each) for each in header or ())
    token = _token(opened, user, client, scope)
    response = access.call(opened, method, path, token, text, headers)
    if as_json:
        _print(
            {
                "status": response.status,
                "headers": response.headers,
                "body": maybe_json(response.body),
            }
        )
    else:
        Console().response(response)
    if fail and response.status >= 400:
        raise typer.Exit(1)


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="File to upload.")],
    folder: Annotated[str, typer.Option(help="Folder below the caller's own prefix.")] = "",
    content_type: Annotated[
        str | None, typer.Option(help="Content type. Default: by the file name.")
    ] = None,
    user: User = None,
    client: Client = None,
    env: Env = "dev",
    program: Program = Path(),
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Upload a file as a browser does, and print its id."""
    opened = session.opened(program, env, data)
    content_type = content_type or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    token = _token(opened, user, client)
    form, response = access.upload(
        opened, token, file.name, file.read_bytes(), content_type, folder
    )
    if response.status >= 400:
        raise TapLocalError(f"{file} was rejected: {response.status} {response.body}")
    _print({"id": form.json()["id"]}) if as_json else print(form.json()["id"])


@app.command()
def psql(
    command: Annotated[
        str | None, typer.Option("--command", "-c", help="SQL to run, instead of a session.")
    ] = None,
    env: Env = "dev",
    program: Program = Path(),
    data: Data = None,
) -> None:
    """Open a session of the web environment's database, as its master over verified TLS."""
    from taplocal.web.pg_installed import psql as command_of

    opened = session.opened(program, env, data)
    if "database_name" not in opened.outputs:
        raise TapLocalError("the stack has no output database_name: it has no web environment")
    (found,) = opened.cloud.client("rds").describe_db_instances(
        DBInstanceIdentifier=opened.outputs["database_name"]
    )["DBInstances"]
    secret = opened.cloud.client("secretsmanager").get_secret_value(
        SecretId=opened.outputs["database_secret_arn"]
    )
    argv, variables = command_of(
        found["Endpoint"]["Address"],
        found["Endpoint"]["Port"],
        found["MasterUsername"],
        found["DBName"],
        web.home(opened.folder) / "authority" / "ca.pem",
        json.loads(secret["SecretString"])["password"],
        *(["-c", command] if command else []),
    )
    os.execve(argv[0], argv, variables)  # noqa: S606 - no shell


@app.command()
def interrupt(
    instance: Annotated[
        str | None, typer.Argument(help="Id of a Spot instance. Default: any in service.")
    ] = None,
    env: Env = "dev",
    program: Program = Path(),
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Have EC2 take a Spot instance of the web environment back, at two minutes' notice."""
    opened = session.opened(program, env, data)
    told = {"name": session.web_group(opened.state).id, "region": opened.cloud.region}
    found = opened.cloud.own("interrupt", {**told, "instance": instance or ""})
    if found["error"]:
        raise TapLocalError(found["error"])
    shown = {"instance": found["instance"], "seconds": web.NOTICE_SECONDS}
    text = "{instance} has its notice: in {seconds:.0f} s, two minutes of AWS, EC2 takes it"
    _print(shown) if as_json else print(text.format(**shown))


@app.command()
def redrive(
    dry_run: Annotated[
        bool, typer.Option(help="Show the messages and leave them in the queue.")
    ] = False,
    env: Env = "dev",
    program: Program = Path(),
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Redrive the messages of the file pipeline's dead-letter queue to the function."""
    opened = session.opened(program, env, data)
    if "files_dead_letters_url" not in opened.outputs:
        raise TapLocalError(
            "the stack has no output files_dead_letters_url: it has no file pipeline"
        )
    clients = opened.cloud.client("sqs"), opened.cloud.client("lambda")
    target = opened.outputs["files_dead_letters_url"], opened.outputs["files_function_name"]
    letters = redrive_messages(*clients, *target, dry_run)
    try:
        shown = progress(letters, Console(quiet=as_json).say)
    except KeyboardInterrupt:
        raise InterruptError(STOPPED) from None
    if as_json:
        _print({"letters": shown})


@app.command()
def report(
    name: Annotated[str | None, typer.Argument(help="Name of a report. Default: all.")] = None,
    no_export: Annotated[
        bool, typer.Option("--no-export", help="Use the newest export; make none before.")
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print one report as CSV and nothing else.")
    ] = False,
    env: Env = "dev",
    program: Program = Path(),
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Print what the saved queries of Athena tell about files: tables and charts."""
    if as_csv and (as_json or name is None):
        raise TapLocalError("--csv prints one report: name it, without --json")
    opened = session.opened(program, env, data)
    if "files_workgroup_name" not in opened.outputs:
        raise TapLocalError(
            "the stack has no output files_workgroup_name: `up -c files_analytics=true` makes it"
        )
    workgroup, console = opened.outputs["files_workgroup_name"], Console(quiet=as_json or as_csv)
    athena = opened.cloud.client("athena")
    queries = reports.saved_queries(athena, workgroup, name)
    if not no_export:
        with console.working("exporting"):
            exports.run(opened.cloud, workgroup)
    found = [reports.run(athena, each) for each in queries]
    if as_json:
        _print({each.name: each.records() for each in found})
    elif as_csv:
        found[0].write_csv(sys.stdout)
    else:
        for each in found:
            console.report(each)


@app.command()
def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until Ctrl-C.")] = False,
    env: Env = "dev",
    program: Program = Path(),
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Print the log events of functions and instances, oldest first; --json -f: one a line."""
    opened = session.opened(program, env, data)
    sources = Sources(Project.load(program, env).main)
    if as_json and not follow:
        _print(list(Logs().new(opened, sources)))
        return
    show: Callable[[dict[str, Any]], None] = _print_line if as_json else Console().event
    found = Logs()
    while True:
        for event in found.new(opened, sources):
            show(event)
        if not follow:
            return
        time.sleep(0.5)


@app.command("open")
def open_page(
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the URL and open no browser.")
    ] = False,
    env: Env = "dev",
    program: Program = Path(),
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Open the page that shows all this: what is deployed, what goes on, and what to try."""
    url = page.address(session.opened(program, env, data).folder, env)
    if url is None:
        raise TapLocalError(
            "the page is served by the folder that started the emulator: run `open` there"
        )
    _print({"url": url}) if as_json else print(url)
    if not (only_print or as_json):
        webbrowser.open(url)


@app.command()
def trace(
    id_: Annotated[
        str, typer.Argument(metavar="ID", help="A request's id, or a file's id, key or version.")
    ],
    env: Env = "dev",
    program: Program = Path(),
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Follow one request, or one file, through logs, calls and metrics."""
    from taplocal.page.trace import follow

    found = follow(session.opened(program, env, data), id_)
    _print(found) if as_json else Console().trace(found)


@app.command()
def down(
    env: Annotated[str | None, typer.Option(help="Environment to delete. Default: all.")] = None,
    keep_data: Annotated[
        bool, typer.Option("--keep-data", help="Only stop the emulator: `up` goes on with it all.")
    ] = False,
    program: Program = Path(),
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Delete what is deployed, with its data, and stop the emulator."""
    console = Console(quiet=as_json)
    if keep_data:
        if env:
            raise TapLocalError("--keep-data stops the emulator of all environments: omit --env")
        stopped = session.stop(program, data)
        console.say(f"stopped, with all data: {', '.join(stopped)}; `up` goes on with it")
        _print({"stopped": stopped}) if as_json else None
        return
    with console.working("deleting"):
        removed = session.down(program, env, folder=data, report=console.step)
    ready.end()
    if as_json:
        _print({"removed": removed})
    else:
        console.say(f"deleted: {', '.join(removed)}" if removed else "nothing was deployed")


Name = Annotated[str, typer.Argument(help="Name of the snapshot.")]


@app.command()
def snapshot(
    name: Name, program: Program = Path(), data: Data = None, as_json: Json = False
) -> None:
    """Copy what all environments have now, under a name: for demonstrations and bug reports."""
    path = snapshots.take(program, name, data)
    _print({"snapshot": str(path)}) if as_json else print(path)


@app.command("snapshots")
def list_snapshots(program: Program = Path(), data: Data = None, as_json: Json = False) -> None:
    """List what `restore` can go back to: copies of everything, and RDS's of a database."""
    found = snapshots.listed(program, data)
    lines = [f"{x.created}  {x.name}  {x.kind}: {x.of}" for x in found]
    _print([vars(each) for each in found]) if as_json else print("\n".join(lines or ["none"]))


@app.command()
def restore(
    name: Name,
    kind: Annotated[
        str, typer.Option(help="everything or database, where both have a snapshot of the name.")
    ] = "",
    program: Program = Path(),
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Go back to a snapshot, of everything or of a database; what is there now is deleted."""
    if kind not in ("", *snapshots.KINDS):
        raise TapLocalError(f"--kind takes {' or '.join(snapshots.KINDS)}, not {json.dumps(kind)}")
    found = snapshots.restore(program, name, data, kind)
    if as_json:
        _print({"restored": found.of.split(", ")})
    else:
        print(f"as in {name}: {found.of}")


def _print(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _print_line(value: Any) -> None:
    print(json.dumps(value), flush=True)


@functools.cache
def command() -> Any:
    """The command line, made and parsed once: that takes a tenth of a second."""
    made: Any = typer.main.get_command(app)
    made.commands["status"].make_context("status", [])
    return made


def main(name: str) -> None:
    """Runs a command; an error is one message on standard error, with exit status 1.

    With --json it is a JSON value on standard output, too. Help calls the program by this name.
    """
    try:
        command()(prog_name=name)
    except reports.ReportError as error:
        _fail(str(error), 1)
    except TapLocalError as error:
        _fail(str(error), INTERRUPTED if isinstance(error, InterruptError) else 1)
    except (ClientError, BotoCoreError) as error:
        _fail(f"the emulator returned an error: {error}", 1)
    except OSError as error:
        _fail(str(of_folder(error)), 1)
    finally:
        gc.freeze()  # the process ends: collecting its garbage would take a second


def _fail(message: str, status: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    try:
        if "--json" in sys.argv:
            _print({"error": message})
        sys.stdout.flush()
    except OSError:  # it may be what failed: nothing tries again at the end of the process
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(status) from None
