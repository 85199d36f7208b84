"""The language of the socket: a line of JSON in, what to answer out. Knows no sockets.

* Two forms, one dispatch: `{"action":NAME, ...}` and JSON-RPC 2.0 (the same names as methods). A line that
  cannot be read is answered as JSON-RPC if it starts with `[` or contains `"jsonrpc"`, else plainly.
* Every line that is no notification has an answer; no line and no handler can raise out of `answer`.
* A handler that returns its data is answered at once, without a task. One that returns an awaitable, and
  every batch, gives a `Later`; one that returns an async iterator gives `Pages`.
* A batch is worked through in its order, one entry after another.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

import msgspec

from registry.api.access import Access, Peer
from registry.api.actions import Action, ApiError, ErrorCode, Params, Role

BATCH_MAX = 100
"""Most entries of a JSON-RPC batch."""

RPC_CODES: dict[ErrorCode, int] = {
    # Those of section 5.1 of the JSON-RPC 2.0 specification.
    ErrorCode.PARSE_ERROR: -32700,
    ErrorCode.INVALID_REQUEST: -32600,
    ErrorCode.UNKNOWN_ACTION: -32601,
    ErrorCode.INVALID_PARAMS: -32602,
    ErrorCode.INTERNAL_ERROR: -32603,
    # Ours, from its range for servers. A number once given stays.
    ErrorCode.TOO_LONG: -32001,
    ErrorCode.FORBIDDEN: -32002,
    ErrorCode.UNKNOWN_SERVICE: -32003,
    ErrorCode.UNKNOWN_CHECK: -32004,
    ErrorCode.NO_LOGS: -32005,
    ErrorCode.TIMED_OUT: -32006,
    ErrorCode.PARTIAL_FAILURE: -32007,
    ErrorCode.SHUTTING_DOWN: -32008,
    ErrorCode.JOURNAL_UNAVAILABLE: -32009,
    ErrorCode.OUTCOME_UNKNOWN: -32010,
    ErrorCode.NOT_READY: -32011,
    ErrorCode.NO_RUN: -32012,
    ErrorCode.NOT_RUNNING: -32013,
    ErrorCode.NO_RELOAD: -32014,
    ErrorCode.REQUEST_FAILED: -32015,
    ErrorCode.NO_CHECKS: -32016,
    ErrorCode.INVALID_CONFIG: -32017,
    ErrorCode.JOURNAL_UNREADABLE: -32018,
    ErrorCode.OUT_OF_RANGE: -32019,
}
"""The number of each error in JSON-RPC form; its name is in `error.data.code`."""

Handler = Callable[[Any, Peer], Any]
"""Answers an action: handed its params and the peer, returns data, an awaitable of it, or pages.

Data is whatever msgspec encodes as JSON; a `msgspec.Raw` (one line of JSON) goes out as it is.
"""

_EXAMPLE = '{"action":"list_services"}'
_RPC_MESSAGES: dict[ErrorCode, str] = {
    # The specification's own words; our sentence goes into `error.data.message`.
    ErrorCode.PARSE_ERROR: "Parse error",
    ErrorCode.INVALID_REQUEST: "Invalid Request",
    ErrorCode.UNKNOWN_ACTION: "Method not found",
    ErrorCode.INVALID_PARAMS: "Invalid params",
    ErrorCode.INTERNAL_ERROR: "Internal error",
}
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_SHOWN_MAX = 60
_NULL = b"null"

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Answer(msgspec.Struct, frozen=True):
    """A line to send now. An `ordered` one (it carries no id) may not overtake another ordered one."""

    line: bytes
    ordered: bool


class Pages(msgspec.Struct, frozen=True):
    """A stream of lines, to be pulled while there is room for them, and closed whatever happens."""

    lines: AsyncGenerator[bytes, None]
    source: AsyncIterator[Any]
    ordered: bool
    weight: int = 1

    async def close(self) -> None:
        """End the handler's stream, whether or not a line was ever pulled from it."""
        await self.lines.aclose()
        close_source = getattr(self.source, "aclose", None)
        if close_source is not None:
            await close_source()


class Later(msgspec.Struct, frozen=True):
    """An answer that needs waiting for: await `outcome`. It stands for `weight` requests.

    `is_question`: nothing is lost where it is cancelled because nobody is there to hear it.
    """

    outcome: Coroutine[Any, Any, bytes | Pages | None]
    ordered: bool
    weight: int = 1
    is_question: bool = False


