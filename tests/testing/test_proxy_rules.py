"""Cutting bytes into requests and counting them is pure: tables, no sockets."""

import random

import pytest

from reliq.testing.proxy_rules import TAIL, Requests, Rule, resp_command_end

SET = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nhello\r\n"
PING = b"*1\r\n$4\r\nPING\r\n"


@pytest.mark.parametrize(
    ("data", "start", "end"),
    [
        (PING, 0, len(PING)),
        (SET + PING, 0, len(SET)),
        (SET + PING, len(SET), len(SET + PING)),
        (SET[:-1], 0, 0),
        (SET[:-2], 0, 0),
        (b"*3\r\n$3", 0, 0),
        (b"*", 0, 0),
        (b"*3\r\n$5\r\n*2\r\n$", 0, 0),  # the body may look like anything
        (b"*0\r\n", 0, 4),
        (b"PING\r\n", 0, -1),
        (b"*x\r\n", 0, -1),
        (b"*1\r\n+OK\r\n", 0, -1),
        (b"*1\r\n$x\r\n", 0, -1),
        (b"*" + b"1" * 40, 0, -1),  # a number never ends so late
    ],
)
def test_where_a_command_ends(data: bytes, start: int, end: int) -> None:
    assert resp_command_end(data, start) == end


@pytest.mark.parametrize("seed", range(5))
def test_cut_anywhere_the_requests_are_the_same(seed: int) -> None:
    """However the network cuts a pipeline, the same whole commands come out, each byte once."""
    chance = random.Random(seed)
    commands = [
        b"*2\r\n$4\r\nECHO\r\n$%d\r\n%s\r\n" % (len(body), body)
        for body in (chance.randbytes(chance.randrange(200)) for _ in range(50))
    ]
    stream, requests, out = b"".join(commands), Requests(), []
    while stream:
        size = chance.randrange(1, 150)
        out += requests.feed(stream[:size])
        stream = stream[size:]
    assert out == commands
    assert requests.take_rest() == b""


def test_an_unfinished_command_is_kept_not_forwarded() -> None:
    requests = Requests()
    assert requests.feed(PING + SET[:10]) == [PING]
    assert requests.take_rest() == SET[:10]


def test_what_stops_being_resp_is_passed_on_as_it_comes() -> None:
    requests = Requests()
    assert requests.feed(PING + b"rubbish") == [PING, b"rubbish"]
    assert requests.feed(PING) == [PING]


@pytest.mark.parametrize(
    ("nth", "every", "limit", "fires"),
    [
        (1, False, None, [1]),
        (3, False, None, [3]),
        (1, True, None, [1, 2, 3, 4, 5, 6, 7, 8]),
        (3, True, None, [3, 6]),
        (2, True, 2, [2, 4]),
    ],
)
def test_which_of_eight_matching_requests_fire(nth: int, every: bool, limit: int | None, fires: list[int]) -> None:
    rule = Rule("drop_request", b"PING", nth=nth, every=every, limit=limit)
    requests = Requests()
    requests.feed(PING)
    assert [n for n in range(1, 9) if requests.due([rule], PING)] == fires
    assert (rule.seen, rule.fired) == (8, len(fires))


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="nth must be at least 1"):
        Rule("drop_request", b"x", nth=0)
    with pytest.raises(ValueError, match="limit must be at least 1"):
        Rule("drop_request", b"x", limit=0)


def seen(pieces: list[bytes | None], match: object) -> int:
    """How often a rule sees a match; None in `pieces` is a reply of the server."""
    rule, requests = Rule("drop_request", match), Requests()  # type: ignore[arg-type]
    for piece in pieces:
        if piece is None:
            requests.answered()
            continue
        for request in requests.feed(piece):
            requests.due([rule], request)
    return rule.seen


def both(request: bytes) -> bool:
    return b"enqueue" in request and b".DQ" in request


@pytest.mark.parametrize(
    ("pieces", "match", "times"),
    [
        ([b"POST /a"], b"POST", 1),
        ([b"PO", b"ST"], b"POST", 1),  # on the seam
        ([b"P", b"O", b"S", b"T", b"..."], b"POST", 1),  # and not again with the next piece
        ([b"POST", None, b"POST"], b"POST", 2),
        ([b"POST", b"POST"], b"POST", 2),
        ([b"PO", None, b"ST"], b"POST", 0),  # a reply between: two requests
        ([b"call enqueue ", b"default.DQ"], both, 1),
        ([b"call enqueue default", None, b"call fetch default.DQ"], both, 0),
        ([b"enqueue" + b"x" * TAIL, b".DQ"], both, 0),  # farther apart than the tail: a known limit
    ],
)
def test_other_protocols_are_matched_over_seams(pieces: list[bytes | None], match: object, times: int) -> None:
    assert seen(pieces, match) == times


def test_a_removed_rule_neither_counts_nor_fires() -> None:
    rule = Rule("drop_request", b"PING", every=True)
    rule.remove()
    assert not rule.count()
    assert repr(rule) == "<Rule drop_request b'PING' every 1, seen 0, fired 0>"
