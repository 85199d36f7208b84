"""The language of the socket: both forms, every error, the specification's examples, and any rubbish."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.api.actions import ErrorCode
from registry.api.protocol import RPC_CODES, Dispatcher

# Section 7 of the JSON-RPC 2.0 specification: what is sent, what comes back.
SPECIFICATION = [
    ('{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}',
     '{"jsonrpc": "2.0", "result": 19, "id": 1}'),
    ('{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}',
     '{"jsonrpc": "2.0", "result": -19, "id": 2}'),
    ('{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
     '{"jsonrpc": "2.0", "result": 19, "id": 3}'),
    ('{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
     '{"jsonrpc": "2.0", "result": 19, "id": 4}'),
    ('{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}', None),
    ('{"jsonrpc": "2.0", "method": "foobar"}', None),
    ('{"jsonrpc": "2.0", "method": "foobar", "id": "1"}',
     '{"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "1"}'),
    ('{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]',
     '{"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": null}'),
    ('{"jsonrpc": "2.0", "method": 1, "params": "bar"}',
     '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}'),
    ('[ {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},'
     '  {"jsonrpc": "2.0", "method" ]',
     '{"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": null}'),
    ('[]', '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}'),
    ('[1]',
     '[{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}]'),
    ('[1,2,3]',
     '[{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},'
     ' {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},'
     ' {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}]'),
    ('[ {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},'
     '  {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},'
     '  {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},'
     '  {"foo": "boo"},'
     '  {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},'
     '  {"jsonrpc": "2.0", "method": "get_data", "id": "9"} ]',
     '[{"jsonrpc": "2.0", "result": 7, "id": "1"},'
     ' {"jsonrpc": "2.0", "result": 19, "id": "2"},'
     ' {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},'
     ' {"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "5"},'
     ' {"jsonrpc": "2.0", "result": ["hello", 5], "id": "9"}]'),
    ('[ {"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},'
     '  {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]} ]', None),
]  # fmt: skip


def without_details(answer: Any) -> Any:
    """An answer without `error.data`, which the specification leaves to the server."""
    if isinstance(answer, list):
        return [without_details(one) for one in answer]
    if "error" in answer:
        answer["error"].pop("data")
    return answer


@pytest.mark.parametrize(("sent", "expected"), SPECIFICATION)
async def test_every_example_of_the_json_rpc_specification_holds(sent, expected, ask):
    answers = await ask(sent.encode())
    assert [without_details(a) for a in answers] == ([json.loads(expected)] if expected else [])


async def test_notifications_are_carried_out(ask, backstage):
    await ask(b'{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}')
    backstage.gate("x").set()
    await ask(b'{"jsonrpc": "2.0", "method": "hold", "params": ["x"]}')
    assert [name for name, _ in backstage.calls] == ["update", "hold"]
    assert backstage.calls[0][1].e == 5
    assert backstage.finished == ["x"]


@pytest.mark.parametrize("id_", [1, -7, 1.5, "a", "", 'q"\n', None, True, 2**70])
async def test_a_plain_answer_gives_the_id_back(id_, ask):
    [answer] = await ask(json.dumps({"action": "sum", "a": 1, "b": 2, "id": id_}).encode())
    assert answer == {"ok": True, "data": 3, "id": id_}
    [answer] = await ask(json.dumps({"action": "refuse", "id": id_}).encode())
    assert answer["id"] == id_


async def test_a_plain_answer_without_an_id_has_none(ask):
    assert await ask(b'{"action":"get_data"}') == [{"ok": True, "data": ["hello", 5]}]


async def test_an_error_of_a_handler_is_the_answer_in_both_forms(ask):
    message, data = "no service is called x", {"known": ["y"]}
    [plain] = await ask(b'{"action":"refuse"}')
    assert plain == {
        "ok": False,
        "error": {"code": "unknown_service", "message": message, "data": data},
    }
    [rpc] = await ask(b'{"jsonrpc":"2.0","method":"refuse","id":1}')
    code = RPC_CODES[ErrorCode.UNKNOWN_SERVICE]
    error = {"code": code, "message": message, "data": {"code": "unknown_service", "data": data}}
    assert rpc == {"jsonrpc": "2.0", "error": error, "id": 1}


@pytest.mark.parametrize("action", ["break", "break_later", "unsayable"])
async def test_a_broken_handler_is_an_internal_error_that_tells_only_the_log(action, ask, caplog):
    [plain] = await ask(b'{"action":"%b","id":3}' % action.encode())
    assert plain["error"]["code"] == "internal_error"
    assert plain["id"] == 3
    [rpc] = await ask(b'{"jsonrpc":"2.0","method":"%b","id":3}' % action.encode())
    assert rpc["error"]["code"] == -32603
    assert "secret" not in json.dumps([plain, rpc])
    assert [record.exc_info is not None for record in caplog.records] == [True, True]
    assert action in caplog.records[0].getMessage()


def test_every_error_has_a_number_of_its_own_in_json_rpc():
    assert set(RPC_CODES) == set(ErrorCode)
    assert len(set(RPC_CODES.values())) == len(ErrorCode)
    assert all(-32099 <= code <= -32001 for code in list(RPC_CODES.values())[5:])


WRONG = [
    (b"nonsense", "parse_error", "not JSON"),
    (b'{"action":', "parse_error", "not JSON"),
    (b'{"action":"\\ud800"}', "parse_error", "not JSON"),
    (b'{"action":"sum","a":NaN}', "parse_error", "not JSON"),
    (b'{"action":"sum","a":1e999}', "parse_error", "out of range"),
    (b"[" * 100_000, -32700, "Parse error"),
    (b'{"action":' * 50_000, "parse_error", "recursion"),
    (b"42", "invalid_request", '{"action":"list_services"}'),
    (b"{}", "invalid_request", '{"action":"list_services"}'),
    (b'{"method":"sum","id":1}', "invalid_request", '{"action":"list_services"}'),
    (b'{"action":7}', "invalid_request", "string"),
    (b'{"action":"sum","id":[1]}', "invalid_request", "id wants"),
    (b'{"action":"subtrct"}', "unknown_action", "did you mean subtract?"),
    (b'{"action":"qqq"}', "unknown_action", "there are subtract, sum,"),
    (b'{"action":"restart","servce":"a"}', "invalid_params", "service, wait, timeout, lines"),
    (b'{"action":"restart"}', "invalid_params", "restart wants the parameter service"),
    (b'{"action":"restart","service":5}', "invalid_params", "service of restart: expected str"),
    (b'{"action":"restart","service":["a",5]}', "invalid_params", "service[1] of restart"),
    (b'{"action":"restart","service":"a","wait":1}', "invalid_params", "expected bool, got int"),
    (b'{"action":"restart","service":"a","lines":%d}' % 2**70, "invalid_params", "64 bits"),
    (b'{"action":"get_data","x":1}', "invalid_params", "it takes none"),
    (b'{"jsonrpc":"1.0","method":"sum","id":1}', -32600, "Invalid Request"),
    (b'{"jsonrpc":"2.0","method":"sum","id":[]}', -32600, "Invalid Request"),
    (b'{"jsonrpc":"2.0","method":"sum","id":true}', -32600, "Invalid Request"),
    (b'{"jsonrpc":"2.0","method":"sum","params":7,"id":1}', -32600, "Invalid Request"),
    (b'{"jsonrpc":"2.0","method":"sum","params":[1,2,3,4,5,6],"id":1}', -32602, "Invalid params"),
    (b'{"jsonrpc":"2.0","method":"sum","params":{"z":1},"id":1}', -32602, "Invalid params"),
    (b'{"jsonrpc"', -32700, "Parse error"),
    (b' \t[', -32700, "Parse error"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "words"), WRONG)
async def test_what_is_wrong_with_a_request_is_said_in_its_form(line, code, words, ask):
    [answer] = await ask(line)
    assert answer["error"]["code"] == code
    assert words in answer["error"]["message"]
    assert ("jsonrpc" in answer) == isinstance(code, int)


async def test_what_is_not_utf_8_is_said_to_be_so_in_the_words_of_whatever_msgspec(ask):
    [answer] = await ask(b'"\xff"')
    assert answer["error"]["code"] == "parse_error"
    assert "utf-8" in answer["error"]["message"].lower()  # 0.23 writes it in capitals


async def test_json_rpc_tells_our_code_and_sentence_beside_the_standard_ones(ask):
    [answer] = await ask(b'{"jsonrpc":"2.0","method":"subtrct","id":1}')
    details = answer["error"]["data"]
    assert details["code"] == "unknown_action"
    assert "did you mean subtract?" in details["message"]


async def test_an_invalid_request_gets_its_id_back_where_it_has_a_good_one(ask):
    [answer] = await ask(b'{"jsonrpc":"2.0","method":1,"id":"x"}')
    assert answer["id"] == "x"


@pytest.mark.parametrize("size", [100, 500_000])
async def test_a_long_wrong_name_is_not_repeated_at_length(size, ask):
    [answer] = await ask(json.dumps({"action": "x" * size}).encode())
    assert len(answer["error"]["message"]) < 500
    [answer] = await ask(json.dumps({"action": "sum", "x" * size: 1}).encode())
    assert len(answer["error"]["message"]) < 500


async def test_of_a_repeated_key_the_last_one_counts(ask):
    assert await ask(b'{"action":"sum","a":1,"a":2}') == [{"ok": True, "data": 2}]


async def test_a_batch_is_worked_through_in_order_and_answered_at_once(ask, backstage):
    batch = [
        {"jsonrpc": "2.0", "method": "release", "params": ["x"], "id": 1},
        {"jsonrpc": "2.0", "method": "hold", "params": {"name": "x"}, "id": 2},
        {"jsonrpc": "2.0", "method": "follow", "params": {"name": "y"}, "id": 3},
        {"jsonrpc": "2.0", "method": "break_later", "id": 4},
    ]
    [answer] = await ask(json.dumps(batch).encode())
    assert [one["id"] for one in answer] == [1, 2, 3, 4]
    assert [one.get("result") for one in answer[:2]] == ["released", "x"]
    assert "batch" in answer[2]["error"]["data"]["message"]
    assert answer[3]["error"]["code"] == -32603


async def test_a_batch_has_a_hundred_entries_at_most(ask):
    entry = {"jsonrpc": "2.0", "method": "sum", "params": [1], "id": 1}
    [answer] = await ask(json.dumps([entry] * 100).encode())
    assert len(answer) == 100
    [answer] = await ask(json.dumps([entry] * 101).encode())
    assert answer["error"]["code"] == -32600
    assert "100" in answer["error"]["data"]["message"]


async def test_raw_data_goes_out_unchanged(ask):
    [answer] = await ask(b'{"action":"raw","size":140000,"id":1}')
    assert answer == {"ok": True, "data": "x" * 139_998, "id": 1}
    [answer] = await ask(b'{"jsonrpc":"2.0","method":"raw","params":[140000],"id":1}')
    assert len(answer["result"]) == 139_998


async def test_an_answer_that_is_the_same_is_no_further_copy_and_another_is_another(dispatcher, me):
    raw, answers = {"data": msgspec.Raw(b"[1]")}, []
    dispatcher._handlers["get_data"] = lambda _params, _peer: raw["data"]
    for data in (b"[1]", None, b"[1]", b"[2]"):
        raw["data"] = msgspec.Raw(data) if data else raw["data"]
        answers.append(dispatcher.answer(b'{"action":"get_data"}', me).line)
        numbered = dispatcher.answer(b'{"action":"get_data","id":7}', me).line
        assert json.loads(numbered) == {**json.loads(answers[-1]), "id": 7}
    assert answers[0] is answers[1] is not answers[2]
    assert [json.loads(line)["data"] for line in answers] == [[1], [1], [1], [2]]


@pytest.mark.parametrize("action", ["follow", "follow_later"])
async def test_a_plain_stream_is_a_line_of_the_usual_shape_a_page(action, ask, backstage):
    for page in ([1], [2], None):
        backstage.queue("a").put_nowait(page)
    answers = await ask(b'{"action":"%b","name":"a","id":9}' % action.encode())
    assert answers == [{"ok": True, "data": [n], "id": 9} for n in (1, 2)]
    assert backstage.closed == ["a"]


async def test_a_json_rpc_stream_is_a_result_and_then_notifications(ask, backstage):
    for page in ([1], [2], None):
        backstage.queue("a").put_nowait(page)
    first, second = await ask(b'{"jsonrpc":"2.0","method":"follow","params":["a"],"id":9}')
    assert first == {"jsonrpc": "2.0", "result": [1], "id": 9}
    assert second == {"jsonrpc": "2.0", "method": "follow", "params": {"id": 9, "data": [2]}}


async def test_a_stream_without_pages_answers_with_an_empty_one(ask):
    assert await ask(b'{"action":"follow_nothing"}') == [{"ok": True, "data": []}]


async def test_an_error_within_a_stream_ends_it_with_an_answer_of_its_form(ask):
    answers = await ask(b'{"action":"follow_and_refuse","size":1,"id":1}')
    error = {"code": "no_logs", "message": "no more"}
    assert answers == [{"ok": True, "data": [0], "id": 1}, {"ok": False, "error": error, "id": 1}]
    rpc = b'{"jsonrpc":"2.0","method":"follow_and_refuse","params":[%d],"id":1}'
    [_, late] = await ask(rpc % 1)
    assert late["params"]["error"]["data"]["code"] == "no_logs"
    [only] = await ask(rpc % 0)
    assert (only["id"], only["error"]["data"]["code"]) == (1, "no_logs")


async def test_a_stream_asked_for_by_a_notification_is_not_begun(ask, backstage):
    assert await ask(b'{"jsonrpc":"2.0","method":"follow_later","params":["a"]}') == []
    assert await ask(b'{"jsonrpc":"2.0","method":"flood","params":[1]}') == []
    assert backstage.pulled == 0


def test_a_table_with_a_handler_missing_is_refused(backstage):
    from registry.api.access import Access
    from registry.api.actions import ACTIONS

    with pytest.raises(ValueError, match="events"):
        Dispatcher({"events": ACTIONS["events"]}, {}, Access(0, lambda pid: None))


def test_a_handler_that_returns_its_data_needs_no_loop(dispatcher, me):
    assert dispatcher.answer(b'{"action":"sum","a":1}', me).line == b'{"ok":true,"data":1}\n'


# Rubbish.

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["action", "id", "jsonrpc", "method", "params", "a", "service"]) | st.text(max_size=4),
        inner, max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip

REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(["sum", "restart", "refuse", "break", "nope"]) | JSON_VALUES,
        "method": st.sampled_from(["sum", "subtract", "refuse", "break_later", "nope"]) | JSON_VALUES,
        "jsonrpc": st.just("2.0") | JSON_VALUES,
        "params": JSON_VALUES,
        "id": JSON_VALUES,
        "a": JSON_VALUES,
        "service": JSON_VALUES,
    },
)  # fmt: skip

PLAIN_CODES = {"parse_error", "invalid_request", "unknown_action", "invalid_params"} | {
    "unknown_service", "internal_error",
}  # fmt: skip
RPC_NUMBERS = {-32700, -32600, -32601, -32602, -32603, RPC_CODES[ErrorCode.UNKNOWN_SERVICE]}

fuzz = settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def check_answer(answer: Any) -> None:
    if isinstance(answer, list):
        assert answer
        for one in answer:
            check_answer(one)
    elif "jsonrpc" in answer:
        assert answer["jsonrpc"] == "2.0"
        assert ("result" in answer) != ("error" in answer)
        assert "error" not in answer or answer["error"]["code"] in RPC_NUMBERS
        assert "id" in answer
    else:
        assert answer["ok"] == ("data" in answer)
        assert answer["ok"] or answer["error"]["code"] in PLAIN_CODES


def is_notification(value: Any) -> bool:
    """Whether nothing is to be answered, by the words of the specification."""
    if isinstance(value, list):
        return 0 < len(value) <= 100 and all(map(is_notification, value))
    return (
        isinstance(value, dict)
        and value.get("jsonrpc") == "2.0"
        and isinstance(value.get("method"), str)
        and isinstance(value.get("params", {}), dict | list)
        and "id" not in value
    )


def run(ask: Any, line: bytes) -> list[Any]:
    return asyncio.run(ask(line))


@fuzz
@given(line=st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"")))
def test_any_bytes_get_one_answer(line, ask):
    [answer] = run(ask, line)
    check_answer(answer)


@fuzz
@given(value=JSON_VALUES | REQUESTS | st.lists(REQUESTS, max_size=4))
def test_any_json_gets_one_answer_unless_it_is_a_notification(value, ask):
    answers = run(ask, json.dumps(value).encode())
    assert len(answers) == (0 if is_notification(value) else 1)
    for answer in answers:
        check_answer(answer)


@fuzz
@given(value=REQUESTS | st.lists(REQUESTS, max_size=2), data=st.data())
def test_a_damaged_request_gets_an_answer_or_is_none(value, data, ask):
    line = bytearray(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    position = data.draw(st.integers(0, len(line) - 1))
    line[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=2))
    for answer in run(ask, bytes(line).replace(b"\n", b" ")):
        check_answer(answer)
