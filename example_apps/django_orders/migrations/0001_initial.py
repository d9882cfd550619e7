"""The tables of all three shops.  They may be there already: the shops share one database."""

import django.db.models.functions.datetime
from django.db import migrations, models

from ... import shop

ID = {"auto_created": True, "primary_key": True, "serialize": False, "verbose_name": "ID"}


class Migration(migrations.Migration):
    initial = True
    dependencies = ()
    operations = (
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(shop.SCHEMA, "DROP TABLE IF EXISTS line, purchase, product"),
            ],
            state_operations=[
                migrations.CreateModel(
                    name="Product",
                    fields=[
                        (
                            "id",
                            models.BigAutoField(
                                auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                            ),
                        ),
                        ("name", models.TextField()),
                        ("price_cents", models.IntegerField()),
                        ("stock", models.IntegerField()),
                    ],
                    options={"db_table": "product", "ordering": ("id",)},
                ),
                migrations.CreateModel(
                    name="Purchase",
                    fields=[
                        (
                            "id",
                            models.BigAutoField(
                                auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                            ),
                        ),
                        ("customer", models.TextField()),
                        ("placed_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                        ("total_cents", models.IntegerField()),
                    ],
                    options={"db_table": "purchase", "ordering": ("-id",)},
                ),
                migrations.CreateModel(
                    name="Line",
                    fields=[
                        (
                            "id",
                            models.BigAutoField(
                                auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                            ),
                        ),
                        ("quantity", models.IntegerField()),
                        ("price_cents", models.IntegerField()),
                        (
                            "product",
                            models.ForeignKey(
                                db_index=False,
                                on_delete=models.PROTECT,
                                related_name="+",
                                to="orders.product",
                            ),
                        ),
                        (
                            "purchase",
                            models.ForeignKey(
                                db_index=False,
                                on_delete=models.PROTECT,
                                related_name="lines",
                                to="orders.purchase",
                            ),
                        ),
                    ],
                    options={"db_table": "line", "ordering": ("id",)},
                ),
            ],
        ),
    )
