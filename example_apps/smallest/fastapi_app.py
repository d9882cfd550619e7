"""The smallest application on FastAPI: ``DATABASE_URL=postgresql://... uvicorn fastapi_app:app``."""

import os

from fastapi import FastAPI

from fastapi_pgmonkey import PGMonkey, RequestDatabase

db = PGMonkey(os.environ["DATABASE_URL"])
db.sync_database.execute("CREATE TABLE IF NOT EXISTS visitor (name text)")
app = FastAPI(lifespan=db.lifespan)


@app.post("/{name}")
async def greet(name: str, database: RequestDatabase) -> str:
    await database.execute("INSERT INTO visitor VALUES (%s)", [name])
    number = await database.fetch_value("SELECT count(*) FROM visitor")
    return f"Hello {name}, you are number {number}"
