"""FastAPI behind Mangum."""

from typing import Any

from fastapi import FastAPI, HTTPException
from mangum import Mangum
from pydantic import BaseModel

from benchmarks.apps import stub
from benchmarks.apps.log import log

KIND, DISTRIBUTIONS = "v2", ("fastapi", "mangum")
app = FastAPI()


class Item(BaseModel):
    id: str
    name: str
    price: int


@app.get("/items/{item_id}")
async def read(item_id: str) -> dict[str, Any]:
    if (item := stub.get(item_id)) is None:
        raise HTTPException(404, "There is no such item.")
    return item


@app.post("/items", status_code=201)
async def create(item: Item) -> dict[str, Any]:
    return stub.put(item.model_dump())


handler = Mangum(app, lifespan="off")


def bare(event: dict[str, Any]) -> Any:
    return handler(event, None)  # type: ignore[arg-type]


def full(event: dict[str, Any]) -> Any:
    answer = handler(event, None)  # type: ignore[arg-type]
    log(answer["statusCode"])
    return answer
