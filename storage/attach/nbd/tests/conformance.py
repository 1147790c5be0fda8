#!/usr/bin/python3 -B
"""Conformance of an NBD server, one check per feature of the protocol.

    conformance.py URI [--certs DIR [--tls required|offered] [--client-cert]]

The export must be writable, at least 64 MiB long, and its content is lost. Checks that need invalid
or 64-bit requests speak the protocol over a socket of their own; the others use libnbd (Debian
package python3-libnbd). With --certs the checks of TLS run instead; DIR holds ca-cert.pem and,
with --client-cert, client-cert.pem and client-key.pem.
"""

import argparse
import os
import re
import ssl
import struct
import sys
import traceback

try:
    import nbd
except ImportError:
    sys.exit("python3-libnbd is missing: install the Debian package of that name")

from rawnbd import (  # noqa: E402 (stands beside this file)
    ACK, CACHE, DF, DISC, EINVAL, ENOSPC, EOVERFLOW, ERR_EXT, ERR_INVALID, ERR_POLICY, ERR_TLS,
    ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP, FAST_ZERO, FLUSH, FUA, INFO, META, MIB, NO_HOLE, OPT,
    PAYLOAD_LEN, READ, REQ_ONE, SERVER, STATUS, TIMEOUT, TRIM, WRITE, ZEROES, Raw, Target, pattern,
    same)

CHECKS = []
TLS_CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def tls_check(function):
    TLS_CHECKS.append(function)
    return function


def lib(target, structured=True, context=True, strict=True):
    handle = nbd.NBD()
    handle.set_request_structured_replies(structured)
    if context:
        handle.add_meta_context("base:allocation")
    if not strict:
        handle.set_strict_mode(0)
    handle.connect_uri(target.uri)
    return handle


