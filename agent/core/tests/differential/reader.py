"""Python's json: each line of hexadecimal digits as it reads it; numbers as they are written."""

import json
import sys


class Number(str):
    pass


def form(value):
    if isinstance(value, Number):
        return {"number": value}
    if isinstance(value, list):
        return [form(item) for item in value]
    if isinstance(value, dict):
        return {"object": [[key, form(item)] for key, item in value.items()]}
    return value


for line in sys.stdin:
    try:
        value = json.loads(bytes.fromhex(line), parse_int=Number, parse_float=Number, parse_constant=Number)
        print(json.dumps({"read": form(value)}))
    except ValueError as error:
        print(json.dumps({"refused": str(error)}))
