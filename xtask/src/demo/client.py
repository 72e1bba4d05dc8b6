"""A plain program on the official MCP Python SDK. It was written without a thought of Toolgate and does not know of it."""

import asyncio
import json
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

CALLS = [
    ("get-sum", {"a": 2, "b": 40}),
    ("get-env", {}),
    ("get-sum", {"a": 2, "b": 4000}),
]


async def main(url: str) -> None:
    async with streamable_http_client(url) as (read, write, _session_id):
        async with ClientSession(read, write) as session:
            await session.initialize()

            for name, arguments in CALLS:
                result = await session.call_tool(name, arguments)
                text = " ".join(part.text for part in result.content if part.type == "text")
                print(f"{name} {json.dumps(arguments)}")
                print(f"  {'error' if result.isError else 'result'}: {' '.join(text.split())}")
                print()

            tools = [tool.name for tool in (await session.list_tools()).tools]
            print("list of tools")
            print(f"  {len(tools)}: {', '.join(tools)}")


asyncio.run(main(sys.argv[1]))
