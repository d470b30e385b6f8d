"""What is written down is what the code does: tables, configuration files, contract, links."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import tap_stack
from docs import tables
from taplocal.program import run
from taplocal.project import Project
from tests.contract import check_response, contract, follow, operations
from tests.stack.conftest import ROOT, Recorder


@pytest.mark.timeout(900)  # it runs the program for each choice of each tier
def test_generated_files_are_up_to_date() -> None:
    for path, text in tables.files():
        assert path.read_text() == text, f"{path.name} is out of date: run `make docs`"


def test_the_contract_has_every_route_with_its_scope_and_no_other() -> None:
    assert operations().keys() == tap_stack.all_routes().keys()
    for route, (operation, scope, _) in tap_stack.all_routes().items():
        documented = operations()[route]
        prefix = "head_" if route.startswith("HEAD ") else ""
        assert documented["operationId"] == prefix + operation.__name__
        assert documented["security"] == ([{"tokens": [scope]}] if scope else [])
    flows = contract()["components"]["securitySchemes"]["tokens"]["flows"]
    for flow in flows.values():
        assert flow["scopes"] == {
            f"{server}/{scope}": doc for server, scope, doc in tap_stack.SCOPES
        }


def test_the_contract_is_the_same_for_readers_of_yaml_1_2() -> None:
    """They know no merge keys: `<<` would be a key of that name."""
    assert not re.search(r"^\s*<<:", (ROOT / "openapi.yaml").read_text(), re.MULTILINE)


def test_the_contract_states_the_codes_own_limits() -> None:
    schemas = contract()["components"]["schemas"]
    assert schemas["Id"]["pattern"] == f"^{tap_stack.ITEM_ID.pattern}$"
    for name in ("IfMatch", "IfNoneMatch"):
        parameter = contract()["components"]["parameters"][name]
        assert parameter["schema"]["pattern"] == f"^({tap_stack.ETAGS})$"
        assert f"{tap_stack.ETAGS_LIMIT} at most" in parameter["description"]
    problem = schemas["Problem"]["properties"]
    assert problem["type"]["enum"] == [f"/openapi.yaml#{each}" for each in tap_stack.PROBLEM_TYPES]
    assert problem["errors"]["maxItems"] == tap_stack.ERRORS_LIMIT
    upload = schemas["NewUpload"]["properties"]
    assert tuple(upload) == tap_stack.UPLOAD_FIELDS
    assert upload["name"]["pattern"] == f"^{tap_stack.PATH_STEP}$"
    assert upload["folder"]["pattern"] == f"^{tap_stack.FOLDER}$"
    assert upload["content_type"]["pattern"] == f"^{tap_stack.CONTENT_TYPE}$"
    for route, operation in operations().items():
        for parameter in map(follow, operation.get("parameters", [])):
            if parameter["in"] == "query" and parameter["schema"].keys() == {"type", "maxLength"}:
                assert parameter["schema"]["maxLength"] == tap_stack.TEXT_LIMIT, route
    assert f"up to {tap_stack.MAX_DEPTH} levels" in schemas["NewItem"]["description"]
    (key,) = operations()["POST /items"]["parameters"]
    hours = tap_stack.TapStackArgs(environment_suffix="prod").idempotency_hours
    assert f"as the stack is set to, {hours} hours by default" in key["description"]


def test_the_contract_has_the_errors_of_the_gateway_itself() -> None:
    for route, operation in operations().items():
        guarded = (401, 403) if operation["security"] else ()
        large = (413,) if "requestBody" in operation else ()
        for status in (429, 500, 503, *guarded, *large):
            json_type = {"content-type": "application/json"}
            check_response(route, status, json_type, '{"message": "in its own words"}')


@pytest.mark.parametrize(
    "path",
    sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")),
    ids=lambda path: path.name,
)
def test_links_and_named_files_exist(path: object) -> None:
    text = path.read_text()  # type: ignore[attr-defined]
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text):
        assert (path.parent / target).exists(), target  # type: ignore[attr-defined]


def test_each_section_has_tests_of_its_name() -> None:
    missing = [each for each in tables.sections() if not tables.test_files(each)]
    assert not missing, "no tests/*/test_<section>.py: add one, or a row of TEST_NAMES"


def test_an_exception_from_the_names_of_tests_is_of_a_section_and_needed() -> None:
    sections = {each.lower() for each in tables.sections()}
    assert tables.TEST_NAMES.keys() <= sections
    for section, name in tables.TEST_NAMES.items():
        assert tables.word(section).replace(" ", "_") != name


def test_each_group_of_settings_is_a_section_and_has_all_its_settings() -> None:
    words = {tables.word(each) for each in tables.sections()}
    assert {group.lower() for group in tables.groups()} <= words
    fields = [each.name for each in dataclasses.fields(tap_stack.TapStackArgs)]
    assert [name for names in tables.groups().values() for name in names] == fields


@pytest.mark.parametrize("name", ["settings.md", "choices.md"])
def test_each_heading_by_subject_is_a_section(name: str) -> None:
    headings = re.findall(r"^## (.+)", (ROOT / "docs" / name).read_text(), re.MULTILINE)
    assert headings
    assert {each.lower() for each in headings} <= {tables.word(x) for x in tables.sections()}


def test_values_are_shown_as_they_are_written_in_the_configuration() -> None:
    for value, text in (("", '`""`'), ("dev", "`dev`"), (0, "`0`"), (False, "`false`")):
        assert tables.configured(value) == text
    assert tables.configured(()) == "`[]`"
    assert tables.configured(("api", "web")) == "`api,web`"
    assert tables.configured({}) == "`{}`"


def test_a_block_that_a_document_lacks_is_an_error() -> None:
    text = "# A page\n<!-- one -->\nold\n<!-- end -->\nrest\n"
    assert tables.filled(text, "one", iter(["new"])) == text.replace("old", "new")
    with pytest.raises(ValueError, match="there is no block two"):
        tables.filled(text, "two", iter(["new"]))


def test_no_generated_file_is_one_that_users_edit() -> None:
    assert not [name for name in tables.BLOCKS if "Pulumi" in name]
    assert all(name.startswith(("docs/", "examples/")) for name in tables.BLOCKS)


@pytest.mark.parametrize(
    "name", ["README.md", "CHANGELOG.md", "docs/decisions/0010-no-sdk-in-the-hot-path.md"]
)
def test_what_boto3_takes_more_is_what_the_benchmarks_have(name: str) -> None:
    rows = re.findall(r"^│ (tap-stack.*) │$", (ROOT / "benchmarks/README.md").read_text(), re.M)
    (row,) = (each for each in rows if each.startswith("tap-stack on boto3 "))
    _, _, _, _, _, _, cold, _, warm, _ = (each.strip() for each in row.split("│"))
    text = " ".join((ROOT / name).read_text().split())
    start, request = re.findall(
        r"takes an? (\w+) of the CPU .*? boto3, a warm request an? (\w+)", text
    )[0]
    parts = {"fifth": 5, "sixth": 6, "eighth": 8, "ninth": 9}
    assert (parts[start], parts[request]) == (round(float(cold)), round(float(warm)))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("example", tables.EXAMPLES, ids=lambda x: x.name)
def test_each_example_registers_and_says_how_it_is_run(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    recorder = Recorder()
    project = Project.load(example, "dev", {})
    assert run(project, recorder)
    assert len(recorder.resources) > 30
    readme = (example / "README.md").read_text()
    assert readme.startswith(f"# {example.name}\n")
    assert f"[{project.main.name}]({project.main.name})" in readme
    for path in example.glob("Pulumi.*.yaml"):
        env = path.name.split(".")[1]
        option = "" if env == "dev" else f" --env {env}"
        assert f"taplocal up --program examples/{example.name}{option}\n" in readme
        assert f"    pulumi stack init {env}\n" in readme


def test_each_test_of_the_lab_has_its_row() -> None:
    _, _, rest = (ROOT / "docs/architecture.md").read_text().partition("## What the lab shows")
    table, _, _ = rest.partition("## ")
    rows = re.findall(r"^\| (\w+): (.+?) \|", table, re.MULTILINE)
    tests = [
        (path.stem.removeprefix("test_"), name.replace("_", " "))
        for path in sorted((ROOT / "tests/lab").glob("test_*.py"))
        for name in re.findall(r"^def test_(\w+)", path.read_text(), re.MULTILINE)
    ]
    assert sorted(rows) == sorted(tests)
