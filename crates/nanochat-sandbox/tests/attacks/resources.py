#: R01 loop_for_ever = timeout
n = 0
while n >= 0:
    n += 1
#: R02 one_long_operation_in_c = timeout
pow(7, 7 ** 9)
#: R03 regular_expression_that_backtracks = timeout
import re
re.match(r"(x+x+)+y", "x" * 64)
#: R04 one_huge_block
block = bytearray(6 << 30)
print("ESCAPED")
#: R05 memory_bit_by_bit
hoard = []
while len(hoard) < 1500:
    hoard.append(bytearray(1 << 20))
print("ESCAPED")
#: R05 memory_mapped_outside_the_heap
import mmap
maps = []
for _ in range(64):
    m = mmap.mmap(-1, 16 << 20)
    m.write(b"y" * len(m))
    maps.append(m)
print("ESCAPED")
#: R06 fork_by_system_call
import ctypes
c = ctypes.CDLL(None)
for number, flags in ((57, 0), (58, 0), (56, 17), (56, 0x4111)):
    pid = c.syscall(number, flags, 0, 0, 0, 0)
    if pid == 0:
        c._exit(0)
    if pid > 0:
        print("ESCAPED", number)
#: R06 fork_by_library
import os
try:
    if os.fork() == 0:
        os._exit(0)
    print("ESCAPED")
except OSError:
    pass
#: R06 spawn_by_library
import os, sys
try:
    os.posix_spawn(sys.executable, ["python", "-c", ""], {})
    print("ESCAPED")
except OSError:
    pass
#: R07 threads_without_end
import _thread, time
count = 0
try:
    while count < 2000:
        _thread.start_new_thread(time.sleep, (5,))
        count += 1
except RuntimeError:
    pass
print("ESCAPED" if count > 100 else count)
import os
os._exit(0)
#: R08 fill_the_scratch_folder
written = 0
try:
    for i in range(64):
        with open(f"f{i}", "wb") as f:
            written += f.write(bytes(4 << 20))
except OSError:
    pass
print("ESCAPED" if written > 64 << 20 else written)
#: R09 use_up_the_inodes
import os
made = 0
try:
    for i in range(20000):
        os.close(os.open(f"n{i}", os.O_CREAT | os.O_WRONLY))
        made += 1
except OSError:
    pass
print("ESCAPED" if made > 1000 else made)
#: R09 use_up_the_inodes_with_folders
import os
made = 0
try:
    for i in range(5000):
        os.mkdir(f"d{i}")
        made += 1
except OSError:
    pass
print("ESCAPED" if made > 1000 else made)
#: R10 flood_standard_output = output_limit
import os
while True:
    os.write(1, b"flood " * 9999)
#: R11 flood_standard_error = output_limit
import os
while True:
    os.write(2, b"flood " * 9999)
#: R11 flood_the_private_file = timeout
import os
while True:
    os.write(4, b"flood " * 9999)
#: R12 open_files_without_end
files = []
try:
    while len(files) < 5000:
        files.append(open("/dev/null"))
except OSError:
    pass
print("ESCAPED" if len(files) > 200 else len(files))
#: R12 pipes_without_end
import os
ends = 0
try:
    while ends < 5000:
        os.pipe()
        ends += 2
except OSError:
    pass
print("ESCAPED" if ends > 200 else ends)
#: R13 recursion_in_python = memory failed timeout killed
import sys
sys.setrecursionlimit(1 << 30)
def deeper(n):
    return deeper(n + 1) + 1
deeper(0)
#: R13 recursion_in_c = memory failed timeout killed
import sys
sys.setrecursionlimit(1 << 30)
nest = []
for _ in range(1 << 20):
    nest = [nest]
repr(nest)
#: R14 sparse_file
f = open("sparse", "wb")
f.seek((1 << 41) - 1)
f.write(b"x")
f.flush()
print("ESCAPED")
#: R14 sparse_file_by_truncate
import os
fd = os.open("sparse", os.O_CREAT | os.O_RDWR)
os.ftruncate(fd, 1 << 40)
print("ESCAPED")
#: R15 crash_of_the_interpreter = killed
import ctypes
ctypes.memset(8, 1, 8)
#: R15 abort = killed
import os
os.abort()
#: R16 memory_in_nameless_files
import os
fd = os.memfd_create("m")
for _ in range(512):
    os.write(fd, bytes(1 << 20))
print("ESCAPED")
#: R16 memory_in_pipes
import os
kept = 0
for _ in range(28):
    r, w = os.pipe()
    import fcntl
    kept += fcntl.fcntl(w, 1031, 64 << 20)
print("ESCAPED" if kept > 256 << 20 else kept)
#: R17 raise_a_limit
import resource
for which in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
    for value in ((1 << 40, 1 << 40), (resource.RLIM_INFINITY,) * 2):
        try:
            resource.setrlimit(which, value)
            print("ESCAPED", which)
        except (OSError, ValueError):
            pass
#: R18 sleep_past_the_deadline = timeout
import time
time.sleep(3600)
#: R18 ignore_every_signal = timeout
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
#: R18 a_thread_that_never_ends = timeout
import threading, time
threading.Thread(target=time.sleep, args=(3600,)).start()
#: R18 an_exit_handler_that_never_ends = timeout
import atexit, time
atexit.register(time.sleep, 3600)
