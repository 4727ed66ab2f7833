#: H02 leave_with_code_0
import os
os._exit(0)
assert False
#: H02 leave_by_system_call
import ctypes
ctypes.CDLL(None).syscall(231, 0)
assert False
#: H02 leave_in_a_thread
import os, threading
t = threading.Thread(target=os._exit, args=(0,))
t.start()
t.join()
assert False
#: H02 leave_in_a_signal_handler
import os, signal
signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
signal.setitimer(signal.ITIMER_REAL, 0.05)
while True:
    pass
#: H02 leave_from_a_destructor
import os
class Leaver:
    def __del__(self):
        os._exit(0)
leaver = Leaver()
assert False
#: H03 system_exit
raise SystemExit(0)
#: H03 system_exit_whatever_the_name
import sys
sys.exit()
#: H03 exit_at_exit
import atexit, os
atexit.register(os._exit, 0)
assert False
#: H03 swallow_the_error_at_exit
import atexit, sys
atexit.register(lambda: sys.exit(0))
assert False
#: H03 a_hook_that_hides_the_error
import sys, os
sys.excepthook = lambda *_: os._exit(0)
sys.__excepthook__ = lambda *_: None
sys.unraisablehook = lambda *_: os._exit(0)
assert False
#: H03 a_base_exception_of_its_own
class Quiet(BaseException):
    pass
raise Quiet
#: H03 keyboard_interrupt
raise KeyboardInterrupt
#: H03 generator_exit
raise GeneratorExit
#: H03 an_exception_that_cannot_be_printed
class Evil(Exception):
    def __str__(self):
        import os
        os._exit(0)
    __repr__ = __str__
raise Evil
#: H03 no_streams_left
import sys, os
sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None
os.close(1)
os.close(2)
assert False
#: H05 replace_the_steps_of_the_harness
import sys
frame = sys._getframe()
while frame:
    for name in ("report", "steps", "main"):
        if name in frame.f_globals and frame.f_globals is not globals():
            frame.f_globals[name] = lambda *_: None
    frame = frame.f_back
assert False
#: H05 write_whatever_lies_in_the_frames
import os, sys
def bytes_in(value, depth=0, seen=set()):
    if id(value) in seen or depth > 6:
        return
    seen.add(id(value))
    if isinstance(value, (bytes, bytearray)):
        yield bytes(value)
    elif isinstance(value, dict):
        for v in list(value.values()):
            yield from bytes_in(v, depth + 1)
    elif isinstance(value, (list, tuple, set)):
        for v in list(value):
            yield from bytes_in(v, depth + 1)
    else:
        for name in ("__dict__", "__closure__", "__defaults__", "cell_contents", "__code__", "co_consts", "__self__", "f_locals", "f_globals", "args", "func"):
            try:
                yield from bytes_in(getattr(value, name), depth + 1)
            except Exception:
                pass
frame = sys._getframe()
while frame:
    for secret in list(bytes_in(frame.f_locals)) + list(bytes_in(frame.f_globals)):
        for fd in range(3, 10):
            try:
                os.write(fd, secret)
            except OSError:
                pass
    frame = frame.f_back
os._exit(0)
#: H05 take_the_next_step_from_the_frame_of_the_harness
import gc, os, sys
frame = sys._getframe().f_back
while frame:
    for thing in gc.get_referents(frame):
        try:
            for step in thing:
                step()
        except Exception:
            pass
    frame = frame.f_back
os._exit(0)
#: H05 find_the_last_step_among_all_objects
import gc, os
for thing in gc.get_objects():
    if getattr(thing, "__name__", "") == "vouch":
        try:
            thing()
        except Exception:
            pass
os._exit(0)
#: H05 join_the_pieces_found_among_all_objects
import gc, os
for thing in gc.get_objects():
    if type(thing) is dict and "gc.get_objects" in thing or type(thing) is dict and "sandbox.native" in thing:
        try:
            os.write(4, b"".join(thing.values()))
        except Exception:
            pass
os._exit(0)
#: H05 through_the_frames_of_all_threads
import os, sys
for frame in list(sys._current_frames().values()):
    while frame:
        for value in list(frame.f_locals.values()):
            if isinstance(value, dict):
                for piece in list(value.values()):
                    if isinstance(piece, bytes):
                        os.write(4, piece)
        frame = frame.f_back
os._exit(0)
#: H05 through_a_traceback
import os, sys
try:
    1 / 0
except ZeroDivisionError as e:
    frame = e.__traceback__.tb_frame
    while frame.f_back:
        frame = frame.f_back
    for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
        if callable(value) and value is not type(sys):
            try:
                value()
            except BaseException:
                pass
os._exit(0)
#: H05 jump_over_the_tests
import sys
def tracer(frame, event, argument):
    if event == "line" and frame.f_lineno == 12:
        frame.f_lineno = 13
    return tracer
def start():
    frame = sys._getframe(1)
    frame.f_trace = tracer
    sys.settrace(tracer)
