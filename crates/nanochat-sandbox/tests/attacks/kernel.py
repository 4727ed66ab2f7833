#: prelude
import ctypes, errno, os, struct
c = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    result = c.syscall(number, *args)
    return result, ctypes.get_errno() if result == -1 else 0
def refused(number, *args):
    result, error = call(number, *args)
    if result != -1 or error not in (errno.EPERM, errno.ENOSYS):
        print("ESCAPED", number, result, error)
#: K01 unshare
for flags in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x8000000, 0x4000000, 0x2000000, 0x200, 0):
    refused(272, flags)
#: K01 enter_a_namespace
refused(308, 3, 0)
#: K02 clone_with_a_user_namespace
for flags in (0x10000000 | 17, 0x10000000 | 0x100, 17, 0x4000 | 0x100 | 17):
    refused(56, flags, 0, 0, 0, 0)
#: K02 clone3
refused(435, struct.pack("QQQQQQQQQQQ", 0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0), 88)
#: K03 mount
refused(165, b"none", b"/tmp", b"tmpfs", 0, None)
refused(165, None, b"/", None, 32 | 4096, None)
refused(166, b"/tmp", 2)
refused(155, b".", b".")
#: K03 mount_by_the_newer_calls
refused(430, b"tmpfs", 0)
refused(428, -100, b"/", 1)
refused(429, 3, b"", -100, b"/tmp", 4)
refused(442, -100, b"/", 0, struct.pack("QQQQ", 0, 1, 0, 0), 32)
#: K04 io_uring
refused(425, 8, ctypes.create_string_buffer(256))
refused(426, 3, 1, 1, 0, None, 0)
refused(427, 3, 0, None, 0)
#: K05 bpf
for command in (0, 5, 18):
    refused(321, command, ctypes.create_string_buffer(144), 144)
#: K06 perf
refused(298, ctypes.create_string_buffer(144), 0, -1, -1, 0)
#: K07 userfaultfd
for flags in (0, 1, 0x80000):
    refused(323, flags)
#: K08 keys
refused(248, b"user", b"name", b"x", 1, -3)
refused(249, b"user", b"name", None, -3)
refused(250, 0, -4, 0)
#: K09 personality
refused(135, 0x40000)
refused(135, 0xffffffff)
#: K10 memory_of_other_processes
word = ctypes.create_string_buffer(16)
vector = struct.pack("QQ", ctypes.addressof(word), 8)
for pid in (1, {pid}, os.getpid()):
    refused(310, pid, vector, 1, vector, 1, 0)
    refused(311, pid, vector, 1, vector, 1, 0)
refused(440, 3, vector, 1, 4, 0)
refused(448, 3, 0)
refused(312, 1, 1, 0, 0, 0)
#: K11 handles_of_processes
for pid in (1, {pid}, os.getpid()):
    refused(434, pid, 0)
refused(438, 3, 1, 0)
refused(424, 3, 0, None, 0)
#: K12 the_second_numbering = killed
call(0x40000000 | 39)
print("ESCAPED")
#: K12 the_second_numbering_of_a_refused_call = killed
call(0x40000000 | 520)
print("ESCAPED")
#: K12 the_32_bit_gate = killed
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
print("ESCAPED", run())
#: K13 files_by_handle
refused(303, -100, b"/", ctypes.create_string_buffer(128), ctypes.create_string_buffer(8), 0)
refused(304, -100, ctypes.create_string_buffer(128), 0)
#: K14 type_into_a_terminal
import fcntl
for fd in (0, 1, 2):
    for request in (0x5412, 0x541C, 0x5401 ^ 0x40, 0x8912):
        try:
            fcntl.ioctl(fd, request, b"x" * 64)
            print("ESCAPED", request)
        except OSError:
            pass
#: K15 the_machine
refused(169, 0xFEE1DEAD, 0x28121969, 0, None)
refused(170, b"name", 4)
refused(171, b"name", 4)
refused(175, b"", 0, b"")
refused(313, 3, b"", 0)
refused(246, 0, 0, None, 0)
refused(167, b"/tmp/x", 0)
refused(163, b"/tmp/x")
refused(172, 3)
refused(173, 0, 1, 1)
refused(227, 0, struct.pack("QQ", 0, 0))
refused(164, struct.pack("QQ", 0, 0), None)
refused(159, ctypes.create_string_buffer(256))
refused(103, 2, ctypes.create_string_buffer(64), 64)
#: K16 change_the_filter_or_the_rules
refused(317, 0, 0, None)
refused(317, 1, 8, struct.pack("HxxxxxxQ", 0, 0))
refused(157, 22, 2, struct.pack("HxxxxxxQ", 0, 0))
refused(157, 4, 1)
refused(157, 38, 0, 0, 0, 0)
refused(157, 0x59616d61, {pid}, 0, 0, 0)
refused(444, None, 0, 1)
refused(446, 3, 0)
#: K17 odd_memory
refused(329, -1, 0)
refused(330, 0, 0)
refused(447, 0)
refused(216, 0, 0, 0, 0, 0)
refused(279, 0, 0, None, None, None, 0)
refused(256, 0, 0, None, None)
refused(237, 0, 0, 0, None, 0, 0)
