from pgmonkey import PGConnectionManager

manager = PGConnectionManager()


async def startup():
    pool = await manager.get_database_connection(
        'config.yaml', 'async_pool', resolve_env=True
    )
