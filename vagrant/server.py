"""A small MCP server on the official SDK, with the tools that the demo's client asks for. It knows nothing of Toolgate."""

import os
import sys

from mcp.server.fastmcp import FastMCP

mcp = FastMCP("everything", host="127.0.0.1", port=int(sys.argv[1]))


@mcp.tool()
def echo(message: str) -> str:
    """Says what was said."""
    return f"Echo: {message}"


@mcp.tool(name="get-sum")
def get_sum(a: float, b: float) -> str:
    """Adds."""
    return f"The sum of {a:g} and {b:g} is {a + b:g}."


@mcp.tool(name="get-env")
def get_env() -> str:
    """Gives away all that its environment holds."""
    return " ".join(f"{name}={value}" for name, value in os.environ.items())


mcp.run(transport="streamable-http")
