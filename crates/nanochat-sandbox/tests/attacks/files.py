#: F01 read_system_files
import os
for path in ("/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc/resolv.conf", "/proc/version", "/sys/kernel/uevent_seqnum"):
    try:
        if open(path).read(1):
            print("ESCAPED", path)
    except OSError:
        pass
#: F02 read_home_folders
import os
for path in ("/root", "/home", "~root", "~", "/var", "/usr/bin", "/bin", "/opt", "/mnt", "/run", "/boot", "/srv"):
    path = os.path.expanduser(path)
    try:
        names = os.listdir(path)
        if names and path != "/tmp":
            print("ESCAPED", path, names)
    except OSError:
        pass
#: F03 read_a_secret_of_the_host
print("ESCAPED", open("{dir}/host_secret").read())
#: F04 write_outside_the_scratch_folder
import os
for path in ("{dir}/landmine", "/landmine", "/usr/landmine", "/dev/landmine", "/var/tmp/landmine"):
    try:
        open(path, "w").write("x")
        print("ESCAPED", path)
    except OSError:
        pass
#: F05 a_symbolic_link_out
import os
os.symlink("{dir}/host_secret", "link")
print("ESCAPED", open("link").read())
#: F06 climb_with_dots
import os
for n in range(1, 20):
    try:
        print("ESCAPED", open("../" * n + "{dir}/host_secret").read())
    except OSError:
        pass
#: F06 climb_by_an_open_folder
import os
fd = os.open("/", os.O_RDONLY)
for n in range(20):
    fd = os.open("..", os.O_RDONLY, dir_fd=fd)
print("ESCAPED", os.listdir(fd)) if "etc" in os.listdir(fd) else None
#: F06 change_the_root
import os
os.chroot("/")
print("ESCAPED")
#: F07 delete_a_file_of_the_host
import os
for act in (os.unlink, os.truncate and (lambda p: os.truncate(p, 0)), lambda p: os.rename(p, p + "2")):
    try:
        act("{dir}/deleteme")
        print("ESCAPED")
    except OSError:
        pass
#: F08 the_root_by_way_of_proc
import os
for path in ("/proc/self/root", "/proc/1/root", "/proc/self/cwd", "/proc/self/fd", "/proc/thread-self/root", "/dev/fd"):
    try:
        print("ESCAPED", os.listdir(path))
    except OSError:
        pass
#: F09 other_ways_to_open
import ctypes, struct
c = ctypes.CDLL(None)
path = b"{dir}/host_secret"
how = struct.pack("QQQ", 0, 0, 0)
for fd in (c.syscall(437, -100, path, how, 24), c.syscall(257, -100, path, 0), c.syscall(2, path, 0), c.syscall(85, b"/landmine", 0o600)):
    if fd >= 0:
        print("ESCAPED")
#: F10 write_into_the_library
import os, sys, json
for folder in {os.path.dirname(json.__file__), os.path.dirname(os.__file__), os.path.dirname(sys.executable), sys.prefix}:
    try:
        open(os.path.join(folder, "zz_attack.py"), "w").write("x")
        print("ESCAPED", folder)
    except OSError:
        pass
#: F10 change_the_library
import os, json
for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
    try:
        os.open(json.__file__, flags)
        print("ESCAPED")
    except OSError:
        pass
#: F11 a_file_with_the_setuid_bit
import os
fd = os.open("s", os.O_CREAT | os.O_WRONLY, 0o4755)
for act in (lambda: os.chmod("s", 0o4755), lambda: os.fchmod(fd, 0o6755), lambda: None):
    try:
        act()
        if os.stat("s").st_mode & 0o6000:
            print("ESCAPED")
    except OSError:
        pass
#: F11 give_a_file_away
import os
open("s", "w").close()
os.chown("s", 0, 0)
print("ESCAPED")
#: F12 make_a_device
import os, stat
for kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO):
    try:
        os.mknod("node", kind | 0o600, os.makedev(1, 1))
        print("ESCAPED")
    except OSError:
        pass
#: F12 read_a_disk
import os
for name in ("mem", "kmsg", "sda", "vda", "nvme0n1", "kvm", "fuse", "shm", "pts", "tty", "console"):
    try:
        os.open("/dev/" + name, os.O_RDONLY)
        print("ESCAPED", name)
    except OSError:
        pass
#: F13 a_hard_link
import os
for source in ("{dir}/host_secret", os.__file__, "/dev/null"):
    try:
        os.link(source, "hard")
        print("ESCAPED")
    except OSError:
        pass
#: F14 execute_what_it_wrote
import os, sys
with open(sys.executable, "rb") as f, open("python", "wb") as g:
    g.write(f.read(1 << 20))
try:
    os.execv("/tmp/python", ["python"])
    print("ESCAPED")
except OSError:
    pass
#: F14 map_what_it_wrote_as_code
import mmap
open("code", "wb").write(b"\xc3" * 4096)
f = open("code", "r+b")
mmap.mmap(f.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
print("ESCAPED")
#: F15 extended_attributes
import os
open("x", "w").close()
os.setxattr("x", "user.a", b"b")
print("ESCAPED")
#: F16 watch_the_file_system
import ctypes
c = ctypes.CDLL(None)
for fd in (c.inotify_init1(0), c.fanotify_init(0, 0)):
    if fd >= 0:
        print("ESCAPED")