def fails(errno, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except nbd.Error as error:
        same(error.errno, errno, "errno")
        return
    raise AssertionError(f"{function.__name__} succeeded, errno {errno} expected")


# --- Handshake -------------------------------------------------------------------------------


@check
def fixed_newstyle_no_zeroes(t):
    raw = Raw(t)
    raw.option_send(OPT["EXPORT_NAME"], t.name.encode())
    size, flags = struct.unpack(">QH", raw.recv(10))
    assert size >= 64 * MIB and flags & 1
    raw.alive()
    raw = Raw(t, flags=1)
    raw.option_send(OPT["EXPORT_NAME"], t.name.encode())
    same(raw.recv(134)[10:], bytes(124), "padding without NO_ZEROES")
    raw.alive()


@check
def unknown_client_flags_end_it(t):
    assert Raw(t, flags=3 | 1 << 9).closed()


@check
def option_list(t):
    raw = Raw(t)
    replies = raw.option(OPT["LIST"])
    same(replies[-1], (ACK, b""))
    names = []
    for kind, data in replies[:-1]:
        same(kind, SERVER)
        length = struct.unpack(">I", data[:4])[0]
        names.append(data[4:4 + length].decode())
    assert t.name in names, names
    same(raw.option(OPT["LIST"], b"x")[-1][0], ERR_INVALID, "LIST with data")


@check
def option_info_and_go(t):
    raw = Raw(t)
    replies = raw.named(OPT["INFO"], infos=[1, 2, 3])
    same(replies[-1][0], ACK)
    found = {struct.unpack(">H", data[:2])[0]: data[2:] for kind, data in replies[:-1]}
    same(found[1].decode(), t.name, "INFO_NAME")
    low, preferred, high = struct.unpack(">III", found[3])
    assert low in (1, 512) and preferred == 4096 and high >= 32 * MIB, (low, preferred, high)
    again = raw.named(OPT["GO"], infos=[1, 2, 3])
    same(again, replies, "GO after INFO")
    raw.alive()


@check
def unknown_export_is_explained(t):
    raw = Raw(t)
    kind, text = raw.named(OPT["GO"], name="no-such-volume")[-1]
    same(kind, ERR_UNKNOWN)
    assert b"no-such-volume" in text, text
    raw.go().alive()
    raw = Raw(t)
    raw.option_send(OPT["EXPORT_NAME"], b"no-such-volume")
    assert raw.closed()


@check
def malformed_options_are_survived(t):
    raw = Raw(t)
    same(raw.option(4242, b"whatever")[-1][0], ERR_UNSUP)
    same(raw.option(OPT["GO"], b"\0\0\0\xffxx\0\0")[-1][0], ERR_INVALID)
    same(raw.option(OPT["GO"], b"")[-1][0], ERR_INVALID)
    same(raw.option(OPT["INFO"], struct.pack(">I", 2) + b"\xff\xfe\0\0")[-1][0], ERR_INVALID)
    same(raw.option(OPT["INFO"], bytes(100_000))[-1][0], ERR_TOO_BIG)
    same(raw.option(OPT["STRUCTURED"], b"x")[-1][0], ERR_INVALID)
    same(raw.option(OPT["SET_META"], b"\0\0")[-1][0], ERR_INVALID)
    raw.go().alive()


@check
def huge_option_ends_it(t):
    raw = Raw(t)
    raw.send(struct.pack(">QII", 0x49484156454F5054, OPT["GO"], 0xFFFFFFFF))
    assert raw.closed()


@check
def bad_option_magic_ends_it(t):
    raw = Raw(t)
    raw.send(struct.pack(">QII", 0x1234, OPT["LIST"], 0))
    assert raw.closed()


@check
def option_abort(t):
    raw = Raw(t)
    same(raw.option(OPT["ABORT"]), [(ACK, b"")])
    assert raw.closed()


@check
def meta_context_options(t):
    raw = Raw(t)
    same(raw.meta(OPT["SET_META"], ["base:allocation"])[-1][0], ERR_INVALID, "before structured")
    same(raw.option(OPT["STRUCTURED"]), [(ACK, b"")])
    for queries in ([], ["base:"], ["base:allocation", "x-other:thing"]):
        replies = raw.meta(OPT["LIST_META"], queries)
        same([(k, d[4:]) for k, d in replies], [(META, b"base:allocation"), (ACK, b"")], queries)
    same(raw.meta(OPT["LIST_META"], ["x-other:"]), [(ACK, b"")])
    same(raw.meta(OPT["SET_META"], ["base:"]), [(ACK, b"")])
    same(raw.meta(OPT["SET_META"], []), [(ACK, b"")])
    same(raw.meta(OPT["SET_META"], ["base:allocation"], name="no-such")[-1][0], ERR_UNKNOWN)
    same([k for k, _ in raw.meta(OPT["SET_META"], ["base:allocation"])], [META, ACK])
    # A later failure takes the selection back.
    same(raw.option(OPT["SET_META"], b"")[-1][0], ERR_INVALID)
    raw.structured = True
    same(raw.named(OPT["GO"])[-1][0], ACK)
    same(raw.ask(STATUS, 0, 4096)[0], EINVAL)
    raw.structured = True
    raw.alive()


@check
def starttls_is_refused_or_offered(t):
    kind = Raw(t).option(OPT["STARTTLS"])[-1][0]
    assert kind in (ACK, ERR_POLICY, ERR_UNSUP), kind
    same(Raw(t).option(OPT["STARTTLS"], b"x")[-1][0], ERR_INVALID)


@check
def extended_headers_take_precedence(t):
    raw = Raw(t)
    same(raw.option(OPT["EXTENDED"], b"x")[-1][0], ERR_INVALID)
    same(raw.option(OPT["EXTENDED"]), [(ACK, b"")])
    same(raw.option(OPT["STRUCTURED"])[-1][0], ERR_EXT)
    raw.option_send(OPT["EXPORT_NAME"], t.name.encode())
    assert raw.closed(), "EXPORT_NAME after extended headers"


# --- Transmission flags ----------------------------------------------------------------------


@check
def transmission_flags(t):
    h = lib(t)
    got = {name: getattr(h, name)() for name in (
        "can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_cache", "can_df",
        "can_multi_conn", "is_read_only", "is_rotational", "get_structured_replies_negotiated")}
    want = dict.fromkeys(got, True) | {"is_read_only": False, "is_rotational": False}
    same(got, want)
    same(h.can_meta_context("base:allocation"), True)
    same(lib(t, structured=False, context=False).can_df(), False, "DF without structured replies")
    same(Raw(t).go(extended=True, context=True).transmission >> 12 & 1, 1, "BLOCK_STATUS_PAYLOAD")
    same(Raw(t).go(extended=True).transmission >> 12 & 1, 0, "BLOCK_STATUS_PAYLOAD, no context")


# --- Commands --------------------------------------------------------------------------------


@check
def read_and_write(t):
    for structured in (False, True):
        h = lib(t, structured, structured)
        for offset, length in ((0, 512), (512, 512), (3584, 1024), (4096, 4096), (1536, 123 * 512),
                               (MIB - 512, 2 * MIB + 1024), (7 * MIB, 32 * MIB)):
            data = pattern(offset + structured, length)
            h.pwrite(data, offset)
            assert h.pread(length, offset) == data, (offset, length)


@check
def sub_block_writes_leave_neighbours(t):
    h = lib(t)
    h.pwrite(b"\xaa" * 8192, 0)
    h.pwrite(b"\xbb" * 512, 3584)
    h.pwrite(b"\xcc" * 1024, 4608)
    want = b"\xaa" * 3584 + b"\xbb" * 512 + b"\xaa" * 512 + b"\xcc" * 1024 + b"\xaa" * 2560
    assert h.pread(8192, 0) == want


@check
def bytes_where_sizes_were_not_negotiated(t):
    raw = Raw(t).go(sizes=False)
    same(raw.ask(WRITE, 0, 8, payload=b"01234567"), (0, b""))
    same(raw.ask(WRITE, 3, 2, payload=b"xy"), (0, b""))
    same(raw.ask(READ, 1, 6, data=6), (0, b"12xy56"))


@check
def structured_reads_and_df(t):
    h = lib(t)
    data = pattern(5, 256 * 1024)
    h.pwrite(data, 0)
    seen = []
    h.pread_structured(len(data), 0, lambda *a: seen.append((a[1], len(a[0]))), nbd.CMD_FLAG_DF)
    same(seen, [(0, len(data))])
    raw = Raw(t).go(structured=True)
    same(raw.ask(READ, 0, 4096, DF), (0, data[:4096]))
    same(raw.ask(READ, 0, 64 * MIB, DF)[0], EOVERFLOW)
    raw.alive()


@check
def df_without_structured_replies(t):
    raw = Raw(t).go()
    same(raw.ask(READ, 0, 4096, DF)[0], EINVAL)
    raw.alive()


@check
def fua_and_flush(t):
    h = lib(t)
    h.pwrite(b"f" * 4096, 0, nbd.CMD_FLAG_FUA)
    h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
    h.zero(4096, 16384, nbd.CMD_FLAG_FUA)
    h.flush()
    assert h.pread(4096, 0) == b"f" * 4096
    # Existing clients set FUA everywhere, and servers have to bear with it.
    raw = Raw(t).go()
    for kind in (READ, FLUSH, CACHE):
        same(raw.ask(kind, 0, 0 if kind == FLUSH else 4096, FUA, data=4096 * (kind == READ))[0], 0)


@check
def trim(t):
    h = lib(t)
    h.pwrite(b"t" * MIB, 0)
    h.trim(512 * 1024, 0)
    h.trim(100 * 512, 600 * 1024 + 512)
    h.trim(512, MIB - 512)
    assert h.pread(4096, 512 * 1024) == b"t" * 4096
    assert h.pread(512, 600 * 1024) == b"t" * 512


@check
def write_zeroes(t):
    h = lib(t)
    for flags in (0, nbd.CMD_FLAG_NO_HOLE):
        for offset, length in ((0, 4096), (512, 512), (1536, 4096), (3584, 3 * MIB + 1024)):
            h.pwrite(b"z" * (4 * MIB), 0)
            h.zero(length, offset, flags)
            want = b"z" * offset + bytes(length) + b"z" * (4 * MIB - offset - length)
            assert h.pread(4 * MIB, 0) == want, (flags, offset, length)


@check
def no_hole_stays_mapped(t):
    h = lib(t)
    h.zero(MIB, 0)
    h.zero(64 * 1024, 128 * 1024, nbd.CMD_FLAG_NO_HOLE)
    same(status(h, 256 * 1024, 0), [(131072, 3), (65536, 0), (65536, 3)])


@check
def fast_zero(t):
    h = lib(t)
    h.pwrite(b"q" * MIB, 0)
    h.zero(MIB, 0, nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(MIB, 0) == bytes(MIB)
    # Less than a block is no faster than a write; the data stay as they are.
    h.pwrite(b"q" * 4096, 0)
    fails("ENOTSUP", h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(4096, 0) == b"q" * 4096


@check
def cache(t):
    h = lib(t, strict=False)
    h.cache(MIB, 0)
    fails("EINVAL", h.cache, 4096, h.get_size())


def status(h, length, offset, flags=0):
    runs = []

    def take(_name, _offset, entries, _error):
        runs.extend(zip(entries[::2], entries[1::2]))

    h.block_status(length, offset, take, flags)
    return runs


@check
def block_status(t):
    h = lib(t)
    h.zero(8 * MIB, 0)
    same(status(h, 8 * MIB, 0), [(8 * MIB, 3)])
    h.pwrite(b"s" * 8192, 4096)
    h.pwrite(b"s" * 4096, 5 * MIB)
    want = [(4096, 3), (8192, 0), (5 * MIB - 12288, 3), (4096, 0), (3 * MIB - 4096, 3)]
    same(status(h, 8 * MIB, 0), want)
    same(status(h, 8 * MIB, 4096, nbd.CMD_FLAG_REQ_ONE), [(8192, 0)])
    same(status(h, 512, 8192 + 512, nbd.CMD_FLAG_REQ_ONE), [(512, 0)])
    h.trim(4096, 8192)
    same(status(h, 16384, 0)[:2], [(4096, 3), (4096, 0)])


@check
def block_status_without_context(t):
    raw = Raw(t).go(structured=True)
    same(raw.ask(STATUS, 0, 4096)[0], EINVAL)
    raw.alive()
    raw = Raw(t).go()
    same(raw.ask(STATUS, 0, 4096)[0], EINVAL)
    raw.alive()


@check
def multi_conn(t):
    a, b = lib(t), lib(t)
    for n in range(20):
        a.pwrite(bytes([n]) * 4096, n * 4096)
        a.flush()
        assert b.pread(4096, n * 4096) == bytes([n]) * 4096


@check
def multi_conn_flush_elsewhere(t):
    # What one connection wrote, another flushes and a third reads, whatever shape their replies have.
    a, b, c = lib(t), lib(t, structured=False, context=False), Raw(t).go(extended=True, context=True)
    for n in range(20):
        data = pattern(100 + n, 3 * 4096 + 512)
        a.pwrite(data, n * 16384 + 512)
        b.flush()
        same(c.ask(READ, n * 16384 + 512, len(data)), (0, data))
        b.trim(4096, n * 16384 + 4096)
        same(c.ask(FLUSH)[0], 0)
        assert a.pread(4096, n * 16384 + 4096) == bytes(4096)
        same(c.ask(STATUS, n * 16384 + 4096, 4096), (0, [(4096, 3)]))


@check
def contexts_that_are_not_there(t):
    # Clients ask for them and go on without: the answer names none, and is no error.
    for names in (["qemu:dirty-bitmap:b0"], ["qemu:allocation-depth", "base:nonsense", "x:"]):
        raw = Raw(t)
        same(raw.option(OPT["STRUCTURED"])[-1][0], ACK)
        same([kind for kind, _ in raw.meta(OPT["SET_META"], names)], [ACK], names)
        same([kind for kind, _ in raw.meta(OPT["LIST_META"], names)], [ACK], names)
        raw.go()
        raw.structured = True
        same(raw.ask(STATUS, 0, 4096)[0], EINVAL, "no context was agreed on")
        raw.alive()


@check
def many_requests_in_flight(t):
    h = lib(t, structured=False, context=False)
    buffers = [nbd.Buffer.from_bytearray(bytearray(pattern(n, 16384))) for n in range(200)]
    for write in (True, False):
        if not write:
            buffers = [nbd.Buffer(16384) for _ in range(200)]
        ids = {(h.aio_pwrite if write else h.aio_pread)(b, n * 16384): n
               for n, b in enumerate(buffers)}
        while ids:
            h.poll(-1)
            for done in [i for i in ids if h.aio_command_completed(i)]:
                del ids[done]
    for n, b in enumerate(buffers):
        assert bytes(b.to_bytearray()) == pattern(n, 16384), n


@check
def disconnect_finishes_requests(t):
    raw = Raw(t).go()
    data = pattern(9, MIB)
    raw.request(WRITE, 0, MIB, cookie=1, payload=data)
    raw.request(READ, MIB, 4096, cookie=2)
    raw.request(DISC)
    replies = {}
    for _ in range(2):
        magic, error, cookie = struct.unpack(">IIQ", raw.recv(16))
        same((magic, error), (0x67446698, 0))
        replies[cookie] = raw.recv(4096) if cookie == 2 else b""
    same(sorted(replies), [1, 2])
    assert raw.closed()
    assert lib(t).pread(MIB, 0) == data


# --- Wrong requests --------------------------------------------------------------------------


@check
def beyond_the_end(t):
    h = lib(t, strict=False)
    size = h.get_size()
    fails("EINVAL", h.pread, 4096, size)
    fails("EINVAL", h.pread, 8192, size - 4096)
    fails("ENOSPC", h.pwrite, b"x" * 4096, size)
    fails("ENOSPC", h.pwrite, b"x" * 8192, size - 4096)
    fails("ENOSPC", h.zero, 8192, size - 4096)
    fails("EINVAL", h.trim, 8192, size - 4096)
    fails("EINVAL", h.pread, 4096, (1 << 64) - 4096 * 2)
    fails("EINVAL", h.block_status, 4096, size, lambda *a: 0)
    h.pwrite(b"e" * 4096, size - 4096)
    assert h.pread(4096, size - 4096) == b"e" * 4096


@check
def unaligned_after_negotiation(t):
    for kind in (READ, TRIM, ZEROES, CACHE):
        raw = Raw(t).go()
        same(raw.ask(kind, 1, 512)[0], EINVAL, kind)
        same(raw.ask(kind, 512, 511)[0], EINVAL, kind)
        raw.alive()
    raw = Raw(t).go()
    same(raw.ask(WRITE, 1, 100, payload=bytes(100))[0], EINVAL)
    raw.alive()


@check
def unknown_commands_and_flags(t):
    for mode in ({}, {"structured": True}, {"extended": True}):
        raw = Raw(t).go(**mode)
        for kind in (8, 9, 77, 65535):
            same(raw.ask(kind, 0, 4096)[0], EINVAL, f"command {kind}")
        for kind, flags in ((READ, NO_HOLE), (READ, 1 << 9), (FLUSH, DF), (TRIM, FAST_ZERO),
                            (CACHE, REQ_ONE), (ZEROES, DF), (STATUS, 1 << 15)):
            same(raw.ask(kind, 0, 4096, flags)[0], EINVAL, f"command {kind} flags {flags}")
        raw.alive()


@check
def refused_writes_are_consumed(t):
    raw = Raw(t).go()
    same(raw.ask(WRITE, 0, 65536, NO_HOLE, payload=bytes(65536))[0], EINVAL)
    same(raw.ask(WRITE, 1 << 60, 65536, payload=bytes(65536))[0], ENOSPC)
    same(raw.ask(WRITE, 0, 4096, PAYLOAD_LEN, payload=bytes(4096))[0], EINVAL)
    raw.alive()


@check
def zero_lengths(t):
    raw = Raw(t).go()
    for kind in (READ, WRITE, TRIM, ZEROES, CACHE):
        same(raw.ask(kind, 0, 0)[0], 0, kind)
    raw.alive()
    raw = Raw(t).go(structured=True, context=True)
    same(raw.ask(READ, 0, 0), (0, b""))
    same(raw.ask(STATUS, 0, 0)[0], EINVAL)
    raw.alive()


@check
def longest_requests(t):
    raw = Raw(t).go()
    data = pattern(3, 32 * MIB)
    same(raw.ask(WRITE, 0, 32 * MIB, payload=data)[0], 0)
    error, got = raw.ask(READ, 0, 32 * MIB, data=32 * MIB)
    assert error == 0 and got == data
    same(raw.ask(READ, 0, 32 * MIB + 512)[0], EINVAL)
    same(raw.ask(READ, 0, 0xFFFFFE00)[0], EINVAL)
    raw.alive()


@check
def oversized_write_ends_it(t):
    raw = Raw(t).go()
    raw.request(WRITE, 0, 0xFFFFFE00)
    assert raw.closed()
    Raw(t).go().alive()


@check
def bad_request_magic_ends_it(t):
    for mode in ({}, {"extended": True}):
        raw = Raw(t).go(**mode)
        raw.request(READ, 0, 4096, magic=0xDEADBEEF)
        assert raw.closed()
    raw = Raw(t).go()
    raw.request(READ, 0, 4096, magic=0x21E41C71)
    assert raw.closed(), "an extended request without extended headers"


@check
def error_texts(t):
    error, text = Raw(t).go(structured=True).ask(READ, 1 << 60, 4096)
    same(error, EINVAL)
    assert "end" in text, text


@check
def half_requests_harm_nobody(t):
    for cut in (1, 17, 27):
        raw = Raw(t).go()
        raw.send(struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 4096)[:cut])
        raw.sock.close()
    raw = Raw(t).go()
    raw.send(struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 4096) + b"only a little")
    raw.sock.close()
    Raw(t).go().alive()


# --- Extended headers ------------------------------------------------------------------------


@check
def extended_commands(t):
    raw = Raw(t).go(extended=True)
    data = pattern(11, MIB)
    same(raw.ask(WRITE, 4096, MIB, PAYLOAD_LEN | FUA, payload=data), (0, b""))
    same(raw.ask(READ, 4096, MIB), (0, data))
    same(raw.ask(FLUSH), (0, b""))
    same(raw.ask(CACHE, 4096, MIB), (0, b""))
    same(raw.ask(TRIM, 0, 8192), (0, b""))
    same(raw.ask(ZEROES, 4096, MIB), (0, b""))
    same(raw.ask(READ, 4096, MIB), (0, bytes(MIB)))


@check
def extended_64_bit_lengths(t):
    raw = Raw(t).go(extended=True, context=True)
    raw.ask(WRITE, 0, 4096, PAYLOAD_LEN, payload=b"w" * 4096)
    same(raw.ask(ZEROES, 0, raw.size, FAST_ZERO), (0, b""))
    same(raw.ask(TRIM, 0, raw.size), (0, b""))
    at, runs = 0, []
    while at < raw.size:
        error, more = raw.ask(STATUS, at, raw.size - at)
        same(error, 0)
        runs += more
        at = sum(length for length, _ in runs)
    same((at, {state for _, state in runs}), (raw.size, {3}))
    same(raw.ask(READ, 0, 1 << 40)[0], EOVERFLOW)
    same(raw.ask(ZEROES, 4096, 1 << 63)[0], ENOSPC)
    same(raw.ask(TRIM, 4096, (1 << 64) - 4096)[0], EINVAL)
    raw.alive()


@check
def extended_payload_flag(t):
    raw = Raw(t).go(extended=True)
    same(raw.ask(WRITE, 0, 4096)[0], EINVAL, "a write without the flag")
    same(raw.ask(READ, 0, 100, PAYLOAD_LEN, payload=bytes(100))[0], EINVAL)
    same(raw.ask(TRIM, 0, 4096, PAYLOAD_LEN, payload=bytes(4096))[0], EINVAL)
    same(raw.ask(99, 0, 512, PAYLOAD_LEN, payload=bytes(512))[0], EINVAL)
    raw.alive()
    raw.request(WRITE, 0, 1 << 33, PAYLOAD_LEN)
    assert raw.closed()


@check
def block_status_payload(t):
    raw = Raw(t).go(extended=True, context=True)
    raw.ask(ZEROES, 0, MIB)
    raw.ask(WRITE, 4096, 4096, PAYLOAD_LEN, payload=bytes(4096))

    def filtered(length, *ids):
        payload = struct.pack(">Q", length) + b"".join(struct.pack(">I", i) for i in ids)
        return raw.ask(STATUS, 0, len(payload), PAYLOAD_LEN, payload=payload)

    same(filtered(16384, raw.context_id), (0, [(4096, 3), (4096, 0), (8192, 3)]))
    same(filtered(16384)[0], EINVAL, "no ids")
    same(filtered(16384, raw.context_id, raw.context_id)[0], EINVAL, "an id twice")
    same(filtered(16384, raw.context_id + 1)[0], EINVAL, "an unknown id")
    same(filtered(1 << 60, raw.context_id)[0], EINVAL, "beyond the end")
    same(raw.ask(STATUS, 0, 3, PAYLOAD_LEN, payload=b"abc")[0], EINVAL, "a short payload")
    raw.alive()


# --- TLS -------------------------------------------------------------------------------------


def tls_handle(t, args, client_cert=True):
    handle = nbd.NBD()
    handle.set_tls(nbd.TLS_REQUIRE)
    handle.set_tls_verify_peer(True)
    handle.set_tls_certificates(args.certs if client_cert else os.path.join(args.certs, "plain"))
    handle.connect_uri(re.sub(r"^nbds?", "nbds", t.uri))
    return handle


@tls_check
def tls_reads_and_writes(t, args):
    h = tls_handle(t, args)
    assert h.get_tls_negotiated()
    data = pattern(1, 5 * MIB)
    h.pwrite(data, 512)
    assert h.pread(len(data), 512) == data
    h.pwrite(bytes(32 * MIB), 0)
    assert h.pread(32 * MIB, 0) == bytes(32 * MIB)
    h.shutdown()


@tls_check
def tls_by_hand(t, args):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        raw = Raw(t)
        raw.option(OPT["STRUCTURED"])
        same(raw.option(OPT["STARTTLS"]), [(ACK, b"")])
        context = ssl.create_default_context(cafile=os.path.join(args.certs, "ca-cert.pem"))
        context.minimum_version = context.maximum_version = version
        context.check_hostname = False
        if args.client_cert:
            context.load_cert_chain(os.path.join(args.certs, "client-cert.pem"),
                                    os.path.join(args.certs, "client-key.pem"))
        raw.sock = context.wrap_socket(raw.sock)
        same(raw.option(OPT["STARTTLS"])[-1][0], ERR_INVALID, "STARTTLS twice")
        same(raw.meta(OPT["SET_META"], ["base:allocation"])[-1][0], ERR_INVALID,
             "what was agreed on in clear text is void")
        raw.go().alive()
        raw.request(DISC)
        assert raw.closed()


@tls_check
def tls_policy(t, args):
    raw = Raw(t)
    if args.tls == "required":
        for number in (OPT["LIST"], OPT["STRUCTURED"], 4242):
            same(raw.option(number)[-1][0], ERR_TLS)
        for number in (OPT["GO"], OPT["INFO"]):
            same(raw.named(number)[-1][0], ERR_TLS)
        raw = Raw(t)
        raw.option_send(OPT["EXPORT_NAME"], t.name.encode())
        assert raw.closed()
        same(Raw(t).option(OPT["ABORT"])[-1][0], ACK)
    else:
        raw.go().alive()
        raw = Raw(t)
        same(raw.named(OPT["GO"], name="secret")[-1][0], ERR_TLS)
        assert not any(b"secret" in data for _, data in raw.option(OPT["LIST"]))


@tls_check
def tls_clear_text_after_starttls_is_not_believed(t, args):
    raw = Raw(t)
    raw.send(struct.pack(">QII", 0x49484156454F5054, OPT["STARTTLS"], 0)
             + struct.pack(">QII", 0x49484156454F5054, OPT["STRUCTURED"], 0))
    raw.option_reply(OPT["STARTTLS"])
    assert raw.closed()


@tls_check
def tls_garbage(t, args):
    raw = Raw(t)
    same(raw.option(OPT["STARTTLS"]), [(ACK, b"")])
    raw.send(b"this is no client hello, by no stretch of the imagination" * 4)
    raw.sock.settimeout(TIMEOUT)
    try:
        while raw.sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    tls_handle(t, args).flush()


@tls_check
def tls_client_certificates(t, args):
    if not args.client_cert:
        return
    try:
        h = tls_handle(t, args, client_cert=False)
        h.pread(512, 0)
    except nbd.Error:
        return
    raise AssertionError("a client without a certificate was served")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("--certs")
    parser.add_argument("--tls", choices=("required", "offered"), default="required")
    parser.add_argument("--client-cert", action="store_true")
    parser.add_argument("--only", help="run only the checks whose name contains this")
    args = parser.parse_args()
    target = Target(args.uri)
    chosen = TLS_CHECKS if args.certs else CHECKS
    failed = ran = 0
    for function in chosen:
        if args.only and args.only not in function.__name__:
            continue
        ran += 1
        try:
            function(target, args) if args.certs else function(target)
            print(f"ok   {function.__name__}", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL {function.__name__}", flush=True)
            traceback.print_exc(file=sys.stdout)
    print(f"{ran - failed} of {ran} checks passed")
    sys.exit(1 if failed or not ran else 0)


if __name__ == "__main__":
    main()
