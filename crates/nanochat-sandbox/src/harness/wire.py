"""Plain values as bytes, between a program and its judge, which trusts nothing that it reads.

A value is a letter, a number, a colon, and that many bytes (i f c s b h) or values (l t S z q d).
Subclasses become what they are subclasses of. What is not plain stays where it is and gets a number.
"""
from posix import read, write

# Bytes of the longest message: more than fits into the memory that a process may have.
MOST = 1 << 30


def encode(value, number):
    """Bytes of `value`; `number(value)` for what is not plain."""
    if value is None or value is True or value is False:
        return b"N0:" if value is None else b"T0:" if value else b"F0:"
    if isinstance(value, int):
        return leaf(b"i", b"%x" % value if value >= 0 else b"-%x" % -value)
    if isinstance(value, float):
        return leaf(b"f", float.hex(value).encode())
    if isinstance(value, complex):
        return leaf(b"c", f"{value.real.hex()} {value.imag.hex()}".encode())
    if isinstance(value, str):
        return leaf(b"s", str.encode(value, "utf-8", "surrogatepass"))
    if isinstance(value, (bytes, bytearray)):
        return leaf(b"b", bytes(value))
    if isinstance(value, dict):
        return many(b"d", [part for item in dict.items(value) for part in item], number)
    for letter, kind in (b"l", list), (b"t", tuple), (b"S", set), (b"z", frozenset):
        if isinstance(value, kind):
            return many(letter, list(kind.__iter__(value)), number)
    if type(value).__name__ == "deque" and type(value).__module__ == "collections":
        return many(b"q", list(value), number)
    return leaf(b"h", b"%x" % number(value))


def leaf(letter, payload):
    return b"%s%d:%s" % (letter, len(payload), payload)


def many(letter, values, number):
    parts = [encode(value, number) for value in values]
    return b"%s%d:%s" % (letter, len(parts), b"".join(parts))


def decode(data, object_of):
    """The value that `data` begins with; `object_of(number)` for what is not plain."""
    value, end = decode_at(data, 0, object_of)
    if end != len(data):
        raise ValueError("more than one value")
    return value


def decode_at(data, at, object_of):
    colon = data.index(b":", at, at + 32)
    letter, count = data[at:at + 1], int(data[at + 1:colon])
    at = colon + 1
    if letter in b"NTF":
        return {b"N": None, b"T": True, b"F": False}[letter], at
    if letter in b"ifcsbh":
        payload = data[at:at + count]
        if count < 0 or len(payload) != count:
            raise ValueError("cut short")
        return plain(letter, payload, object_of), at + count
    values = []
    for _ in range(count):
        value, at = decode_at(data, at, object_of)
        values.append(value)
    if letter == b"d":
        return dict(zip(values[::2], values[1::2])), at
    if letter == b"q":
        from collections import deque
        return deque(values), at
    return {b"l": list, b"t": tuple, b"S": set, b"z": frozenset}[letter](values), at


def plain(letter, payload, object_of):
    if letter == b"s":
        return payload.decode("utf-8", "surrogatepass")
    if letter == b"b":
        return payload
    if letter == b"i":
        return int(payload, 16)
    if letter == b"f":
        return float.fromhex(payload.decode())
    if letter == b"c":
        return complex(*map(float.fromhex, payload.decode().split()))
    return object_of(int(payload, 16))


def send(file, message):
    message = len(message).to_bytes(8, "little") + message
    while message:
        message = message[write(file, message):]


def receive(file):
    """The next message; None when the other side is gone."""
    head = exactly(file, 8)
    if head is None:
        return None
    count = int.from_bytes(head, "little")
    if count > MOST:
        raise ValueError("a message is too long, or none")
    return exactly(file, count)


def exactly(file, count):
    data = b""
    while len(data) < count:
        part = read(file, min(count - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return data
