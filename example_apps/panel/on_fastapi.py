"""The shop on FastAPI with the panel: ``uvicorn example_apps.panel.on_fastapi:app``."""

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from .. import fastapi_orders, shop
from ..fastapi_orders import DB, OwnForm, page, pgmonkey, templates
from . import Panel
from .experiments import Experiment
from .watching import asgi

panel = Panel("FastAPI", "uvicorn", pgmonkey.async_database.stats, templates.env)
pages = APIRouter(prefix="/promises", include_in_schema=False)


def find(name: str) -> Experiment:
    if name not in panel.experiments:
        raise HTTPException(404)
    return panel.experiments[name]


@pages.get("/live")
async def live(request: Request) -> Response:
    return page(request, "panel_live.html", {})


@pages.get("/{name}")
async def show(request: Request, name: str) -> Response:
    return page(request, "experiment.html", {"experiment": find(name)})


@pages.post("/{name}")
def press(request: Request, name: str, form: OwnForm) -> Response:  # in a thread: it waits for this very server
    panel.press(find(name).name, request.headers["Cookie"], form[shop.CSRF_FIELD])
    return RedirectResponse(f"/promises/{name}", 303)


@pages.post("/{name}/act", status_code=201)
async def act(name: str, form: OwnForm, db: DB) -> str:
    for statement in find(name).act:
        await db.execute(statement, {"customer": form["customer"]})
    return "Done."


fastapi_orders.app.include_router(pages)
app = asgi(fastapi_orders.app)
