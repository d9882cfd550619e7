"""sqladmin: its SQLAlchemy engine beside the pool on the same database, its log-in over query methods."""

import os

from fastapi import FastAPI
from sqladmin import Admin, ModelView
from sqladmin.authentication import AuthenticationBackend
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastapi_pgmonkey import PGMonkey, RequestDatabase

db = PGMonkey(os.environ["CONFIG"])
app = FastAPI(lifespan=db.lifespan)


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class LogIn(AuthenticationBackend):
    async def login(self, request):
        form = await request.form()
        name = await db.async_database.fetch_value("SELECT name FROM admins WHERE name = %s", [form["username"]])
        if name is None:
            await db.async_database.execute("UPDATE admins SET failed = failed + 1")
            db.keep_request()  # the answer is a 400
            return False
        request.session["admin"] = name
        return True

    async def logout(self, request):
        request.session.clear()
        return True

    async def authenticate(self, request):
        query = "SELECT count(*) FROM admins WHERE name = %s"
        return bool(await db.async_database.fetch_value(query, [request.session.get("admin")]))


class ItemAdmin(ModelView, model=Item):
    column_list = [Item.name]

    async def on_model_change(self, data, model, is_created, request):
        await db.async_database.execute("INSERT INTO log VALUES (%s)", [data["name"]])


admin = Admin(app, create_async_engine(os.environ["SQLALCHEMY"]), authentication_backend=LogIn("x" * 32))
admin.add_view(ItemAdmin)


@app.get("/items")
async def items(database: RequestDatabase):
    return [name for (name,) in await database.fetch_all("SELECT name FROM items ORDER BY name")]


@app.get("/stats")
async def stats():
    return db.async_database.stats()
