"""yamux without sockets: two sessions back to back, and one against a peer that cheats."""

from __future__ import annotations

import asyncio
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leasehold.core.clock import VirtualClock
from leasehold.p2p.budget import Budget
from leasehold.p2p.errors import PeerError, ProtocolViolation
from leasehold.p2p.yamux import (
    ACK,
    DATA,
    FIN,
    GOAWAY,
    PING,
    RST,
    SYN,
    UPDATE,
    WINDOW,
    Session,
    Stream,
)  # fmt: skip


def frame(kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBHII", 0, kind, flags, stream, length) + body


class Pipe:
    """A wire in memory: frames reach the other session in the next loop turn, cut anywhere."""

    def __init__(self, cut: int = 1 << 20) -> None:
        self.other: Session | None = None
        self.session: Session | None = None
        self.sent: list[bytes] = []
        self.cut = cut
        self._scheduled = False

    def send(self, data: bytes) -> None:
        self.sent.append(data)
        self.schedule()

    def schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        assert self.session is not None
        self.session.settle()
        if self.other is None:
            return
        data = b"".join(self.sent)
        self.sent.clear()
        for at in range(0, len(data), self.cut):
            self.other.receive(data[at : at + self.cut])

    def congested(self) -> bool:
        return False

    async def drained(self) -> None:
        raise AssertionError("never congested")


def pair(cut: int = 1 << 20, max_inbound: int = 512) -> tuple[Session, Session, list[Stream]]:
    accepted: list[Stream] = []
    budget = Budget(64 << 20, 8 << 20)
    left, right = Pipe(cut), Pipe(cut)
    a = Session(left, budget.share(), initiator=True, accept=accepted.append, max_inbound=512)
    b = Session(
        right, budget.share(), initiator=False, accept=accepted.append, max_inbound=max_inbound
    )
    left.session, left.other, right.session, right.other = a, b, b, a
    return a, b, accepted


def alone(**limits: int) -> tuple[Session, Pipe, list[Stream]]:
    accepted: list[Stream] = []
    pipe = Pipe()
    budget = Budget(limits.get("total", 64 << 20), limits.get("share", 8 << 20))
    session = Session(
        pipe,
        budget.share(),
        initiator=False,
        accept=accepted.append,
        max_inbound=limits.get("max_inbound", 512),
    )
    pipe.session = session
    return session, pipe, accepted


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 400_000), min_size=1, max_size=6),
    st.integers(1, 50_000),
    st.integers(13, 100_000),
)
def test_every_byte_arrives_in_order_whatever_the_portions(
    sizes: list[int], portion: int, cut: int
) -> None:
    async def main() -> None:
        a, b, accepted = pair(cut)
        payloads = [bytes([i]) * size for i, size in enumerate(sizes)]
        streams = [a.open() for _ in payloads]

        async def write(stream: Stream, data: bytes) -> None:
            for at in range(0, len(data), portion):
                await stream.write(data[at : at + portion])
            await stream.write(b"", fin=True)

        async def read(index: int) -> bytes:
            while len(accepted) <= index:
                await asyncio.sleep(0)
            out = b""
            while piece := await accepted[index].read(portion):
                out += piece
            return out

        async with asyncio.TaskGroup() as tasks:
            for stream in streams:
                # One after the other opens, so that the order of acceptance is the order of sizes.
                stream.flush()
            readers = [tasks.create_task(read(i)) for i in range(len(sizes))]
            for stream, data in zip(streams, payloads, strict=True):
                tasks.create_task(write(stream, data))
        assert [r.result() for r in readers] == payloads
        for stream in [*accepted, *streams]:
            stream.close()
        await asyncio.sleep(0)
        assert (a.share.used, b.share.used) == (0, 0)
        assert not a.streams
        assert not b.streams

    VirtualClock().run(main)


def test_small_exchange_costs_three_frames() -> None:
    async def main() -> None:
        a, b, accepted = pair()
        frames = []
        for session in (a, b):
            pipe = session.wire
            real = pipe.send
            pipe.send = lambda data, real=real: (frames.append(data), real(data))  # type: ignore
        stream = a.open()
        await stream.write(b"request")
        await asyncio.sleep(0)
        assert await accepted[0].read() == b"request"
        await accepted[0].write(b"reply", fin=True)
        assert await stream.read() == b"reply"
        stream.close()
        await asyncio.sleep(0)
        assert len(frames) == 3  # request with SYN, reply with ACK and FIN, FIN

    VirtualClock().run(main)


def test_a_message_longer_than_the_window_is_let_in_whole() -> None:
    async def main() -> None:
        a, _, accepted = pair()
        stream = a.open()
        message = b"x" * (1 << 20)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stream.write(b"\x80\x80\x40" + message))
            while not accepted:
                await asyncio.sleep(0)
            assert await accepted[0].read_frame(1 << 20) == message
        with pytest.raises(ProtocolViolation) as refusal:
            await stream.write(b"\x81\x80\x40")
            await accepted[0].read_frame(1 << 20)
        assert refusal.value.code == "frame_too_large"

    VirtualClock().run(main)


