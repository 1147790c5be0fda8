#!/usr/bin/env python3
"""Random requests over NBD on several connections at once, checked against a model of the volume.

Writes, zeroes, trims, reads, flushes and questions for extents, of all lengths from one sector to a
few MiB, most of them in one small region so that they meet, some with FUA, NO_HOLE and FAST_ZERO.
Every lane is a connection of its own with its own shape of replies. A request starts as soon as none
under way touches the same sectors in a way that would leave the result open; which connection carries
it is drawn anew each time, so what one connection has been acknowledged another must read at once.

Prints "N requests" every 500, and ends with status 1 at the first difference, naming it.
Usage: exerciser.py URI SEED REQUESTS
"""
import os
import random
import sys

import nbd

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../../storage/attach/nbd/tests"))
import rawnbd  # noqa: E402

SECTOR = 512
BLOCK = 4096
MIB = 1 << 20
HOLE_AND_ZERO = 3
DEPTH = 12


class Lane:
    """A connection through libnbd."""

    def __init__(self, uri, structured):
        self.handle = nbd.NBD()
        self.handle.set_request_structured_replies(structured)
        if structured:
            self.handle.add_meta_context("base:allocation")
        self.handle.connect_uri(uri)
        assert self.handle.can_multi_conn()
        assert self.handle.get_structured_replies_negotiated() == structured
        self.structured = structured
        self.pending = {}

    def start(self, request):
        h, kind = self.handle, request.kind
        if kind == "read":
            request.buffer = nbd.Buffer(request.length)
            number = h.aio_pread(request.buffer, request.offset)
        elif kind == "write":
            request.buffer = nbd.Buffer.from_bytearray(bytearray(request.data))
            number = h.aio_pwrite(request.buffer, request.offset, flags=request.flags)
        elif kind == "zero":
            number = h.aio_zero(request.length, request.offset, flags=request.flags)
        elif kind == "trim":
            number = h.aio_trim(request.length, request.offset, flags=request.flags)
        elif kind == "flush":
            number = h.aio_flush()
        else:
            def take(_context, _offset, entries, _error):
                request.extents.extend(zip(entries[::2], entries[1::2]))
            number = h.aio_block_status(request.length, request.offset, take)
        self.pending[number] = request

    def finished(self):
        """Requests that have been answered; raises the error of one that failed."""
        done = []
        for number in list(self.pending):
            if self.handle.aio_command_completed(number):
                done.append(self.pending.pop(number))
        return done


class Request:
    def __init__(self, kind, offset, length, flags=0, data=b""):
        self.kind, self.offset, self.length, self.flags, self.data = kind, offset, length, flags, data
        self.extents = []
        self.buffer = None
        self.writes = kind in ("write", "zero", "trim")

    def meets(self, other):
        if self.kind == "flush" or other.kind == "flush":
            return False
        near = self.offset < other.offset + other.length and other.offset < self.offset + self.length
        return near and (self.writes or other.writes)

    def __str__(self):
        return f"{self.kind} of {self.length} at {self.offset} with flags {self.flags}"


