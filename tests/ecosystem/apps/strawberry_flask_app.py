"""Strawberry on Flask: one schema that commits what its resolvers did before an error, and one that does not."""

import os

import strawberry
from flask import Flask
from strawberry.extensions import SchemaExtension
from strawberry.flask.views import GraphQLView

from flask_pgmonkey import PGMonkey

db = PGMonkey()
app = Flask(__name__)
app.config["PGMONKEY_CONFIG"] = os.environ["CONFIG"]
db.init_app(app)


@strawberry.type
class Query:
    @strawberry.field
    def count(self) -> int:
        return db.fetch_value("SELECT count(*) FROM books")


@strawberry.type
class Mutation:
    @strawberry.mutation
    def add(self, title: str) -> str:
        db.execute("INSERT INTO books VALUES (%s)", [title])
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
app.add_url_rule("/plain", view_func=GraphQLView.as_view("plain", schema=plain))
app.add_url_rule("/strict", view_func=GraphQLView.as_view("strict", schema=strict))
app.get("/stats")(lambda: db.stats())
