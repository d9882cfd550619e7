"""Flask-Smorest: schemas for what comes in and goes out, pages, ETags, and answers to errors in JSON."""

import os

import marshmallow as ma
from flask import Flask
from flask.views import MethodView
from flask_smorest import Api, Blueprint, abort
from psycopg.errors import UniqueViolation
from psycopg.rows import dict_row

from flask_pgmonkey import PGMonkey

db = PGMonkey(row_factory=dict_row)
app = Flask(__name__)
app.config.update(PGMONKEY_CONFIG=os.environ["CONFIG"], API_TITLE="pets", API_VERSION="1", OPENAPI_VERSION="3.0.2")
db.init_app(app)
app.get("/stats")(lambda: db.stats())
pets = Blueprint("pets", "pets", url_prefix="/pets")


class PetSchema(ma.Schema):
    id = ma.fields.Int(dump_only=True)
    name = ma.fields.Str(required=True, validate=ma.validate.Length(max=20))
    age = ma.fields.Int(required=True)


class BrokenSchema(PetSchema):
    @ma.post_dump
    def fail(self, data, **kwargs):
        raise ZeroDivisionError


def insert(new):
    return db.fetch_one("INSERT INTO pets (name, age) VALUES (%(name)s, %(age)s) RETURNING *", new)


@pets.route("/")
class Pets(MethodView):
    @pets.response(200, PetSchema(many=True))
    @pets.paginate()
    def get(self, pagination_parameters):
        pagination_parameters.item_count = db.fetch_one("SELECT count(*) FROM pets")["count"]
        query = "SELECT * FROM pets ORDER BY id LIMIT %s OFFSET %s"
        return db.fetch_all(query, [pagination_parameters.page_size, pagination_parameters.first_item])

    @pets.arguments(PetSchema)
    @pets.response(201, PetSchema)
    def post(self, new):
        try:
            return insert(new)
        except UniqueViolation:
            abort(409, message="there is one already")


@pets.route("/<int:id>")
class Pet(MethodView):
    @pets.etag
    @pets.response(200, PetSchema)
    def get(self, id):
        return db.fetch_one("SELECT * FROM pets WHERE id = %s", [id]) or abort(404)

    @pets.etag
    @pets.arguments(PetSchema)
    @pets.response(200, PetSchema)
    def put(self, new, id):
        old = db.fetch_one("SELECT * FROM pets WHERE id = %s FOR UPDATE", [id]) or abort(404)
        db.execute("UPDATE pets SET age = age + 100")  # undone where the ETag does not match
        pets.check_etag(old, PetSchema)
        query = "UPDATE pets SET name = %(name)s, age = %(age)s WHERE id = %(id)s RETURNING *"
        return db.fetch_one(query, {**new, "id": id})


@pets.post("/broken")
@pets.arguments(PetSchema)
@pets.response(201, BrokenSchema)
def broken(new):
    return insert(new)


@pets.post("/counted")
@pets.arguments(PetSchema)
@pets.response(201, PetSchema)
def counted(new):
    return insert(new)


@pets.errorhandler(UniqueViolation)
def twice(error):
    db.execute("UPDATE refused SET n = n + 1")
    return {"message": "counted"}, 200


Api(app).register_blueprint(pets)
