"""Clients of the channels application: prints what they were answered."""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

base = sys.argv[1].replace("http", "ws")


async def talk(path, names):
    """Send names and return what was answered to each."""
    async with connect(f"{base}/{path}") as socket:
        answers = []
        for name in names:
            await socket.send(json.dumps({"name": name}))
            try:
                answers.append(json.loads(await asyncio.wait_for(socket.recv(), 20)))
            except ConnectionClosed as error:
                answers.append({"closed": error.rcvd.code if error.rcvd else None})
                break
        return answers


async def leave(name):
    """Send a name and do not wait for what becomes of it."""
    async with connect(f"{base}/async") as socket:
        await socket.send(json.dumps({"name": name}))


async def main():
    one = await talk("async", ["apple", "refused", "apple", "pear"])
    sync = await talk("sync", ["plum", "refused"])
    async with connect(f"{base}/async") as listener:
        many = [talk("sync", [f"{number} {n}" for n in range(5)]) for number in range(12)]
        spoken = await asyncio.gather(*many, *(leave(f"left {number}") for number in range(12)))
        heard = [json.loads(await asyncio.wait_for(listener.recv(), 20))["stored"] for _ in range(12)]
    print(json.dumps({"one": one, "sync": sync, "spoken": sum(map(len, spoken[:12])), "heard": sorted(heard)}))


asyncio.run(main())
