"""What has arrived of a call: when a thread can take it, which must be neither too early nor never."""

from __future__ import annotations

import itertools

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser
from hypothesis import given
from hypothesis import strategies as st

from gateway.arriving import MAX_CHUNKS, MAX_HEAD, MAX_LINE, Arriving
from gateway.reading import MAX_BODY

HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\n"
WHOLE = [
    pytest.param(b"GET /x HTTP/1.1\r\n\r\n", id="no headers"),
    pytest.param(b"\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n", id="an empty line before it"),
    pytest.param(HEAD + b"Content-Length: 14\r\n\r\ncustomer=cus_1", id="length"),
    pytest.param(HEAD + b"content-length:0014  \r\n\r\ncustomer=cus_1", id="odd length"),
    pytest.param(HEAD + b"Content-Length: 0\r\n\r\n", id="empty body"),
    pytest.param(HEAD + b"X: content-length: 9\r\n\r\n", id="length in another header"),
    pytest.param(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n8\r\ncustomer\r\n6;x=1\r\n=cus_1\r\n0\r\n\r\n", id="chunks"
    ),
    pytest.param(HEAD + b"TRANSFER-ENCODING: Chunked\r\n\r\nE\r\ncustomer=cus_1\r\n0\r\nX: y\r\n\r\n", id="trailers"),
    pytest.param(
        HEAD + b"Transfer-Encoding: identity, chunked\r\n\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n", id="ends within a chunk"
    ),
]


def cut(data: bytes, *places: int) -> list[bytes]:
    places = (0, *sorted(places), len(data))
    return [data[a:b] for a, b in itertools.pairwise(places)]


def fed(pieces: list[bytes]) -> tuple[Arriving, list[bool]]:
    arriving, said = Arriving(), []
    for piece in pieces:
        arriving.data += piece
        said.append(arriving.ready())
    return arriving, said


def parsed(data: bytes) -> tuple[bytes, bytes]:
    """Read a call as gunicorn does; return its body and what is behind it."""
    parser = get_parser(Config(), iter([data]), ("127.0.0.1", 1))
    body: bytes = next(parser).body.read()
    return body, parser.unreader.take_buffered()


@pytest.mark.parametrize("data", WHOLE)
def test_call_is_ready_with_its_last_byte_and_not_before(data: bytes) -> None:
    arriving, said = fed([data[i : i + 1] for i in range(len(data))])
    assert said == [False] * (len(data) - 1) + [True]
    assert arriving.whole
    assert arriving.need == len(data)


@pytest.mark.parametrize("data", WHOLE)
def test_gunicorn_reads_what_was_found_to_be_whole_and_leaves_the_next_call(data: bytes) -> None:
    arriving, _ = fed([data + b"GET /next"])
    assert arriving.whole
    body, rest = parsed(bytes(arriving.data))
    assert rest == b"GET /next"
    assert arriving.need == len(data)
    assert len(body) in {0, 4, 14}


@given(st.sampled_from([param.values[0] for param in WHOLE]), st.data())
def test_where_it_is_cut_does_not_matter(data: bytes, draw: st.DataObject) -> None:
    places = draw.draw(st.lists(st.integers(0, len(data)), max_size=5))
    arriving, said = fed(cut(data, *places))
    assert said[-1]
    assert arriving.whole
    assert arriving.need == len(data)


REFUSED = [
    pytest.param(b"GET /x HTTP/1.1\nHost: a\n\n", id="line feeds alone"),
    pytest.param(b"\nGET", id="a line feed first"),
    pytest.param(b"GET /" + b"x" * MAX_LINE, id="endless line"),
    pytest.param(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_HEAD // 6), id="endless head"),
    pytest.param(HEAD + b"Content-Length: %d\r\n\r\n" % (MAX_BODY + 1), id="a body too long"),
    pytest.param(HEAD + b"Content-Length: 1234567890123\r\n\r\n", id="far too long"),
    pytest.param(HEAD + b"Content-Length: abc\r\n\r\n", id="no length"),
    pytest.param(HEAD + b"Content-Length: 14\r\nContent-Length: 14\r\n\r\n", id="two lengths"),
    pytest.param(HEAD + b"Content-Length: 14\r\nTransfer-Encoding: chunked\r\n\r\n", id="length and chunks"),
    pytest.param(HEAD + b"Transfer-Encoding: banana\r\n\r\n", id="no coding"),
    pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", id="no size of a chunk"),
    pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 300, id="endless size of a chunk"),
    pytest.param(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"%x\r\n%b\r\n" % (MAX_BODY, b"a" * MAX_BODY)) * 3,
        id="endless chunks",
    ),
    pytest.param(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * (MAX_CHUNKS + 1), id="chunks without number"
    ),
    pytest.param(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * (MAX_HEAD // 6 + 1), id="endless trailers"
    ),
]


@pytest.mark.parametrize("data", REFUSED)
def test_call_that_will_be_refused_anyhow_is_ready_at_once(data: bytes) -> None:
    _, said = fed([data])
    assert said == [True]


class Counting(bytearray):
    """Counts how many bytes are searched."""

    seen = 0

    def find(self, sub: object, start: int = 0, *more: int) -> int:  # type: ignore[override]
        found = super().find(sub, start, *more)  # type: ignore[arg-type]
        self.seen += max(0, (len(self) if found < 0 else found) - start)
        return found


@pytest.mark.parametrize("before", [b"", HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"], ids=["head", "trailers"])
def test_head_or_trailers_in_single_bytes_are_searched_once(before: bytes) -> None:
    """The poller reads for all; what trickles in must not cost it more than what comes at once."""
    arriving = Arriving()
    arriving.data = data = Counting()
    size = MAX_LINE - 10
    for byte in before + b"x" * (size - len(before)):
        data.append(byte)
        assert not arriving.ready()
    assert data.seen <= 8 * size


@pytest.mark.parametrize(
    ("headers", "awaits"),
    [
        (b"Expect: 100-continue\r\nContent-Length: 3\r\n", True),
        (b"Expect: 100-Continue\r\nTransfer-Encoding: chunked\r\n", True),
        (b"Expect: 100-continue\r\n", False),
        (b"Content-Length: 3\r\n", False),
    ],
)
def test_client_that_holds_its_body_back_is_known(headers: bytes, *, awaits: bool) -> None:
    arriving, _ = fed([HEAD + headers + b"\r\n"])
    assert arriving.awaits_continue is awaits
