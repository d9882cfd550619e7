"""fastapi-users: its users and tokens in tables, by query methods in place of its SQLAlchemy adapter."""

import os
from typing import Annotated, Any

import fastapi_users
from fastapi import Depends, FastAPI
from fastapi_users import BaseUserManager, FastAPIUsers, IntegerIDMixin
from fastapi_users.authentication import AuthenticationBackend, BearerTransport
from fastapi_users.authentication.strategy import DatabaseStrategy
from fastapi_users.db import BaseUserDatabase
from fastapi_users.exceptions import InvalidPasswordException, UserAlreadyExists
from psycopg import sql
from psycopg.errors import UniqueViolation
from psycopg.rows import namedtuple_row

from fastapi_pgmonkey import PGMonkey, RequestDatabase

db = PGMonkey(os.environ["CONFIG"], row_factory=namedtuple_row)
app = FastAPI(lifespan=db.lifespan)


async def insert(database, table, values):
    query = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING *").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(map(sql.Placeholder, values)),
    )
    return await database.fetch_one(query, values)


async def update(database, table, key, value, values):
    pairs = [sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in values]
    query = sql.SQL("UPDATE {} SET {} WHERE {} = {} RETURNING *").format(
        sql.Identifier(table), sql.SQL(", ").join(pairs), sql.Identifier(key), sql.Placeholder("_key")
    )
    return await database.fetch_one(query, {**values, "_key": value})


class Users(BaseUserDatabase):
    def __init__(self, database):
        self.database = database

    async def get(self, id):
        return await self.database.fetch_one("SELECT * FROM users WHERE id = %s", [id])

    async def get_by_email(self, email):
        return await self.database.fetch_one("SELECT * FROM users WHERE lower(email) = lower(%s)", [email])

    async def create(self, create_dict):
        try:
            return await insert(self.database, "users", create_dict)
        except UniqueViolation:  # somebody else was quicker; the answer is a 400
            raise UserAlreadyExists from None

    async def update(self, user, update_dict):
        return await update(self.database, "users", "id", user.id, update_dict)

    async def delete(self, user):
        await self.database.execute("DELETE FROM users WHERE id = %s", [user.id])


class Tokens:
    def __init__(self, database):
        self.database = database

    async def get_by_token(self, token, max_age=None):
        query = "SELECT * FROM tokens WHERE token = %s AND created_at >= coalesce(%s, '-infinity'::timestamptz)"
        return await self.database.fetch_one(query, [token, max_age])

    async def create(self, create_dict):
        return await insert(self.database, "tokens", create_dict)

    async def update(self, access_token, update_dict):
        return await update(self.database, "tokens", "token", access_token.token, update_dict)

    async def delete(self, access_token):
        await self.database.execute("DELETE FROM tokens WHERE token = %s", [access_token.token])


class Manager(IntegerIDMixin, BaseUserManager):
    reset_password_token_secret = verification_token_secret = "0123456789" * 4

    def __init__(self, users):
        super().__init__(users)
        self.database = users.database

    async def on_after_register(self, user, request=None):
        await self.database.execute("INSERT INTO mails VALUES (%s)", [user.email])
        if user.email.startswith("bounce"):
            raise ConnectionError("the mail server is away")

    async def on_after_update(self, user, update_dict, request=None):
        await self.database.execute("INSERT INTO mails VALUES (%s)", [f"changed {user.email}"])
        if update_dict.get("email", "").startswith("bad"):
            raise InvalidPasswordException("a reason to refuse what was written")


async def get_users(database: RequestDatabase):
    yield Users(database)


async def get_manager(users: Annotated[Users, Depends(get_users)]):
    yield Manager(users)


def get_strategy(database: RequestDatabase):
    return DatabaseStrategy(Tokens(database), lifetime_seconds=3600)


class UserRead(fastapi_users.schemas.BaseUser[int]):
    pass


backend = AuthenticationBackend("db", BearerTransport("login"), get_strategy)
users = FastAPIUsers(get_manager, [backend])
app.include_router(users.get_auth_router(backend))
app.include_router(users.get_register_router(UserRead, fastapi_users.schemas.BaseUserCreate))
app.include_router(users.get_users_router(UserRead, fastapi_users.schemas.BaseUserUpdate), prefix="/users")
current = users.current_user(active=True)


@app.post("/notes/{text}")
async def note(text: str, database: RequestDatabase, user: Annotated[Any, Depends(current)]):
    await database.execute("INSERT INTO notes VALUES (%s, %s)", [user.id, text])
    return {"by": user.email}


@app.get("/stats")
async def stats():
    return db.async_database.stats()
