INSERT INTO product (name, price_cents, stock) VALUES
    ('Coffee, 250 g', 890, 1000),
    ('Teapot', 3450, 25),
    ('Mug', 1200, 500),
    ('Last umbrella', 1999, 1);
