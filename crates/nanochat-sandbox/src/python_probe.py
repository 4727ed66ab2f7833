"""Says, as one line of JSON, which files this interpreter and its standard library are made of."""
import json, os, struct, sys, sysconfig

# Extension modules whose shared libraries must be there; the others work if they need none.
for name in (
    "_bisect _blake2 _bz2 _ctypes _datetime _decimal _elementtree _hashlib _heapq _json _lzma _md5 "
    "_multibytecodec _pickle _posixsubprocess _queue _random _sha1 _sha256 _sha2 _sha512 _sha3 "
    "_socket _statistics _struct _uuid _zoneinfo array binascii cmath fcntl grp math mmap pyexpat "
    "resource select termios unicodedata zlib"
).split():
    try:
        __import__(name)
    except ImportError:
        pass

# The C library loads it when a thread is ended, and ends the process where it is not found.
try:
    import ctypes
    ctypes.CDLL("libgcc_s.so.1")
except (ImportError, OSError):
    pass

python = os.path.realpath(sys.executable)


def loader(path):
    """The path of the dynamic loader that an ELF file names; None for a static one."""
    with open(path, "rb") as f:
        head = f.read(64)
        if head[:5] != b"\x7fELF\x02":
            return None
        start, = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        for i in range(count):
            f.seek(start + i * size)
            kind, _, offset, _, _, length = struct.unpack("<IIQQQQ", f.read(40))
            if kind == 3:
                f.seek(offset)
                return f.read(length).rstrip(b"\0").decode()


paths = sysconfig.get_paths()
folders = {os.path.realpath(paths[name]) for name in ("stdlib", "platstdlib")}
folders |= {os.path.realpath(p) for p in sys.path if p.endswith("lib-dynload") and os.path.isdir(p)}
folders = sorted(f for f in folders if not any(f.startswith(g + "/") for g in folders))
inside = lambda path: any(path.startswith(f + "/") for f in folders)

files, links = {python}, {}
for line in open("/proc/self/maps"):
    path = line.split(None, 5)[-1].rstrip("\n")
    if path.startswith("/") and ".so" in os.path.basename(path) and os.path.isfile(path):
        files.add(path)
for path in list(files):
    folder, name = os.path.split(path)
    stem = name.split(".so")[0] + ".so"
    for other in os.listdir(folder) if ".so" in name and not inside(path) else ():
        full = os.path.join(folder, other)
        if other != name and other.startswith(stem) and os.path.realpath(full) == path:
            links[full] = path
named = loader(python)
if named and os.path.realpath(named) != named:
    links[named] = os.path.realpath(named)

print(json.dumps({
    "exe": python,
    "version": sys.version.split()[0],
    "enough": sys.version_info >= (3, 8),
    "folders": folders,
    "hidden": [h for f in folders for n in ("site-packages", "dist-packages")
               if os.path.isdir(h := os.path.join(f, n))],
    "files": sorted(f for f in files if not inside(f)),
    "links": links,
}))
