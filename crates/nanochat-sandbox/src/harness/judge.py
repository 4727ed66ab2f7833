"""Runs the tests of a program that lives in another process.

A name that the tests do not define is the program's. Calls go there with copies of their arguments and
come back with copies of their results; objects that are not plain stay there and are equal to nothing
but themselves. So what the program is, what it changed and what it overloads has no say here.
"""
import sys

TESTS, RESULT, REQUESTS, ANSWERS = 3, 4, 6, 7
TOKEN_BYTES = int(sys.argv[1])
# The folder in which the program may write is not one of modules.
sys.path[:] = [folder for folder in sys.path if folder]


class Remote:
    """An object of the program."""

    __slots__ = ("_number",)

    def __init__(self, number):
        self._number = number

    def __call__(self, *args, **options):
        result, changed = ask("call", self, list(args), options)
        for i, value in changed:
            put(args[i], value)
        return result

    def __getattr__(self, name):
        return ask("attribute", self, name)[0]

    def __getitem__(self, key):
        return ask("item", self, key)[0]

    def __iter__(self):
        return iter(ask("list", self)[0])

    def __len__(self):
        return ask("length", self)[0]

    def __bool__(self):
        return True

    def __str__(self):
        return str(ask("text", self)[0])


def put(target, value):
    """What the program did to a list, dictionary or set that it was given."""
    if type(target) is type(value) is list:
        target[:] = value
    elif type(target) is type(value) and type(target) in (dict, set):
        target.clear()
        target.update(value)


REMOTES = {}


def remote(number):
    if number not in REMOTES:
        REMOTES[number] = Remote(number)
    return REMOTES[number]


def number_of(value):
    if type(value) is not Remote:
        raise TypeError(f"a test gives the program a {type(value).__name__}, which is not plain")
    return value._number


def ask(kind, target, *rest):
    if type(target) is Remote:
        target = target._number
    request = encode([kind, target, *rest], number_of)
    try:
        send(REQUESTS, request)
        message = receive(ANSWERS)
    except BrokenPipeError:
        message = None
    if message is None:
        raise Gone
    status, first, second = decode(message, remote)
    if status == "value":
        return first, second
    import builtins
    kind = getattr(builtins, str(first), None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        kind = RuntimeError
    if kind in (UnicodeDecodeError, UnicodeEncodeError, UnicodeTranslateError):
        kind = UnicodeError
    raise kind(second)


class Gone(BaseException):
    """The program has ended."""


class Names(dict):
    """Names of the tests; others are asked for."""

    def __missing__(self, name):
        there, value = ask("name", name)
        if there is not True:
            raise KeyError(name)
        return value


def judge():
    from posix import _exit

    token = read(TESTS, TOKEN_BYTES)
    source = b""
    while part := read(TESTS, 1 << 20):
        source += part
    module = Names({"__name__": "__main__", "__builtins__": __builtins__})
    try:
        code = compile(source, "tests.py", "exec", dont_inherit=True)
        # Answered once the program has run to its end.
        ask("name", "__name__")
        exec(code, module)
    except Gone:
        # It has said why, on its own standard error.
        _exit(1)
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == judge.__code__.co_filename:
            trace = trace.tb_next
        sys.__excepthook__(type(error), error.with_traceback(trace), trace)
        sys.stderr.flush()
        _exit(1)
    write(RESULT, token)


judge()