def test_writing_past_the_window_waits_for_the_reader() -> None:
    async def main() -> None:
        a, _, accepted = pair()
        stream = a.open()
        writing = asyncio.ensure_future(stream.write(b"x" * (WINDOW + 1)))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not writing.done()
        assert len(accepted[0]._buffer) == WINDOW
        await accepted[0].read_exactly(WINDOW)
        await writing

    VirtualClock().run(main)


def test_more_than_was_granted_ends_the_connection() -> None:
    async def main() -> None:
        session, _, _ = alone()
        session.receive(frame(DATA, SYN, 1, WINDOW, b"x" * WINDOW))
        with pytest.raises(ProtocolViolation, match="more data"):
            session.receive(frame(DATA, 0, 1, 1, b"x"))

    VirtualClock().run(main)


def test_the_claimed_length_counts_and_not_what_has_arrived() -> None:
    async def main() -> None:
        session, _, _ = alone()
        with pytest.raises(ProtocolViolation):
            session.receive(frame(DATA, SYN, 1, WINDOW + 1))

    VirtualClock().run(main)


def test_a_connection_over_its_budget_loses_streams_and_no_bytes_are_kept() -> None:
    async def main() -> None:
        session, pipe, accepted = alone(share=WINDOW * 2, total=WINDOW * 8)
        for stream_id in (1, 3, 5):
            session.receive(frame(DATA, SYN, stream_id, WINDOW, b"x" * WINDOW))
        assert session.share.used == WINDOW * 2
        assert accepted[2].failure is not None
        assert frame(UPDATE, RST, 5, 0) in pipe.sent
        accepted[0].reset()
        assert session.share.used == WINDOW

    VirtualClock().run(main)


def test_streams_over_the_cap_are_reset_at_once() -> None:
    async def main() -> None:
        session, pipe, accepted = alone(max_inbound=2)
        for stream_id in (1, 3, 5):
            session.receive(frame(UPDATE, SYN, stream_id, 0))
        assert len(accepted) == 2
        assert pipe.sent == [frame(UPDATE, RST, 5, 0)]
        accepted[0].close()
        session.receive(frame(UPDATE, SYN, 7, 0))
        assert len(accepted) == 3

    VirtualClock().run(main)


@pytest.mark.parametrize(
    "bad",
    [
        b"\x01" + bytes(11),
        frame(9, 0, 1, 0),
        frame(UPDATE, SYN, 2, 0),
        frame(UPDATE, SYN, 0, 0),
        frame(UPDATE, SYN, 1, 0) * 2,
        frame(DATA, 0, 0, 5, b"hello"),
        frame(DATA, 0, 99, 0xFFFF_FFFF),
        frame(UPDATE, SYN, 1, 0) + frame(UPDATE, 0, 1, 0xFFFF_FFFF),
    ],
)
def test_broken_frames_are_violations(bad: bytes) -> None:
    async def main() -> None:
        session, _, _ = alone()
        with pytest.raises(ProtocolViolation):
            session.receive(bad)

    VirtualClock().run(main)


def test_late_frames_of_forgotten_streams_are_ignored() -> None:
    async def main() -> None:
        session, pipe, accepted = alone()
        session.receive(frame(DATA, SYN, 1, 3, b"abc"))
        accepted[0].close()
        pipe.sent.clear()
        session.receive(
            frame(DATA, 0, 1, 3, b"abc") + frame(UPDATE, FIN, 1, 0) + frame(UPDATE, RST, 1, 0)
        )
        session.receive(frame(GOAWAY, 0, 0, 0) + frame(PING, ACK, 0, 7))
        assert pipe.sent == []
        assert session.going_away

    VirtualClock().run(main)


def test_the_end_of_the_connection_reaches_everybody_waiting() -> None:
    async def main() -> None:
        session, _, accepted = alone()
        session.receive(frame(UPDATE, SYN, 1, 0))
        reading = asyncio.ensure_future(accepted[0].read())
        pinging = asyncio.ensure_future(session.ping())
        writing = asyncio.ensure_future(accepted[0].write(b"x" * WINDOW * 2))
        await asyncio.sleep(0)
        session.close(PeerError("connection_closed", "gone"))
        for waiting in (reading, pinging, writing):
            with pytest.raises(PeerError):
                await waiting
        assert not session.streams

    VirtualClock().run(main)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                lambda kind, flags, stream, body: frame(kind, flags, stream, len(body), body),
                st.integers(0, 4),
                st.integers(0, 15),
                st.integers(0, 6),
                st.binary(max_size=20),
            ),
        ),
        max_size=30,
    )
)
def test_arbitrary_frames_never_raise_anything_else_and_leak_nothing(frames: list[bytes]) -> None:
    async def main() -> None:
        session, _, accepted = alone(max_inbound=3)
        try:
            for data in frames:
                session.receive(data)
        except PeerError:
            pass
        assert session.inbound <= 3
        for stream in accepted:
            stream.reset()
        session.close(PeerError("connection_closed", "end"))
        assert session.share.used == 0

    VirtualClock().run(main)
