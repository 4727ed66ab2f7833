#: P01 signal_the_parent
import os
for pid in (1, os.getppid(), {pid}):
    for number in (0, 9, 10):
        try:
            os.kill(pid, number)
            print("ESCAPED", pid)
        except OSError:
            pass
#: P02 signal_everyone
import os
for number in (0, 15, 9):
    try:
        os.kill(-1, number)
        print("ESCAPED")
    except OSError:
        pass
#: P03 trace_another_process
import ctypes
c = ctypes.CDLL(None)
for request in (0x4206, 16, 0):
    for pid in (1, {pid}):
        if c.ptrace(request, pid, 0, 0) == 0:
            print("ESCAPED", request, pid)
#: P04 the_parents_memory_by_proc
import os
for pid in ("1", "self", str(os.getppid()), "{pid}"):
    try:
        open(f"/proc/{pid}/mem", "rb")
        print("ESCAPED", pid)
    except OSError:
        pass
#: P05 the_parents_environment
import os
for pid in ("1", "self", "{pid}"):
    try:
        print("ESCAPED", open(f"/proc/{pid}/environ", "rb").read())
    except OSError:
        pass
#: P06 list_processes
import os
found = 0
for pid in range(1, 3000):
    try:
        os.kill(pid, 0)
        found += pid != os.getpid()
    except OSError:
        pass
try:
    found += len(os.listdir("/proc"))
except OSError:
    pass
print("ESCAPED" if found else found)
#: P06 look_at_processes_by_priority
import os
seen = []
for pid in (1, 3, {pid}):
    try:
        os.getpriority(os.PRIO_PROCESS, pid)
        seen.append(pid)
    except OSError:
        pass
print("ESCAPED" if seen else "")
#: P07 a_process_that_survives
import ctypes, time
c = ctypes.CDLL(None)
if c.fork() == 0:
    c.setsid()
    if c.fork() == 0:
        for _ in range(50):
            open("{dir}/survivor", "a").write("x")
            time.sleep(0.1)
#: P07 a_session_of_its_own
import os
os.setsid()
print("ESCAPED")
#: P08 execute_a_shell
import os
for path in ("/bin/sh", "/usr/bin/env", "/bin/busybox"):
    try:
        os.execv(path, [path, "-c", "echo ESCAPED"])
    except OSError:
        pass
#: P08 execute_the_interpreter_again
import os, sys
os.execv(sys.executable, [sys.executable, "-c", "print('ESCAPED')"])
#: P08 execute_by_system_call
import ctypes, sys
c = ctypes.CDLL(None)
words = (ctypes.c_char_p * 4)(b"python", b"-c", b"print('ESCAPED')", None)
c.syscall(59, sys.executable.encode(), words, None)
c.syscall(322, -100, sys.executable.encode(), words, None, 0)
#: P08 execute_by_the_loader
import ctypes
c = ctypes.CDLL(None)
loader = b"/lib64/ld-linux-x86-64.so.2"
words = (ctypes.c_char_p * 3)(loader, b"/bin/echo", None)
c.execve(loader, words, None)
#: P09 subprocess
import subprocess
for call in (lambda: subprocess.run(["echo", "ESCAPED"]), lambda: subprocess.getoutput("true")):
    try:
        call()
        print("ESCAPED")
    except OSError:
        pass
#: P09 multiprocessing
import multiprocessing
p = multiprocessing.get_context("fork").Process(target=print, args=("ESCAPED",))
p.start()
p.join()
#: P10 os_system
import os, importlib
importlib.reload(os)
print("ESCAPED" if os.system("true") == 0 else "")
#: P10 popen_and_pty
import os
for call in (lambda: os.popen("echo ESCAPED").read(), lambda: os.forkpty()):
    try:
        print(call())
    except OSError:
        pass
#: P11 signal_the_group
import os
for number in (0, 10, 12):
    for call in (os.killpg, os.kill):
        try:
            call(0, number)
            print("ESCAPED")
        except OSError:
            pass
#: P12 files_left_open_by_the_parent
import os
kept = []
for fd in range(3, 1024):
    try:
        os.fstat(fd)
        kept.append(fd)
    except OSError:
        pass
print("ESCAPED" if kept != [4] else "", kept)
#: P12 read_the_private_file
import os
print("ESCAPED", os.read(4, 1))
#: P13 raise_its_priority
import os
for call in (
    lambda: os.nice(-5),
    lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
    lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    lambda: os.sched_setaffinity(0, [0]),
):
    try:
        call()
        print("ESCAPED")
    except OSError:
        pass
#: P14 change_who_it_is
import os
for call in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try:
        call()
        print("ESCAPED")
    except OSError:
        pass
print("ESCAPED" if os.getuid() == 0 else "")
#: P15 signals_to_threads_of_others
import ctypes
c = ctypes.CDLL(None)
for number, args in ((200, (1, 0)), (234, (1, 1, 0)), (129, (1, 10, None)), (297, (1, 1, 10, None))):
    if c.syscall(number, *args) == 0:
        print("ESCAPED", number)