Outcome = Answer | Later | Pages | None
"""What a line leads to; None: nothing is to be answered (a notification)."""


class Dispatcher:
    """One table of actions with their handlers, and who may ask for them."""

    def __init__(
        self, actions: Mapping[str, Action], handlers: Mapping[str, Handler], access: Access
    ) -> None:
        if odd := actions.keys() ^ handlers.keys():
            raise ValueError(f"not both an action and a handler: {', '.join(sorted(odd))}")
        self._actions = actions
        self._handlers = handlers
        self._access = access
        self._large: tuple[msgspec.Raw, bytes] | None = None

    def answer(self, line: bytes | bytearray, peer: Peer) -> Outcome:
        """What to answer `peer` for `line` (without its newline). Never raises."""
        try:
            message = _decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            return refusal(line, ApiError(ErrorCode.PARSE_ERROR, f"this line is not JSON: {error}"))
        if isinstance(message, dict) and "jsonrpc" not in message:
            return self._plain(message, peer)
        if isinstance(message, dict):
            return self._rpc(message, peer)
        if isinstance(message, list):
            return self._batch(message, peer)
        return refusal(line, _no_request())

    def _plain(self, message: dict[str, Any], peer: Peer) -> Outcome:
        form = _Plain()
        try:
            if "id" in message:
                form = _Plain(_plain_id(message.pop("id")))
            if "action" not in message:
                raise _no_request()
            name = message.pop("action")
            if not isinstance(name, str):
                raise _invalid(f"action wants a string, as in {_EXAMPLE}")
        except ApiError as error:
            return Answer(form.error(error), form.ordered)
        return self._run(form, name, message, peer)

    def _rpc(self, message: Any, peer: Peer) -> Outcome:
        id_ = message.get("id") if isinstance(message, dict) else None
        id_known = id_ is not None and type(id_) in (str, int, float)
        form = _Rpc(_encode(id_) if id_known else _NULL, "")
        try:
            name, params = _rpc_call(message)
        except ApiError as error:
            return Answer(form.error(error), ordered=not id_known)
        outcome = self._run(_Rpc(form.id, name), name, params, peer)
        return outcome if "id" in message else _muted(outcome)

    def _batch(self, messages: list[Any], peer: Peer) -> Outcome:
        if messages and len(messages) <= BATCH_MAX:
            return Later(self._entries(messages, peer), ordered=False, weight=len(messages))
        error = _invalid(f"a batch wants 1 to {BATCH_MAX} entries; this one has {len(messages)}")
        return Answer(_Rpc().error(error), ordered=True)

    async def _entries(self, messages: list[Any], peer: Peer) -> bytes | None:
        lines = []
        for message in messages:
            line = await _whole(self._rpc(message, peer), message)
            if line is not None:
                lines.append(line[:-1])
        return b"[%b]\n" % b",".join(lines) if lines else None

    def _run(
        self, form: _Form, name: str, given: dict[str, Any] | list[Any], peer: Peer
    ) -> Answer | Later | Pages:
        try:
            data = self._call(name, given, peer)
            if not isinstance(data, msgspec.Raw):
                if isinstance(data, Awaitable):
                    asks = self._actions[name].role is Role.OBSERVE
                    return Later(_finish(form, name, data), form.ordered, is_question=asks)
                if isinstance(data, AsyncIterator):
                    return _pages(form, name, data)
            return Answer(self._result(form, data), form.ordered)
        except Exception as error:
            return Answer(form.error(_as_api_error(name, error)), form.ordered)

    def _result(self, form: _Form, data: Any) -> bytes:
        """The line of a result. Of one that is large and the same as before it is the same line, not a further copy."""
        if not isinstance(data, msgspec.Raw) or form != _PLAIN:
            return form.result(_json(data))
        if self._large is None or self._large[0] is not data:
            self._large = data, form.result(data)
        return self._large[1]

    def _call(self, name: str, given: dict[str, Any] | list[Any], peer: Peer) -> Any:
        action = self._actions.get(name)
        if action is None:
            raise ApiError(ErrorCode.UNKNOWN_ACTION, _unknown(name, self._actions))
        params = read_params(action, given)
        self._access.allow(peer, action, params)
        return self._handlers[name](params, peer)


