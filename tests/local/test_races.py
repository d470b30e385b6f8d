"""Many callers at the same items at the same time: what is promised to each of them holds."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

import pytest

from tests.local.conftest import Call

pytestmark = pytest.mark.usefixtures("unthrottled")

CALLERS = 12


def at_once(call: Callable[[int], Any], times: int) -> list[Any]:
    """The results of calls with 0, 1, 2 and so on, many of them at the same time."""
    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(call, range(times)))


def test_patches_without_a_condition_are_all_applied(ann: Call, fresh: str) -> None:
    ann("POST", "/items", json.dumps({"id": fresh}))

    def patch(n: int) -> int:
        """The attempts that it took: 409 asks for another one."""
        for attempt in range(1, 100):
            response = ann("PATCH", f"/items/{fresh}", f'{{"n{n}": {n}}}')
            if response.status == 200:
                assert response.json()[f"n{n}"] == n
                return attempt
            assert response.status in (409, 503), response.body
        raise AssertionError("never applied")

    at_once(patch, 96)
    item = ann("GET", f"/items/{fresh}").json()
    assert {name: value for name, value in item.items() if name[1:].isdigit()} == {
        f"n{n}": n for n in range(96)
    }
    assert item["version"] == 97


def test_of_many_deletes_one_succeeds_and_a_patch_revives_nothing(ann: Call, fresh: str) -> None:
    for race in range(40):
        path = f"/items/{fresh}-{race}"
        ann("POST", "/items", json.dumps({"id": f"{fresh}-{race}"}))
        calls = ["DELETE", "PATCH", "DELETE", "GET", "DELETE", "PUT"]
        bodies = {"PATCH": '{"late": true}', "PUT": '{"late": true}'}
        with ThreadPoolExecutor(len(calls)) as pool:
            responses = list(pool.map(ann, calls, repeat(path), map(bodies.get, calls)))
        answers = Counter((call, each.status) for call, each in zip(calls, responses, strict=True))
        assert answers["DELETE", 204] == 1, answers
        assert answers["DELETE", 404] == 2, answers
        assert {status for _, status in answers} <= {200, 204, 404, 409}, answers
        assert ann("GET", path).status == 404


def test_of_many_creates_of_one_id_one_succeeds_for_each_caller(
    ann: Call, bob: Call, fresh: str
) -> None:
    for race in range(10):
        body = json.dumps({"id": f"{fresh}-{race}"})

        def create(n: int, body: str = body) -> tuple[int, int]:
            return n % 2, (ann, bob)[n % 2]("POST", "/items", body).status

        answers = Counter(at_once(create, 12))
        assert answers == {(0, 201): 1, (0, 409): 5, (1, 201): 1, (1, 409): 5}


def test_of_many_creates_under_one_key_one_item_is_made(ann: Call, fresh: str) -> None:
    body = json.dumps({"category": fresh})
    responses = at_once(lambda _: ann("POST", "/items", body, idempotency_key=fresh), 50)
    assert {each.status for each in responses} <= {201, 409, 503}
    assert len({each.body for each in responses if each.status == 201}) == 1
    assert len(ann("GET", f"/items?category={fresh}").json()["items"]) == 1


def test_a_list_that_is_read_while_it_grows_and_shrinks_leaves_out_and_repeats_nothing(
    ann: Call, fresh: str
) -> None:
    stay = {f"{fresh}-{n}" for n in range(30)}
    for item_id in sorted(stay):
        ann("POST", "/items", json.dumps({"id": item_id, "category": fresh}))
    done = threading.Event()

    def write() -> None:
        n = 0
        while not done.is_set():
            n += 1
            item_id = f"{fresh}-passing-{n}"
            ann("POST", "/items", json.dumps({"id": item_id, "category": fresh}))
            ann("DELETE", f"/items/{item_id}")

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    try:
        for order in ("asc", "desc") * 4:
            seen = Counter(walk(ann, f"/items?category={fresh}&limit=7&order={order}"))
            assert max(seen.values()) == 1
            assert seen.keys() >= stay
    finally:
        done.set()
        for writer in writers:
            writer.join()


def walk(ann: Call, path: str) -> list[str]:
    """The ids of all pages of a list."""
    page = ann("GET", path).json()
    ids = [item["id"] for item in page["items"]]
    while "next" in page:
        page = ann("GET", f"{path}&next={page['next']}").json()
        ids += [item["id"] for item in page["items"]]
    return ids