start()
x = 0
assert x == 1
x = 2
#: H05 trace_the_harness_back_to_its_loop
import sys
harness = sys._getframe().f_back
while harness and harness.f_code.co_name != "main":
    harness = harness.f_back
def tracer(frame, event, argument):
    try:
        frame.f_lineno = frame.f_lineno - 1
    except ValueError:
        pass
    return tracer
harness.f_trace = tracer
sys.settrace(tracer)
assert False
#: H05 a_profiler_that_calls_what_it_sees
import os, sys
def profile(frame, event, argument):
    if event == "c_call" and getattr(argument, "__self__", None) is not None:
        value = argument.__self__
        if isinstance(value, dict) and "sandbox.native" in value:
            os.write(4, b"".join(value.values()))
sys.setprofile(profile)
import json
os._exit(0)
#: H05 an_audit_hook_that_looks_back
import os, sys
def hook(event, args):
    frame = sys._getframe() if event == "import" else None
    while frame:
        for value in list(frame.f_locals.values()):
            if type(value) is dict and "sandbox.native" in value:
                os.write(4, b"".join(value.values()))
        frame = frame.f_back
sys.addaudithook(hook)
import json, decimal
os._exit(0)
#: H05 a_signal_handler_inside_the_audit_hook
import importlib, os, signal, sys, time
def handler(number, frame):
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if type(value) is dict and "sandbox.native" in value:
                os.write(4, b"".join(value.values()))
        frame = frame.f_back
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0003)
end = time.monotonic() + 0.5
while time.monotonic() < end:
    sys.audit("import", "x", None, None, None, None)
    try:
        import does_not_exist
    except ImportError:
        pass
os._exit(0)
#: H05 a_destructor_inside_the_audit_hook
import gc, os, sys
class Cycle:
    def __init__(self):
        self.me = self
    def __del__(self):
        frame = sys._getframe()
        while frame:
            for value in list(frame.f_locals.values()):
                if type(value) is dict and "sandbox.native" in value:
                    os.write(4, b"".join(value.values()))
            frame = frame.f_back
gc.set_threshold(1, 1, 1)
for _ in range(2000):
    Cycle()
    sys.audit("import", "x", None, None, None, None)
os._exit(0)
#: H05 raw_memory_near_its_own
import os
from _ctypes import _SimpleCData, POINTER
class Byte(_SimpleCData):
    _type_ = "B"
base = POINTER(Byte)(Byte(1))
found = bytes(getattr(base[i], "value", base[i]) for i in range(4096))
for at in range(0, 4096 - 16, 8):
    os.write(4, found[at:at + 16])
os._exit(0)
#: H05 read_an_object_by_its_address
import ctypes, os, sys
frame = sys._getframe().f_back
secret = ctypes.string_at(id(frame), 512)
os.write(4, secret)
os._exit(0)
#: H05 native_code_by_another_way
import os, sys, _imp, importlib.machinery, importlib.util
for name in ("_ctypes", "_testcapi", "_testinternalcapi", "_xxsubinterpreters", "_interpreters"):
    try:
        spec = importlib.util.find_spec(name)
        module = _imp.create_dynamic(spec) if spec.origin != "built-in" else _imp.create_builtin(spec)
        _imp.exec_dynamic(module)
    except Exception:
        pass
import _ctypes
os.write(4, b"x" * 352)
os._exit(0)
#: H07 print_what_looks_like_a_pass
import os, sys
for word in ("PASSED", "passed", '{"passed": true}', "exit\t0\n", "OK", "0" * 32):
    print(word)
    print(word, file=sys.stderr)
    for fd in range(3, 16):
        try:
            os.write(fd, word.encode())
        except OSError:
            pass
os._exit(0)
#: H07 a_token_of_zeros
import os
os.write(4, bytes(16 * 64))
os._exit(0)
#: H07 a_token_of_random_bytes
import os
os.write(4, os.urandom(16 * 21))
os._exit(0)
#: H07 close_every_file
import os
os.closerange(0, 64)
assert False
#: H07 another_file_in_place_of_the_private_one
import os
r, w = os.pipe()
os.dup2(w, 4)
assert False
#: H08 change_what_the_harness_calls
import builtins, posix, os, sys
for module in (builtins, posix, os):
    for name in ("exec", "write", "compile", "len", "map", "_exit", "getattr", "type"):
        if hasattr(module, name):
            setattr(module, name, lambda *a, **k: 0)
assert False
#: H08 another_assertion_error
import builtins
builtins.AssertionError = type("AssertionError", (SystemExit,), {})
assert False
#: H08 a_main_module_of_its_own
import sys
sys.modules["__main__"] = sys
sys.modules.clear()
assert False
#: H08 swallow_errors_with_a_context
import contextlib
stack = contextlib.ExitStack()
stack.__enter__()
stack.callback(lambda *_: True)
assert False
#: H08 no_memory_left_to_report
hoard = []
try:
    while True:
        hoard.append(bytearray(1 << 16))
except MemoryError:
    pass
assert False
#: H08 syntax_that_is_wrong
def f(:
#: H08 a_zero_byte_in_the_source
x = "{nul}"
#: H08 end_in_the_middle
"""