def refusal(line: bytes | bytearray, error: ApiError) -> Answer:
    """The answer to a line that could not be read (or not wholly), in the form that it seems to have."""
    looks_like_rpc = line.lstrip().startswith(b"[") or b'"jsonrpc"' in line
    form = _Rpc() if looks_like_rpc else _Plain()
    return Answer(form.error(error), ordered=True)


def read_params(action: Action, given: dict[str, Any] | list[Any]) -> Params:
    """`given`, by name or by position, as the action's params; ApiError(INVALID_PARAMS) if it is not."""
    if isinstance(given, list):
        given = _by_name(action, given)
    for name, value in given.items():
        # No integer that a database or the kernel could not take gets past here.
        if type(value) is int and not _INT_MIN <= value <= _INT_MAX:
            raise _bad_params(f"parameter {_shown(name)} of {action.name} exceeds 64 bits")
    try:
        return msgspec.convert(given, action.params)
    except msgspec.ValidationError as error:
        raise _bad_params(_explained(action, given, error)) from None


class _Plain(msgspec.Struct, frozen=True):
    """Answers of the plain form. `id` is JSON, None when there was none."""

    id: bytes | None = None

    @property
    def ordered(self) -> bool:
        return self.id is None

    def result(self, data: bytes | msgspec.Raw) -> bytes:
        # join, because formatting by % is sixty times slower on a large Raw.
        if self.id is None:
            return b"".join((b'{"ok":true,"data":', data, b"}\n"))
        return b"".join((b'{"ok":true,"data":', data, b',"id":', self.id, b"}\n"))

    def error(self, error: ApiError) -> bytes:
        body: dict[str, Any] = {"code": error.code, "message": error.message}
        if error.data is not None:
            body["data"] = error.data
        if self.id is None:
            return b'{"ok":false,"error":%b}\n' % _encode(body)
        return b'{"ok":false,"error":%b,"id":%b}\n' % (_encode(body), self.id)

    page = result
    late_error = error


_PLAIN = _Plain()


class _Rpc(msgspec.Struct, frozen=True):
    """Answers of the JSON-RPC form. `id` is JSON; `method` names the notifications of a stream."""

    id: bytes = _NULL
    method: str = ""

    @property
    def ordered(self) -> bool:
        return False

    def result(self, data: bytes | msgspec.Raw) -> bytes:
        return b"".join((b'{"jsonrpc":"2.0","result":', data, b',"id":', self.id, b"}\n"))

    def error(self, error: ApiError) -> bytes:
        return b'{"jsonrpc":"2.0","error":%b,"id":%b}\n' % (_rpc_error(error), self.id)

    def page(self, data: bytes | msgspec.Raw) -> bytes:
        return self._notification(b"data", data)

    def late_error(self, error: ApiError) -> bytes:
        return self._notification(b"error", _rpc_error(error))

    def _notification(self, key: bytes, value: bytes | msgspec.Raw) -> bytes:
        head = b'{"jsonrpc":"2.0","method":%b,"params":{"id":%b,"%b":'
        return b"".join((head % (_encode(self.method), self.id, key), value, b"}}\n"))


_Form = _Plain | _Rpc


def _rpc_error(error: ApiError) -> bytes:
    data: dict[str, Any] = {"code": error.code}
    message = _RPC_MESSAGES.get(error.code)
    if message is not None:
        data["message"] = error.message
    if error.data is not None:
        data["data"] = error.data
    body = {"code": RPC_CODES[error.code], "message": message or error.message, "data": data}
    return _encode(body)


def _rpc_call(message: Any) -> tuple[str, dict[str, Any] | list[Any]]:
    """Method and params of a JSON-RPC request; ApiError where section 4 of the specification forbids it."""
    if not isinstance(message, dict):
        raise _invalid('an entry of a batch wants to be an object, {"jsonrpc":"2.0","method":...}')
    if message.get("jsonrpc") != "2.0":
        raise _invalid('jsonrpc wants to be "2.0", as a string')
    if type(message.get("id")) not in (str, int, float, type(None)):
        raise _invalid("id wants a string, a number or null")
    name, params = message.get("method"), message.get("params", {})
    if not isinstance(name, str):
        raise _invalid("method wants a string: the name of an action")
    if not isinstance(params, dict | list):
        raise _invalid("params wants an object or an array")
    return name, params


async def _finish(form: _Form, name: str, waiting: Awaitable[Any]) -> bytes | Pages:
    try:
        data = await waiting
        if isinstance(data, AsyncIterator):
            return _pages(form, name, data)
        return form.result(_json(data))
    except Exception as error:
        return form.error(_as_api_error(name, error))


