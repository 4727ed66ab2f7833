#: N01 tcp
import socket
s = socket.create_connection(("127.0.0.1", {port}), 2)
print("ESCAPED")
#: N01 tcp_over_ipv6
import socket
s = socket.socket(socket.AF_INET6)
s.connect(("::1", {port}))
print("ESCAPED")
#: N02 udp
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b"x", ("127.0.0.1", {port}))
print("ESCAPED")
#: N02 raw_sockets
import socket
for family, kind in ((socket.AF_INET, socket.SOCK_RAW), (socket.AF_PACKET, socket.SOCK_RAW)):
    try:
        socket.socket(family, kind, 1)
        print("ESCAPED")
    except OSError:
        pass
#: N03 abstract_unix_socket
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("\0{abstract}")
print("ESCAPED")
#: N04 unix_socket_with_a_path
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("{dir}/sock")
print("ESCAPED")
#: N05 netlink_and_stranger_families
import socket
for family in (16, 17, 31, 38, 40, 42, 44, 15, 29):
    for kind in (2, 3, 5):
        try:
            socket.socket(family, kind, 0)
            print("ESCAPED", family)
        except OSError:
            pass
#: N06 listen
import socket
s = socket.socket()
s.bind(("0.0.0.0", 0))
s.listen()
print("ESCAPED")
#: N06 resolve_a_name
import socket
print("ESCAPED", socket.getaddrinfo("example.com", 80))
#: N06 calls_on_sockets_without_the_library
import ctypes
c = ctypes.CDLL(None)
for number in (41, 42, 43, 49, 50, 53, 288, 44, 46, 307, 299):
    if c.syscall(number, 1, 1, 0, 0, 0) >= 0:
        print("ESCAPED", number)
#: N07 shared_memory_of_system_v
import ctypes
c = ctypes.CDLL(None)
for number, args in ((29, (77, 4096, 0o1600)), (64, (77, 1, 0o1600)), (68, (77, 0o1600))):
    if c.syscall(number, *args) >= 0:
        print("ESCAPED", number)
#: N07 shared_memory_with_a_name
from multiprocessing import shared_memory
shared_memory.SharedMemory(create=True, size=64)
print("ESCAPED")
#: N08 message_queue
import ctypes
if ctypes.CDLL(None).syscall(240, b"attack", 0o102, 0o600, None) >= 0:
    print("ESCAPED")
