"""Tools and tool calls, as OpenAI, sharegpt, LLaMA-Factory and ms-swift write them, as JSON text.

The text is what chat templates take: OpenAI's `tools` and `tool_calls`, with the arguments of a
call as an object. An empty list is "". In cells that are lists and mappings, a key that is null
counts as absent, because tables fill in the keys of other rows; JSON text is taken as it is.
"""

import json
from typing import Any

from intel_ft.sources.bad_rows import BadRow


def tools_text(name: str, value: object) -> str:
    """The tools of a row or turn: a list, a mapping, or either as JSON text. Raises BadRow."""
    tools = _parsed(name, value)
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list):
        raise BadRow(f"{name} is neither a list of tools nor JSON text of one")
    return _text([_tool(f"{name}[{place}]", tool) for place, tool in enumerate(tools)])


def calls_text(name: str, value: object) -> str:
    """The tool calls of an answer: one or a list of them, or either as JSON text. Raises BadRow."""
    calls = _parsed(name, value)
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list):
        raise BadRow(f"{name} is neither a list of tool calls nor JSON text of one")
    return _text([_call(f"{name}[{place}]", call) for place, call in enumerate(calls)])


def join_calls(one: str, other: str) -> str:
    """Parallel calls that the data has in turns of their own, in one answer."""
    return _text([*json.loads(one), *json.loads(other)])


def _tool(name: str, tool: object) -> dict[str, Any]:
    tool = _parsed(name, tool) if isinstance(tool, str) else tool
    given: dict[str, Any] = tool if isinstance(tool, dict) else {}
    if isinstance(given.get("function"), str):
        given = {**given, "function": _parsed(f"{name}.function", given["function"])}
    if "function" not in given:
        given = {"type": "function", "function": given}
    function = given["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(f"{name} is not a function with a name")
    return {"type": "function", **given}


def _call(name: str, call: object) -> dict[str, Any]:
    call = _parsed(name, call) if isinstance(call, str) else call
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(f"{name} is not a call with the name of a function")
    assert isinstance(call, dict)
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _object_of(arguments)
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    named = {"name": function["name"], "arguments": arguments}
    return {**identity, "type": "function", "function": named}


def _object_of(arguments: str) -> object:
    """The object that JSON text of arguments says; other text as it is."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _parsed(name: str, value: object) -> object:
    if not isinstance(value, str):
        return _without_nulls(value)
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{name} is text, but not JSON ({error})") from None


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _text(values: list[dict[str, Any]]) -> str:
    return json.dumps(values, ensure_ascii=False) if values else ""
