"""The shop on Flask with the panel: ``gunicorn "example_apps.panel.on_flask:create_app()"``."""

from typing import Any

from flask import Blueprint, abort, redirect, render_template, request
from flask.typing import ResponseReturnValue

from .. import flask_orders, shop
from ..flask_orders import db, require_own_form
from . import Panel
from .experiments import Experiment
from .watching import wsgi


def create_app() -> Any:
    app = flask_orders.create_app()
    panel = Panel("Flask", "gunicorn", db.stats, app.jinja_env)
    pages = Blueprint("panel", __name__, url_prefix="/promises")

    def find(name: str) -> Experiment:
        return panel.experiments.get(name) or abort(404)

    @pages.get("/live")
    def live() -> str:
        return render_template("panel_live.html")

    @pages.get("/<name>")
    def show(name: str) -> str:
        return render_template("experiment.html", experiment=find(name))

    @pages.post("/<name>")
    def press(name: str) -> ResponseReturnValue:
        require_own_form()
        panel.press(find(name).name, request.headers["Cookie"], request.form[shop.CSRF_FIELD])
        return redirect(f"/promises/{name}", 303)

    @pages.post("/<name>/act")
    def act(name: str) -> ResponseReturnValue:
        require_own_form()
        for statement in find(name).act:
            db.execute(statement, {"customer": request.form["customer"]})
        return "Done.", 201

    app.register_blueprint(pages)
    return wsgi(app)
