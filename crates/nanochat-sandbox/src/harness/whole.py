"""Runs one program and, if it runs to its end, says so with a token that the program cannot reach.

The token comes in as many pieces as there are events in EVENTS. Each is an audit event (PEP 578) of a
way to look behind the curtain: at other frames' stacks, at all objects, at raw memory. The audit hook
is the bound method `pieces.pop` itself: whoever raises one of them has, before it gets an answer,
destroyed the piece of that name. There is no Python frame of the hook to be caught in, no reference
to the pieces but the hook list of the interpreter and the last step, and that step lies in a list
whose only reference is the value stack of the frame of `main`, which nothing but those events shows.
The step is fetched only after the program has returned.
"""
import sys

EVENTS = tuple(sys.argv[1:])
PIECE = 16


def steps(scope):
    """What `main` does in turn: the program, then the token."""
    from posix import close, read, write

    pieces = {event: read(3, PIECE) for event in EVENTS}
    source = b""
    while chunk := read(3, 1 << 20):
        source += chunk
    close(3)
    code = compile(source, "program.py", "exec", dont_inherit=True)

    # Modules with which a program reaches memory without a further event. `sys.settrace(None)` where
    # nothing is traced looks at nothing: doctest does it.
    def imports(event, args, audit=sys.audit):
        if event == "import":
            name = args[0]
            if type(name) is not str or name.rpartition(".")[2] in {
                "_ctypes", "_ctypes_test", "_testcapi", "_testinternalcapi", "_testbuffer",
                "_testlimitedcapi", "_xxsubinterpreters", "_interpreters", "_cffi_backend",
                "_remote_debugging",
            }:
                audit("sandbox.native")

    def settrace(function, set=sys.settrace, now=sys.gettrace):
        if function is not None or now() is not None:
            set(function)

    def vouch(pieces=pieces, events=EVENTS):
        if len(pieces) == len(events):
            write(4, b"".join(map(pieces.get, events)))
        else:
            used = ", ".join(event for event in events if event not in pieces)
            sys.stderr.write(
                "sandbox: the program used " + used.replace("sandbox.native", "native code") +
                ", so that it ran to its end proves nothing\n"
            )

    sys.settrace = settrace
    sys.addaudithook(imports)
    sys.addaudithook(pieces.pop)
    return [lambda: exec(code, scope), vouch]


def main():
    module = type(sys)("__main__")
    module.__builtins__ = __builtins__
    module.__file__ = "program.py"
    sys.modules["__main__"] = module
    sys.argv[:] = ["program.py"]
    try:
        for step in steps(module.__dict__):
            step()
    except SystemExit:
        raise
    except BaseException as error:
        report(error)


def report(error):
    """Prints the traceback without our frames and ends the process."""
    from posix import _exit, write

    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename == main.__code__.co_filename:
        trace = trace.tb_next
    try:
        write(4, type(error).__name__.encode()[:100])
        sys.__excepthook__(type(error), error.with_traceback(trace), trace)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        _exit(1)


main()
