"""The NBD protocol by hand, for requests that no decent client would make."""

import socket
import ssl
import struct
import urllib.parse

TIMEOUT = 20
MIB = 1 << 20
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP = 1, 5, 22, 28, 75, 95
OPT = dict(EXPORT_NAME=1, ABORT=2, LIST=3, STARTTLS=5, INFO=6, GO=7, STRUCTURED=8,
           LIST_META=9, SET_META=10, EXTENDED=11)
ACK, SERVER, INFO, META = 1, 2, 3, 4
ERR = 1 << 31
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_TLS, ERR_UNKNOWN, ERR_TOO_BIG, ERR_EXT = (
    ERR + n for n in (1, 2, 3, 5, 6, 9, 10))
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << n for n in range(6))


def same(got, want, what=""):
    if got != want:
        raise AssertionError(f"{what}: got {got!r}, expected {want!r}")


def pattern(seed, length):
    unit = b"".join(struct.pack(">II", seed, n) for n in range(512))
    return (unit * (length // len(unit) + 1))[:length]


class Target:
    """What a URI names."""

    def __init__(self, uri):
        self.uri = uri
        parts = urllib.parse.urlsplit(uri)
        self.name = urllib.parse.unquote(parts.path.lstrip("/"))
        query = urllib.parse.parse_qs(parts.query)
        self.path = query.get("socket", [None])[0]
        self.host, self.port = parts.hostname, parts.port or 10809

    def connect(self):
        if self.path:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(TIMEOUT)
            sock.connect(self.path)
        else:
            sock = socket.create_connection((self.host, self.port), TIMEOUT)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


class Raw:
    """The protocol by hand, so that anything can be said."""

    def __init__(self, target, flags=3):
        self.target = target
        self.sock = target.connect()
        self.extended = self.structured = False
        magic, option_magic, self.flags = struct.unpack(">8sQH", self.recv(18))
        same(magic, b"NBDMAGIC")
        same(option_magic, 0x49484156454F5054)
        same(self.flags, 3, "handshake flags")
        self.send(struct.pack(">I", flags))

    def send(self, data):
        self.sock.sendall(data)

    def recv(self, count):
        data = b""
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            if not piece:
                raise EOFError(f"closed after {len(data)} of {count} bytes")
            data += piece
        return data

    def closed(self):
        """Whether the server ends the connection without another word."""
        try:
            return self.sock.recv(1) == b""
        except (ConnectionResetError, ssl.SSLError):
            return True

    def option_send(self, number, data=b""):
        self.send(struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data)

    def option_reply(self, number):
        magic, option, kind, length = struct.unpack(">QIII", self.recv(20))
        same(magic, 0x3E889045565A9, "option reply magic")
        same(option, number, "the option answered")
        return kind, self.recv(length)

    def option(self, number, data=b""):
        """All replies up to the last, as (kind, data)."""
        self.option_send(number, data)
        replies = []
        while True:
            replies.append(self.option_reply(number))
            if replies[-1][0] == ACK or replies[-1][0] & ERR:
                return replies

    def named(self, number, name=None, infos=()):
        name = (self.target.name if name is None else name).encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">H", len(infos))
        return self.option(number, data + b"".join(struct.pack(">H", i) for i in infos))

    def meta(self, number, queries, name=None):
        name = (self.target.name if name is None else name).encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
        for query in queries:
            data += struct.pack(">I", len(query)) + query.encode()
        return self.option(number, data)

    def go(self, extended=False, structured=False, context=False, sizes=True):
        if extended:
            same(self.option(OPT["EXTENDED"])[-1][0], ACK, "extended headers")
        elif structured:
            same(self.option(OPT["STRUCTURED"])[-1][0], ACK, "structured replies")
        if context:
            replies = self.meta(OPT["SET_META"], ["base:allocation"])
            same([kind for kind, _ in replies], [META, ACK], "SET_META_CONTEXT")
            self.context_id = struct.unpack(">I", replies[0][1][:4])[0]
        replies = self.named(OPT["GO"], infos=[3] if sizes else [])
        same(replies[-1][0], ACK, "GO")
        self.extended, self.structured = extended, structured
        for kind, data in replies:
            if kind == INFO and data[:2] == b"\0\0":
                self.size, self.transmission = struct.unpack(">QH", data[2:])
        return self

    def request(self, kind, offset=0, length=0, flags=0, cookie=7, payload=b"", magic=None):
        if self.extended:
            head = struct.pack(">IHHQQQ", magic or 0x21E41C71, flags, kind, cookie, offset, length)
        else:
            head = struct.pack(">IHHQQI", magic or 0x25609513, flags, kind, cookie, offset, length)
        self.send(head + payload)

    def reply(self, cookie=7, length=0, offset=0):
        """The reply to one request: (errno, data or extents)."""
        if self.extended:
            magic, flags, kind, got, at, count = struct.unpack(">IHHQQQ", self.recv(32))
            same(magic, 0x6E8A278C, "extended reply magic")
            same(at, offset, "offset in the reply's header")
        else:
            head = self.recv(16)
            magic = struct.unpack(">I", head[:4])[0]
            if magic == 0x67446698:
                error, got = struct.unpack(">IQ", head[4:])
                same(got, cookie, "cookie")
                return error, self.recv(length) if length and not error else b""
            same(magic, 0x668E33EF, "structured reply magic")
            flags, kind, got, count = struct.unpack(">HHQI", head[4:] + self.recv(4))
        same(got, cookie, "cookie")
        same(flags, 1, "reply flags")
        data = self.recv(count)
        if kind & 0x8000:
            error, text = struct.unpack(">IH", data[:6])
            same(len(data), 6 + text, "length of an error chunk")
            return error, data[6:].decode()
        if kind == 1:
            same(struct.unpack(">Q", data[:8])[0], offset, "offset of the data")
            return 0, data[8:]
        if kind == 5:
            same(struct.unpack(">I", data[:4])[0], self.context_id)
            return 0, [struct.unpack(">II", data[n:n + 8]) for n in range(4, len(data), 8)]
        if kind == 6:
            context, number = struct.unpack(">II", data[:8])
            same(context, self.context_id)
            runs = [struct.unpack(">QQ", data[n:n + 16]) for n in range(8, len(data), 16)]
            same(len(runs), number, "descriptor count")
            return 0, runs
        same((kind, count), (0, 0), "reply type")
        return 0, b""

    def ask(self, kind, offset=0, length=0, flags=0, payload=b"", data=0):
        self.request(kind, offset, length, flags, payload=payload)
        return self.reply(length=data, offset=offset)

    def alive(self):
        """The connection survived whatever was said before."""
        same(self.ask(FLUSH)[0], 0, "a flush after the refused request")
