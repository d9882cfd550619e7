"""Flask-Admin: model views over query methods, and its SQLAlchemy views on the same database."""

import os
from types import SimpleNamespace

import psycopg
from flask import Flask
from flask_admin import Admin
from flask_admin.contrib.sqla import ModelView
from flask_admin.model import BaseModelView
from flask_sqlalchemy import SQLAlchemy
from psycopg.rows import namedtuple_row
from wtforms import Form, IntegerField, StringField

from flask_pgmonkey import PGMonkey

db = PGMonkey(row_factory=namedtuple_row)
app = Flask(__name__)
app.config.update(
    PGMONKEY_CONFIG=os.environ["CONFIG"], SQLALCHEMY_DATABASE_URI=os.environ["SQLALCHEMY"], SECRET_KEY="x"
)
db.init_app(app)
sqla = SQLAlchemy(app)
admin = Admin(app)
app.get("/stats")(lambda: db.stats())

LOG = "INSERT INTO log VALUES (%s)"


class ItemForm(Form):
    name = StringField()
    price = IntegerField()


class ItemView(BaseModelView):
    """As Flask-Admin's documentation has it for a data store that it does not know."""

    def get_pk_value(self, model):
        return model.id

    def scaffold_list_columns(self):
        return ["name", "price"]

    def scaffold_sortable_columns(self):
        return {"name": "name"}

    def scaffold_form(self):
        return ItemForm

    def _create_ajax_loader(self, name, options):
        return None

    def get_list(self, *args, **kwargs):
        rows = db.fetch_all("SELECT id, name, price FROM items ORDER BY name")
        return len(rows), rows

    def get_one(self, id):
        return db.fetch_one("SELECT id, name, price FROM items WHERE id = %s::int", [id])

    def create_model(self, form):
        return self.write(form, "INSERT INTO items (name, price) VALUES (%s, %s)", [form.name.data, form.price.data])

    def update_model(self, form, model):
        query = "UPDATE items SET name = %s, price = %s WHERE id = %s"
        return self.write(form, query, [form.name.data, form.price.data, model.id])

    def delete_model(self, model):
        return bool(db.execute("DELETE FROM items WHERE id = %s", [model.id]))

    def write(self, form, query, params):
        try:
            with db.transaction():  # a savepoint: the page that shows the error queries, too
                db.execute(LOG, [form.name.data])
                db.execute(query, params)
        except psycopg.Error as error:
            form.name.errors = [str(error)]
            return False
        return True


class CarelessView(ItemView):
    """Catches what its statements raise, without a savepoint."""

    def write(self, form, query, params):
        try:
            db.execute(LOG, [form.name.data])
            db.execute(query, params)
        except psycopg.Error:
            return False
        return True


class Item(sqla.Model):
    __tablename__ = "items"
    id = sqla.Column(sqla.Integer, primary_key=True)
    name = sqla.Column(sqla.Text)
    price = sqla.Column(sqla.Integer)


class PlainView(ModelView):
    """SQLAlchemy's transaction is its own; the log is written in the request's."""

    def on_model_change(self, form, model, is_created):
        db.execute(LOG, [model.name])


class StrictView(PlainView):
    def handle_view_exception(self, exc):
        db.rollback_request()  # Flask-Admin shows the form again, with status 200
        return super().handle_view_exception(exc)


admin.add_view(ItemView(SimpleNamespace, name="Items", endpoint="items"))
admin.add_view(CarelessView(SimpleNamespace, name="Careless", endpoint="careless"))
admin.add_view(PlainView(Item, sqla, endpoint="plain"))
admin.add_view(StrictView(Item, sqla, endpoint="strict"))