class Exerciser:
    def __init__(self, uri, seed):
        self.random = random.Random(seed)
        self.lanes = [Lane(uri, structured) for structured in (False, True, True, False)]
        size = self.lanes[0].handle.get_size()
        self.span = min(size, 24 * MIB)
        self.lanes[0].handle.zero(self.span, 0)
        self.model = bytearray(self.span)
        self.raw = rawnbd.Raw(rawnbd.Target(uri)).go(extended=True, context=True)
        self.under_way = []
        self.count = {}

    def draw(self):
        r = self.random
        kind = r.choices(("write", "read", "zero", "trim", "flush", "extents"),
                         (40, 30, 8, 8, 4, 10))[0]
        if kind == "flush":
            return Request(kind, 0, 0)
        unit = r.choice((SECTOR, SECTOR, BLOCK, BLOCK, BLOCK, 64 * 1024))
        most = r.choices((8, 64, 256), (80, 17, 3))[0]
        length = min(unit * r.randint(1, most), 3 * MIB)
        # Two in three within 2 MiB that straddle the border of a chunk, so that they meet.
        low, high = r.choice(((3 * MIB, 5 * MIB), (3 * MIB, 5 * MIB), (0, self.span)))
        offset = min(low + r.randrange((high - low) // unit) * unit, self.span - length)
        offset -= offset % SECTOR
        flags, data = 0, b""
        if kind in ("write", "zero", "trim") and r.random() < 0.2:
            flags |= nbd.CMD_FLAG_FUA
        if kind == "zero" and r.random() < 0.4:
            flags |= nbd.CMD_FLAG_NO_HOLE
        if kind == "zero" and offset % BLOCK == 0 and length % BLOCK == 0 and r.random() < 0.2:
            flags = nbd.CMD_FLAG_FAST_ZERO
        if kind == "write":
            data = r.randbytes(length) if r.random() < 0.9 else bytes(length)
        return Request(kind, offset, length, flags, data)

    def expect(self, offset, length, got, what):
        want = self.model[offset:offset + length]
        if got == want:
            return
        at = next(n for n in range(length) if got[n] != want[n])
        raise AssertionError(f"{what}: at {offset + at} it has {got[at:at + 16].hex()}..., "
                             f"written last was {want[at:at + 16].hex()}...")

    def finish(self, request):
        offset, length = request.offset, request.length
        self.count[request.kind] = self.count.get(request.kind, 0) + 1
        if request.kind == "write":
            self.model[offset:offset + length] = request.data
        elif request.kind == "zero":
            self.model[offset:offset + length] = bytes(length)
        elif request.kind == "trim":
            # Whole blocks read as zeros from now on; of blocks trimmed in part the data stays.
            low, high = -(-offset // BLOCK) * BLOCK, (offset + length) // BLOCK * BLOCK
            if low < high:
                self.model[low:high] = bytes(high - low)
        elif request.kind == "read":
            self.expect(offset, length, request.buffer.to_bytearray(), str(request))
        elif request.kind == "extents":
            self.check_extents(request)

    def check_extents(self, request):
        at, end = request.offset, request.offset + request.length
        assert request.extents, f"{request}: no extents"
        for length, state in request.extents:
            assert length > 0, f"{request}: an empty extent"
            stop = min(at + length, end)
            hole = state == HOLE_AND_ZERO
            assert not hole or not any(self.model[at:stop]), f"{request}: data in a hole at {at}"
            at = stop

    def collect(self, wait):
        """Takes answers; waits for at least one if there is none."""
        while True:
            done = [r for lane in self.lanes for r in self.answered(lane)]
            for request in done:
                self.under_way.remove(request)
                self.finish(request)
            if done or not wait:
                return
            for lane in self.lanes:
                if lane.pending:
                    lane.handle.poll(2)

    @staticmethod
    def answered(lane):
        lane.handle.poll(0)
        return lane.finished()

    def drain(self):
        while self.under_way:
            self.collect(True)

    def extended(self, request):
        """One request with extended headers, by hand, alone."""
        kinds = {"read": 0, "write": 1, "flush": 3, "trim": 4, "zero": 6, "extents": 7}
        flags = request.flags | (32 if request.kind == "write" else 0)
        error, answer = self.raw.ask(kinds[request.kind], request.offset, request.length, flags,
                                     payload=request.data)
        assert error == 0, f"{request} with extended headers: error {error}, {answer}"
        if request.kind == "read":
            request.buffer = nbd.Buffer.from_bytearray(bytearray(answer))
        if request.kind == "extents":
            request.extents = answer
        self.finish(request)

    def run(self, requests):
        for number in range(1, requests + 1):
            request = self.draw()
            while len(self.under_way) >= DEPTH or any(request.meets(o) for o in self.under_way):
                self.collect(True)
            if self.random.random() < 0.05:
                self.extended(request)
            else:
                lane = self.random.choice(self.lanes)
                if request.kind == "extents" and not lane.structured:
                    lane = self.lanes[1]
                lane.start(request)
                self.under_way.append(request)
            if number % 8 == 0:
                self.collect(False)
            if number % 500 == 0:
                print(f"{number} requests", flush=True)
        self.drain()

    def compare(self):
        """The whole region, through every connection."""
        for lane in self.lanes:
            for offset in range(0, self.span, 4 * MIB):
                length = min(4 * MIB, self.span - offset)
                got = lane.handle.pread(length, offset)
                self.expect(offset, length, got, f"the whole, read at {offset}")
        for lane in self.lanes:
            lane.handle.shutdown()


def main():
    uri, seed, requests = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    exerciser = Exerciser(uri, seed)
    try:
        exerciser.run(requests)
        exerciser.compare()
    except AssertionError as problem:
        print(f"seed {seed}: {problem}")
        sys.exit(1)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(exerciser.count.items()))
    print(f"seed {seed}: no difference after {told}")


if __name__ == "__main__":
    main()
