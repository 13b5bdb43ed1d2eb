"""Types into a program in a terminal of its own, as somebody at a keyboard does: what it needs are its arguments."""

import fcntl, os, select, struct, subprocess, sys, termios, time


def resize(rows, columns):
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def own_terminal():
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def until(what):
    """Reads on until this has been printed."""
    global seen
    end = time.monotonic() + 60
    while what not in seen:
        if time.monotonic() > end or not select.select([master], [], [], 1)[0] and process.poll() is not None:
            sys.exit(f"no {what!r} in {seen!r}")
        if select.select([master], [], [], 0)[0]:
            seen += os.read(master, 65536)
    seen = seen.split(what, 1)[1]


def types(text):
    os.write(master, text)


def again(text, what):
    """Types it until this is printed."""
    global seen
    for _ in range(60):
        types(text)
        end = time.monotonic() + 1
        while what not in seen and time.monotonic() < end:
            if select.select([master], [], [], 0.1)[0]:
                seen += os.read(master, 65536)
        if what in seen:
            return until(what)
    sys.exit(f"no {what!r} in {seen!r}")


master, slave = os.openpty()
resize(33, 101)
before = termios.tcgetattr(slave)
process = subprocess.Popen(sys.argv[1:], stdin=slave, stdout=slave, stderr=slave, preexec_fn=own_terminal)
seen = b""

# The other end knows how large this terminal is, now and when that changes.
types(b"echo be''gun\r")
until(b"begun")
types(b"stty size\r")
until(b"33 101")
assert termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG) == 0, "it is not raw"
resize(40, 120)
again(b"stty size\r", b"40 120")

# Ctrl-C ends what runs there, not what runs here.
types(b"sleep 1000\r")
until(b"sleep 1000")
again(b"\x03echo af''terwards\r", b"afterwards")
types(b"exit 5\r")
code = process.wait(60)
restored = termios.tcgetattr(slave) == before
print(f"ended with {code}, the terminal is {'as it was' if restored else 'broken'}")