def _pages(form: _Form, name: str, source: AsyncIterator[Any]) -> Pages:
    return Pages(_page_lines(form, name, source), source, form.ordered)


async def _page_lines(
    form: _Form, name: str, source: AsyncIterator[Any]
) -> AsyncGenerator[bytes, None]:
    """A line a page: the first is the answer. A stream without pages answers with an empty one."""
    answered = False
    try:
        async for page in source:
            yield form.page(_json(page)) if answered else form.result(_json(page))
            answered = True
        if not answered:
            yield form.result(b"[]")
    except Exception as error:
        failure = _as_api_error(name, error)
        yield form.late_error(failure) if answered else form.error(failure)


def _muted(outcome: Outcome) -> Later | None:
    """What is left of the outcome of a notification: it is carried out, and nothing is answered."""
    if isinstance(outcome, Later | Pages):
        return Later(_silently(outcome), ordered=False, weight=outcome.weight)
    return None


async def _silently(outcome: Later | Pages) -> None:
    result = await outcome.outcome if isinstance(outcome, Later) else outcome
    if isinstance(result, Pages):
        await result.close()


async def _whole(outcome: Outcome, message: Any) -> bytes | None:
    """The one line of a batch's entry, which therefore cannot be a stream."""
    result = await outcome.outcome if isinstance(outcome, Later) else outcome
    if isinstance(result, Answer):
        return result.line
    if isinstance(result, Pages):
        await result.close()
        error = _bad_params("a stream has no place in a batch; ask for it on a line of its own")
        return _Rpc(_encode(message["id"])).error(error)
    return result


def _json(data: Any) -> bytes | msgspec.Raw:
    return data if isinstance(data, msgspec.Raw) else _encode(data)


def _as_api_error(name: str, error: Exception) -> ApiError:
    """`error` as it may be answered: what cannot be said to a client goes into the log."""
    if isinstance(error, ApiError):
        try:
            _encode((error.message, error.data))
            return error
        except Exception as unsayable:
            error = unsayable
    _log.error("the handler of %s failed", name, exc_info=error)
    return ApiError(
        ErrorCode.INTERNAL_ERROR, f"{name} failed inside the registry; its log has the details"
    )


def _plain_id(value: Any) -> bytes:
    if isinstance(value, dict | list):
        raise _invalid("id wants a string, a number, true, false or null")
    return _encode(value)


def _by_name(action: Action, values: list[Any]) -> dict[str, Any]:
    names = action.params.__struct_fields__
    if len(values) > len(names):
        raise _bad_params(
            f"{action.name} takes at most {len(names)} parameters ({_known(names)}), not {len(values)}"
        )
    return dict(zip(names, values, strict=False))


def _explained(action: Action, given: dict[str, Any], error: msgspec.ValidationError) -> str:
    """What is wrong with the parameters: the unknown one, the missing one, or the one of a wrong type."""
    fields = msgspec.structs.fields(action.params)
    names = tuple(field.name for field in fields)
    for name in given:
        if name not in names:
            return f"unknown parameter {_shown(name)} of {action.name}; it takes {_known(names)}"
    for field in fields:
        if field.required and field.name not in given:
            return f"{action.name} wants the parameter {field.name}; it takes {_known(names)}"
    what, _, place = str(error).replace("`", "").partition(" - at ")
    return f"parameter {place.removeprefix('$.')} of {action.name}: {what[:1].lower()}{what[1:]}"


def _known(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _unknown(name: str, actions: Mapping[str, Action]) -> str:
    # A long name is not a slip of the finger, and comparing it would take long.
    near = difflib.get_close_matches(name, actions, 1) if len(name) <= _SHOWN_MAX else []
    hint = f"did you mean {near[0]}?" if near else f"there are {_known(tuple(actions))}"
    return f"unknown action {_shown(name)}; {hint}"


def _shown(name: str) -> str:
    return repr(name if len(name) <= _SHOWN_MAX else name[:_SHOWN_MAX] + "...")


def _no_request() -> ApiError:
    return _invalid(f"no action named; send an object such as {_EXAMPLE}, one a line")


def _invalid(message: str) -> ApiError:
    return ApiError(ErrorCode.INVALID_REQUEST, message)


def _bad_params(message: str) -> ApiError:
    return ApiError(ErrorCode.INVALID_PARAMS, message)
