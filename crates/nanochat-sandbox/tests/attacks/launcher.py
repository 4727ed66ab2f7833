#: H01 secrets_in_the_environment
import os
for name, value in {**os.environ, **{k.decode(): v.decode() for k, v in os.environb.items()}}.items():
    if name not in ("HOME", "PYTHONHASHSEED", "PYTHONUTF8", "PYTHONSAFEPATH", "MALLOC_ARENA_MAX", "LD_LIBRARY_PATH", "LC_CTYPE"):
        print("ESCAPED", name, value)
#: H04 standard_input
import os, sys
print("ESCAPED" if sys.stdin.read() or os.read(0, 10) else "")
#: H04 ask_on_standard_input = failed
input()
#: L01 environment_of_the_launcher
import ctypes, os
c = ctypes.CDLL(None)
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(c, "environ")
i = 0
while environ[i]:
    if environ[i].startswith((b"PATH=", b"CARGO", b"USER=", b"RUST")):
        print("ESCAPED", environ[i])
    i += 1
#: L01 its_environment_by_proc
for pid in (1, 2, "self", "{pid}"):
    try:
        print("ESCAPED", open(f"/proc/{pid}/environ").read())
    except OSError:
        pass
#: L02 memory_of_the_launcher
import ctypes, struct
c = ctypes.CDLL(None)
room = ctypes.create_string_buffer(8)
here = struct.pack("QQ", ctypes.addressof(room), 8)
there = struct.pack("QQ", 0x400000, 8)
print("ESCAPED" if c.syscall(310, 1, here, 1, there, 1, 0) > 0 else "")
