"""Runs a program, then answers its judge: names, calls and looks at objects, one after the other.

Nothing here is secret and nothing is believed: the judge sees plain values, and compares them itself.
"""
import sys

SOURCE, REQUESTS, ANSWERS = 3, 4, 6


def answer(request, scope, objects):
    """The reply to one request: a kind, then what is asked of what."""
    kind, target, *rest = request
    if kind == "name":
        # Not a builtin: the judge has its own.
        return [target in scope, scope.get(target)]
    if kind == "call":
        args, options = rest
        before = [repr(a) if isinstance(a, (list, dict, set)) else None for a in args]
        result = objects[target](*args, **options)
        changed = [[i, a] for i, a in enumerate(args) if before[i] and repr(a) != before[i]]
        return [result, changed]
    look = {
        "attribute": lambda: getattr(objects[target], *rest),
        "item": lambda: objects[target][rest[0]],
        "list": lambda: list(objects[target]),
        "length": lambda: len(objects[target]),
        "text": lambda: str(objects[target]),
    }
    return [look[kind](), []]


def candidate():
    module = type(sys)("__main__")
    module.__builtins__ = __builtins__
    module.__file__ = "program.py"
    sys.modules["__main__"] = module
    sys.argv[:] = ["program.py"]
    scope = module.__dict__
    source = b""
    while part := read(SOURCE, 1 << 20):
        source += part
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), scope)
    except SystemExit:
        raise
    except BaseException as error:
        report(error)
    objects = []

    def number(value):
        objects.append(value)
        return len(objects) - 1

    while (message := receive(REQUESTS)) is not None:
        try:
            request = decode(message, objects.__getitem__)
            reply = ["value", *answer(request, scope, objects)]
        except BaseException as error:
            name = next(t.__name__ for t in type(error).__mro__ if t.__module__ == "builtins")
            reply = ["error", name, str(error)]
        sys.stdout.flush()
        send(ANSWERS, encode(reply, number))


def report(error):
    from posix import _exit

    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename == candidate.__code__.co_filename:
        trace = trace.tb_next
    try:
        sys.__excepthook__(type(error), error.with_traceback(trace), trace)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        _exit(1)


candidate()
