"""Strawberry on FastAPI: one schema that commits what its resolvers did before an error, and one that does not."""

import asyncio
import os

import strawberry
from fastapi import FastAPI
from strawberry.extensions import SchemaExtension
from strawberry.fastapi import GraphQLRouter

from fastapi_pgmonkey import PGMonkey, RequestDatabase

db = PGMonkey(os.environ["CONFIG"])
app = FastAPI(lifespan=db.lifespan)


async def get_context(database: RequestDatabase):
    return {"database": database}


@strawberry.type
class Query:
    @strawberry.field
    async def count(self, info: strawberry.Info) -> int:
        return await info.context["database"].fetch_value("SELECT count(*) FROM books")

    @strawberry.field
    async def count_in_a_block(self, info: strawberry.Info) -> int:
        async with info.context["database"].transaction():  # while other fields are resolved
            await asyncio.sleep(0.05)
            return await info.context["database"].fetch_value("SELECT count(*) FROM books")


@strawberry.type
class Mutation:
    @strawberry.mutation
    async def add(self, info: strawberry.Info, title: str) -> str:
        await info.context["database"].execute("INSERT INTO books VALUES (%s)", [title])
        if title == "bad":
            raise ValueError("bad title")
        return title


class AllOrNothing(SchemaExtension):
    def on_execute(self):
        yield
        if self.execution_context.result.errors:
            db.rollback_request()


plain = strawberry.Schema(Query, Mutation)
strict = strawberry.Schema(Query, Mutation, extensions=[AllOrNothing])
app.include_router(GraphQLRouter(plain, context_getter=get_context), prefix="/plain")
app.include_router(GraphQLRouter(strict, context_getter=get_context), prefix="/strict")


@app.get("/stats")
async def stats():
    return db.async_database.stats()
