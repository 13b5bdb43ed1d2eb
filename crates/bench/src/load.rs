//! Load that costs little: clients and the backends behind the measured server in one thread, with system calls and
//! nothing else, so that the server is what limits.
//!
//! A connection begins with the bytes of `hello`; what comes after them is up to the kind of load.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{Timespec, epoll};
use rustix::net::{RecvFlags, SendFlags};

/// How long is waited for what must happen.
const PATIENCE: Duration = Duration::from_secs(10);
/// The bytes of one small request and of its answer.
pub(crate) const REQUEST: usize = 200;
/// See [`REQUEST`].
pub(crate) const ANSWER: usize = 1000;
/// What a backend says on a connection that is only to be counted.
const GREETING: &[u8] = b"a few bytes, and the end";

/// Addresses that the measured server leads to.
pub(crate) struct Backends {
    listeners: Vec<TcpListener>,
    pub(crate) port: u16,
}

impl Backends {
    /// Backends at 127.0.0.2, 127.0.0.3, …, on one port. Several, so that the server does not run out of ports.
    pub(crate) fn new(count: u8) -> Result<Self> {
        let first = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0))?;
        let port = first.local_addr()?.port();
        let others = (1..count).map(|at| TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2 + at), port)));
        let listeners = std::iter::once(Ok(first)).chain(others).collect::<Result<Vec<_>, _>>()?;
        listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        Ok(Self { listeners, port })
    }

    /// Where they are.
    pub(crate) fn addresses(&self) -> Result<Vec<SocketAddr>> {
        Ok(self.listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
    }

    /// Their sockets, once more.
    pub(crate) fn listeners(&self) -> Result<Vec<TcpListener>> {
        Ok(self.listeners.iter().map(TcpListener::try_clone).collect::<Result<_, _>>()?)
    }

    /// Takes in what earlier load left behind.
    fn drain(&self) {
        std::thread::sleep(Duration::from_millis(50));
        self.listeners.iter().for_each(|listener| while listener.accept().is_ok() {});
    }

    fn accept(&self) -> Result<TcpStream> {
        let until = Instant::now() + PATIENCE;
        loop {
            for listener in &self.listeners {
                match listener.accept() {
                    Ok((stream, _)) => return Ok(stream),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            ensure!(Instant::now() < until, "the connection did not come through");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// A connection through the server at `target`: both its ends, `hello` through.
    fn pair(&self, target: SocketAddr, hello: &[u8]) -> Result<(TcpStream, TcpStream)> {
        let mut near = TcpStream::connect(target)?;
        near.write_all(hello)?;
        let mut far = self.accept()?;
        far.set_nonblocking(false)?;
        far.set_read_timeout(Some(PATIENCE))?;
        far.read_exact(&mut vec![0; hello.len()]).context("the first bytes did not come through")?;
        for end in [&near, &far] {
            end.set_nodelay(true)?;
            end.set_nonblocking(true)?;
        }
        Ok((near, far))
    }

    fn pairs(&self, target: SocketAddr, hello: &[u8], count: usize) -> Result<Vec<(TcpStream, TcpStream)>> {
        self.drain();
        (0..count).map(|_| self.pair(target, hello)).collect()
    }
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    /// Connections, requests or bytes.
    pub(crate) units: f64,
    /// The time that took.
    pub(crate) seconds: f64,
    /// CPU-seconds of the server in that time.
    pub(crate) cpu: f64,
    /// How long each took, in seconds, sorted; empty where that was not measured.
    pub(crate) latencies: Vec<f64>,
}

impl Measured {
    pub(crate) fn per_second(&self) -> f64 {
        self.units / self.seconds
    }

    /// Units that one CPU-second of the server is good for.
    pub(crate) fn per_cpu_second(&self) -> f64 {
        self.units / self.cpu
    }

    /// Microseconds of the server's CPU per unit.
    pub(crate) fn micros(&self) -> f64 {
        self.cpu / self.units * 1e6
    }

    /// The share of its core that the server used.
    pub(crate) fn busy(&self) -> f64 {
        self.cpu / self.seconds
    }

    /// A quantile of the latencies, in milliseconds.
    pub(crate) fn millis(&self, quantile: f64) -> f64 {
        let at = (self.latencies.len() as f64 * quantile) as usize;
        self.latencies.get(at.min(self.latencies.len().saturating_sub(1))).copied().unwrap_or_default() * 1000.0
    }
}

/// The time of a measurement: it warms up, then counts.
pub(crate) struct Clock<'a> {
    cpu: &'a dyn Fn() -> f64,
    counts_from: Instant,
    length: Duration,
    began: Option<(Instant, f64)>,
}

impl<'a> Clock<'a> {
    const WARM: Duration = Duration::from_millis(200);

    /// Counts for `length` after warming up; `cpu` says what the server has used.
    pub(crate) fn new(length: Duration, cpu: &'a dyn Fn() -> f64) -> Self {
        Self { cpu, counts_from: Instant::now() + Self::WARM, length, began: None }
    }

    /// Whether units count now; nothing when it is over. `measured` is finished then.
    pub(crate) fn tick(&mut self, measured: &mut Measured) -> Option<bool> {
        let now = Instant::now();
        match self.began {
            None if now < self.counts_from => Some(false),
            None => {
                *measured = Measured::default();
                self.began = Some((now, (self.cpu)()));
                Some(true)
            }
            Some((began, _)) if now.duration_since(began) < self.length => Some(true),
            Some((began, cpu)) => {
                measured.seconds = now.duration_since(began).as_secs_f64();
                measured.cpu = (self.cpu)() - cpu;
                measured.latencies.sort_by(f64::total_cmp);
                None
            }
        }
    }
}

struct Epoll {
    fd: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Epoll {
    fn new() -> Result<Self> {
        Ok(Self { fd: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(256) })
    }

    fn add(&self, source: impl AsFd, token: usize, flags: epoll::EventFlags) -> Result<()> {
        Ok(epoll::add(&self.fd, source, epoll::EventData::new_u64(token as u64), flags)?)
    }

    /// What is ready, at the latest after `timeout`.
    fn wait(&mut self, timeout: Duration) -> Result<Vec<usize>> {
        self.events.clear();
        let timeout = Timespec::try_from(timeout)?;
        match epoll::wait(&self.fd, rustix::buffer::spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.events.iter().map(|event| event.data.u64() as usize).collect())
    }
}

/// Nothing, where a socket has nothing.
fn received(socket: impl AsFd, buffer: &mut [u8], flags: RecvFlags) -> Result<Option<usize>> {
    match rustix::net::recv(socket, buffer, flags | RecvFlags::DONTWAIT) {
        Ok((count, _)) => Ok(Some(count)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn sent(socket: impl AsFd, bytes: &[u8]) -> Result<usize> {
    match rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(count) => Ok(count),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Connections without cryptography: `hello` there, a few bytes back, and the end, which the backend begins.
/// `at_once` of them are open at a time.
pub(crate) fn connections(
    backends: &Backends,
    target: SocketAddr,
    hello: &[u8],
    at_once: usize,
    mut clock: Clock<'_>,
) -> Result<Measured> {
    enum End {
        Client(TcpStream, usize),
        Backend(TcpStream, usize),
    }
    let mut epoll = Epoll::new()?;
    for (at, listener) in backends.listeners.iter().enumerate() {
        epoll.add(listener, at, epoll::EventFlags::IN)?;
    }
    let first = backends.listeners.len();
    let (mut ends, mut free): (Vec<Option<End>>, Vec<usize>) = (Vec::new(), Vec::new());
    let keep = |ends: &mut Vec<Option<End>>, free: &mut Vec<usize>, epoll: &Epoll, end: End| -> Result<()> {
        let at = free.pop().unwrap_or_else(|| {
            ends.push(None);
            ends.len() - 1
        });
        // A client is woken once, by the end of its connection.
        match &end {
            End::Client(stream, _) => epoll.add(stream, first + at, epoll::EventFlags::RDHUP)?,
            End::Backend(stream, _) => epoll.add(stream, first + at, epoll::EventFlags::IN)?,
        }
        ends[at] = Some(end);
        Ok(())
    };
    let dial = || -> Result<End> {
        // Over the loopback a connection is made before `connect` returns.
        let stream = TcpStream::connect(target)?;
        ensure!(sent(&stream, hello)? == hello.len(), "the first bytes did not fit");
        Ok(End::Client(stream, 0))
    };
    for _ in 0..at_once {
        let client = dial()?;
        keep(&mut ends, &mut free, &epoll, client)?;
    }
    let (mut measured, mut buffer) = (Measured::default(), vec![0; 16 * 1024]);
    let mut alive = Instant::now();
    loop {
        let Some(_) = clock.tick(&mut measured) else { return Ok(measured) };
        let ready = epoll.wait(Duration::from_millis(100))?;
        ensure!(alive.elapsed() < PATIENCE, "no connection comes through any more");
        for token in ready {
            let Some(at) = token.checked_sub(first) else {
                while let Ok((stream, _)) = backends.listeners[token].accept() {
                    keep(&mut ends, &mut free, &epoll, End::Backend(stream, 0))?;
                }
                continue;
            };
            let done = match &mut ends[at] {
                Some(End::Backend(stream, got)) => {
                    *got += received(&*stream, &mut buffer, RecvFlags::empty())?.unwrap_or(0);
                    *got >= hello.len() && sent(&*stream, GREETING)? > 0
                }
                Some(End::Client(stream, got)) => match received(&*stream, &mut buffer, RecvFlags::empty())? {
                    Some(count) => {
                        *got += count;
                        ensure!(*got == GREETING.len(), "{got} bytes instead of {}", GREETING.len());
                        true
                    }
                    None => false,
                },
                None => false,
            };
            if !done {
                continue;
            }
            let ended = ends[at].take();
            free.push(at);
            if let Some(End::Client(..)) = ended {
                measured.units += 1.0;
                alive = Instant::now();
                drop(ended);
                let client = dial()?;
                keep(&mut ends, &mut free, &epoll, client)?;
            }
        }
    }
}

/// Open connections on which requests go to and fro.
pub(crate) struct Exchange {
    epoll: Epoll,
    pairs: Vec<Pair>,
    buffer: Vec<u8>,
}

struct Pair {
    near: TcpStream,
    far: TcpStream,
    /// What is still to come of the request, at the backend, and of the answer, at the client.
    asked: usize,
    answered: usize,
    since: Instant,
}

impl Exchange {
    /// `count` connections through the server at `target`.
    pub(crate) fn open(backends: &Backends, target: SocketAddr, hello: &[u8], count: usize) -> Result<Self> {
        let epoll = Epoll::new()?;
        let mut pairs = Vec::new();
        for (at, (near, far)) in backends.pairs(target, hello, count)?.into_iter().enumerate() {
            epoll.add(&near, 2 * at, epoll::EventFlags::IN)?;
            epoll.add(&far, 2 * at + 1, epoll::EventFlags::IN)?;
            pairs.push(Pair { near, far, asked: 0, answered: 0, since: Instant::now() });
        }
        Ok(Self { epoll, pairs, buffer: vec![0; 16 * 1024] })
    }

    fn ask(&mut self, at: usize, since: Instant) -> Result<()> {
        let pair = &mut self.pairs[at];
        (pair.asked, pair.answered, pair.since) = (REQUEST, ANSWER, since);
        ensure!(sent(&pair.near, &[1; REQUEST])? == REQUEST, "a request did not fit");
        Ok(())
    }

    /// Moves on what is ready; says whose answer is complete.
    fn turn(&mut self, timeout: Duration) -> Result<Vec<usize>> {
        let mut complete = Vec::new();
        for token in self.epoll.wait(timeout)? {
            let pair = &mut self.pairs[token / 2];
            let (end, left) =
                if token % 2 == 0 { (&pair.near, &mut pair.answered) } else { (&pair.far, &mut pair.asked) };
            let Some(count) = received(end, &mut self.buffer, RecvFlags::empty())? else { continue };
            ensure!(count > 0, "the server closed a connection");
            *left = left.checked_sub(count).context("more bytes than were sent")?;
            match (token % 2, *left) {
                (0, 0) => complete.push(token / 2),
                (1, 0) => ensure!(sent(&pair.far, &[2; ANSWER])? == ANSWER, "an answer did not fit"),
                _ => {}
            }
        }
        Ok(complete)
    }

    /// As many requests as go through: the next one of each connection when the one before has been answered.
    pub(crate) fn saturate(&mut self, mut clock: Clock<'_>) -> Result<Measured> {
        let (mut measured, mut alive) = (Measured::default(), Instant::now());
        for at in 0..self.pairs.len() {
            self.ask(at, alive)?;
        }
        while clock.tick(&mut measured).is_some() {
            for at in self.turn(Duration::from_millis(100))? {
                measured.units += 1.0;
                alive = Instant::now();
                self.ask(at, alive)?;
            }
            ensure!(alive.elapsed() < PATIENCE, "no request comes through any more");
        }
        self.settle()?;
        Ok(measured)
    }

    /// `rate` requests a second, evenly; each one's time runs from when it was due, so that who is slow cannot hide it.
    pub(crate) fn paced(&mut self, rate: u32, mut clock: Clock<'_>) -> Result<Measured> {
        let mut measured = Measured::default();
        let mut idle: VecDeque<usize> = (0..self.pairs.len()).collect();
        let (mut due, step) = (Instant::now(), Duration::from_secs(1) / rate);
        while clock.tick(&mut measured).is_some() {
            while due <= Instant::now()
                && let Some(at) = idle.pop_front()
            {
                self.ask(at, due)?;
                due += step;
            }
            // Without sleeping: the core is ours, and a sleep would be measured too.
            for at in self.turn(Duration::ZERO)? {
                measured.units += 1.0;
                measured.latencies.push(self.pairs[at].since.elapsed().as_secs_f64());
                idle.push_back(at);
            }
            ensure!(due.elapsed() < PATIENCE, "no request comes through any more");
        }
        self.settle()?;
        Ok(measured)
    }

    /// One request and its answer on every connection.
    pub(crate) fn once(&mut self) -> Result<()> {
        for at in 0..self.pairs.len() {
            self.ask(at, Instant::now())?;
        }
        self.settle()
    }

    /// Waits for the answers that are still to come.
    fn settle(&mut self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while self.pairs.iter().any(|pair| pair.answered > 0) {
            self.turn(Duration::from_millis(10))?;
            ensure!(Instant::now() < until, "an answer never came");
        }
        Ok(())
    }
}

/// Bytes from the backends to the clients of `count` connections, as many as go through.
pub(crate) fn bulk(
    backends: &Backends,
    target: SocketAddr,
    hello: &[u8],
    count: usize,
    mut clock: Clock<'_>,
) -> Result<Measured> {
    let mut epoll = Epoll::new()?;
    let pairs = backends.pairs(target, hello, count)?;
    for (at, (near, far)) in pairs.iter().enumerate() {
        epoll.add(near, 2 * at, epoll::EventFlags::IN)?;
        epoll.add(far, 2 * at + 1, epoll::EventFlags::OUT)?;
    }
    let (block, mut buffer) = (vec![7; 256 * 1024], vec![0; 1 << 20]);
    let (mut measured, mut alive) = (Measured::default(), Instant::now());
    while clock.tick(&mut measured).is_some() {
        for token in epoll.wait(Duration::from_millis(100))? {
            let (near, far) = &pairs[token / 2];
            if token % 2 == 1 {
                sent(far, &block)?;
                continue;
            }
            // The kernel throws the bytes away (tcp(7), MSG_TRUNC): who reads them is not what is measured.
            let Some(bytes) = received(near, &mut buffer, RecvFlags::TRUNC)? else { continue };
            ensure!(bytes > 0, "the server closed a connection");
            measured.units += bytes as f64;
            alive = Instant::now();
        }
        ensure!(alive.elapsed() < PATIENCE, "no bytes come through any more");
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Through the simplest of all servers every kind of load arrives whole, and what was counted adds up.
    #[test]
    fn load_goes_through_a_relay_and_is_counted() {
        let backends = Backends::new(2).unwrap();
        let port = crate::peer::free_port().unwrap();
        let words: Vec<String> = std::iter::once(port.to_string())
            .chain(backends.addresses().unwrap().iter().map(SocketAddr::to_string))
            .collect();
        std::thread::spawn(move || crate::gateway::serve_relay(&words.iter().map(String::as_str).collect::<Vec<_>>()));
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(target).is_err() {
            assert!(Instant::now() < until, "the relay does not listen");
        }
        let ticks = std::cell::Cell::new(0.0);
        let cpu = || {
            ticks.set(ticks.get() + 1.0);
            ticks.get()
        };
        let clock = || Clock::new(Duration::from_millis(50), &cpu);
        let hello = [3; 500];
        let measured = [
            connections(&backends, target, &hello, 3, clock()).unwrap(),
            Exchange::open(&backends, target, &hello, 3).unwrap().saturate(clock()).unwrap(),
            Exchange::open(&backends, target, &hello, 3).unwrap().paced(1000, clock()).unwrap(),
            bulk(&backends, target, &hello, 2, clock()).unwrap(),
        ];
        for measured in &measured {
            assert!(measured.units > 0.0 && measured.seconds >= 0.05, "{measured:?}");
            assert!((measured.cpu - 1.0).abs() < 1e-9, "what was used before does not count: {measured:?}");
        }
        assert_eq!(measured[2].latencies.len() as f64, measured[2].units);
        assert!(measured[2].millis(0.5) <= measured[2].millis(0.99));
    }
}
