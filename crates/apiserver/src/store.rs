//! Keeps objects on disk, so that an acknowledged write survives `kill -9`.
//!
//! A [`Store`] makes two honest promises: [`append`](Store::append) returns when the changes are durable, and
//! [`load`](Store::load) gives back everything that was ever acknowledged. [`Log`] keeps them with one append-only
//! file: frames of length, CRC32C and payload, one `fdatasync` per group of changes, rewritten when most of it is
//! dead. Nothing here knows what an object means.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

/// Where an object lives: `pods`, `default`, `web-0`. Cluster-scoped objects have an empty namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The resource: `pods`, `deployments.apps`.
    pub resource: Arc<str>,
    /// The namespace, empty for cluster-scoped objects.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// One change of one object, at a revision of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Which object.
    pub key: Key,
    /// The revision that this change makes; strictly growing over all changes.
    pub revision: u64,
    /// The object as JSON, or `None` when it is gone.
    pub value: Option<Bytes>,
}

/// Everything a [`Store`] holds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The last revision that was acknowledged.
    pub revision: u64,
    /// The live objects, each as a change with a value.
    pub objects: Vec<Change>,
}

/// Durable storage. Called from one thread only.
pub trait Store: Send {
    /// Everything acknowledged so far. Called once, before the first append.
    ///
    /// # Errors
    ///
    /// When the data cannot be read, or is damaged in a way that a crash does not explain.
    fn load(&mut self) -> Result<Loaded, Error>;

    /// Makes `changes` durable, in order.
    ///
    /// # Errors
    ///
    /// When that is not certain. After an error every later call fails too: nobody knows what the disk holds.
    fn append(&mut self, changes: &[Change]) -> Result<(), Error>;
}

/// Why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// A damaged record with intact ones behind it: not what a crash leaves behind.
    #[error("{} is damaged at byte {offset}, before records that are intact; restore it from a copy", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the damage begins.
        offset: u64,
    },
    /// The file is of another program or a later version.
    #[error("{} is not a log of this server", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Another process has it open.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// An earlier append failed; nothing is accepted until a restart has read what the disk really holds.
    #[error("storage stopped accepting writes after an earlier failure; restart the server once the disk is well")]
    Stopped,
}

/// A store that forgets at the end of the process.
#[derive(Debug, Default)]
pub struct Memory;

impl Store for Memory {
    fn load(&mut self) -> Result<Loaded, Error> {
        Ok(Loaded::default())
    }

    fn append(&mut self, _: &[Change]) -> Result<(), Error> {
        Ok(())
    }
}

const MAGIC: &[u8; 8] = b"STOLOS1\n";
const FRAME_HEAD: usize = 8;
/// A log is not rewritten below this size.
const REWRITE_FROM: u64 = 4 << 20;

/// The append-only log.
pub struct Log {
    path: PathBuf,
    medium: Box<dyn Medium>,
    /// Held for the life of the log, so that no second process writes to the same folder.
    _lock: File,
    live: HashMap<Key, (u64, Bytes)>,
    live_bytes: u64,
    revision: u64,
    size: u64,
    rewrite_from: u64,
    stopped: bool,
}

/// What a log writes to: a file, or in tests a disk with faults.
trait Medium: Send {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
}

impl Medium for File {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Write::write_all(self, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

impl Log {
    /// Opens or creates the log in the folder `dir`.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written or another process has it open.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let lock_path = dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|source| Error::Io { what: "open", path: lock_path.clone(), source })?;
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::InUse { path: lock_path });
        }
        let path = dir.join("objects.log");
        let medium = Box::new(open_for_append(&path)?);
        Ok(Self {
            path,
            medium,
            _lock: lock,
            live: HashMap::new(),
            live_bytes: 0,
            revision: 0,
            size: 0,
            rewrite_from: REWRITE_FROM,
            stopped: false,
        })
    }

    fn remember(&mut self, change: &Change) {
        self.revision = self.revision.max(change.revision);
        let old = match &change.value {
            Some(value) => {
                self.live_bytes += weight(&change.key, value);
                self.live.insert(change.key.clone(), (change.revision, value.clone()))
            }
            None => self.live.remove(&change.key),
        };
        if let Some((_, value)) = old {
            self.live_bytes -= weight(&change.key, &value);
        }
    }

    fn write(&mut self, changes: &[Change]) -> Result<(), Error> {
        let frame = frame(changes, self.revision);
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { what, path, source }
        };
        self.medium.write_all(&frame).map_err(io("write to", &self.path))?;
        self.medium.sync().map_err(io("sync", &self.path))?;
        self.size += frame.len() as u64;
        Ok(())
    }

    /// Writes what is alive to a new file and puts it in the log's place in one step.
    fn rewrite(&mut self) -> Result<(), Error> {
        let fresh = self.path.with_extension("log.new");
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { what, path, source }
        };
        let mut bytes = MAGIC.to_vec();
        let mut changes: Vec<_> = self
            .live
            .iter()
            .map(|(key, (revision, value))| Change {
                key: key.clone(),
                revision: *revision,
                value: Some(value.clone()),
            })
            .collect();
        changes.sort_by_key(|change| change.revision);
        for chunk in changes.chunks(256) {
            bytes.extend(frame(chunk, self.revision));
        }
        bytes.extend(frame(&[], self.revision));
        let mut file = File::create(&fresh).map_err(io("create", &fresh))?;
        Write::write_all(&mut file, &bytes).map_err(io("write to", &fresh))?;
        file.sync_all().map_err(io("sync", &fresh))?;
        std::fs::rename(&fresh, &self.path).map_err(io("replace", &self.path))?;
        sync_folder(&self.path)?;
        self.medium = Box::new(open_for_append(&self.path)?);
        self.size = bytes.len() as u64;
        Ok(())
    }
}

impl Store for Log {
    fn load(&mut self) -> Result<Loaded, Error> {
        let path = self.path.clone();
        let io = |what| {
            let path = path.clone();
            move |source| Error::Io { what, path, source }
        };
        let mut bytes = Vec::new();
        File::open(&self.path).and_then(|mut f| f.read_to_end(&mut bytes)).map_err(io("read"))?;
        if bytes.len() < MAGIC.len() {
            if !MAGIC.starts_with(&bytes) {
                return Err(Error::Foreign { path: self.path.clone() });
            }
            // New, or torn before the first word: start over.
            let file = OpenOptions::new().write(true).open(&self.path).map_err(io("open"))?;
            file.set_len(0).map_err(io("truncate"))?;
            self.medium.write_all(MAGIC).map_err(io("write to"))?;
            self.medium.sync().map_err(io("sync"))?;
            sync_folder(&self.path)?;
            self.size = MAGIC.len() as u64;
            return Ok(Loaded::default());
        }
        if !bytes.starts_with(MAGIC) {
            return Err(Error::Foreign { path: self.path.clone() });
        }
        let bytes = Bytes::from(bytes);
        let mut at = MAGIC.len();
        while at < bytes.len() {
            match read_frame(&bytes, at) {
                Some((revision, changes, next)) => {
                    self.revision = self.revision.max(revision);
                    for change in &changes {
                        self.remember(change);
                    }
                    at = next;
                }
                None => {
                    if intact_frame_behind(&bytes, at) {
                        return Err(Error::Damaged { path: self.path.clone(), offset: at as u64 });
                    }
                    tracing::warn!(path = %self.path.display(), at, "cutting off a record that was never acknowledged");
                    let file = OpenOptions::new().write(true).open(&self.path).map_err(io("open"))?;
                    file.set_len(at as u64).map_err(io("truncate"))?;
                    file.sync_all().map_err(io("sync"))?;
                    break;
                }
            }
        }
        self.size = at as u64;
        // Values read from the file share one big buffer; give each its own, so that the buffer can go.
        for (_, value) in self.live.values_mut() {
            *value = Bytes::copy_from_slice(value);
        }
        let objects = self
            .live
            .iter()
            .map(|(key, (revision, value))| Change {
                key: key.clone(),
                revision: *revision,
                value: Some(value.clone()),
            })
            .collect();
        Ok(Loaded { revision: self.revision, objects })
    }

    fn append(&mut self, changes: &[Change]) -> Result<(), Error> {
        if self.stopped {
            return Err(Error::Stopped);
        }
        for change in changes {
            self.revision = self.revision.max(change.revision);
        }
        let written = self.write(changes).and_then(|()| {
            for change in changes {
                self.remember(change);
            }
            if self.size > self.rewrite_from && self.size > 3 * self.live_bytes { self.rewrite() } else { Ok(()) }
        });
        self.stopped = written.is_err();
        written
    }
}

fn weight(key: &Key, value: &Bytes) -> u64 {
    (key.resource.len() + key.namespace.len() + key.name.len() + value.len() + 32) as u64
}

fn open_for_append(path: &Path) -> Result<File, Error> {
    use std::os::unix::fs::OpenOptionsExt as _;
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(|source| Error::Io {
        what: "open",
        path: path.to_owned(),
        source,
    })
}

fn sync_folder(file: &Path) -> Result<(), Error> {
    let dir = file.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| Error::Io {
        what: "sync",
        path: dir.to_owned(),
        source,
    })
}

fn frame(changes: &[Change], revision: u64) -> Vec<u8> {
    let mut out = vec![0; FRAME_HEAD];
    out.extend(revision.to_le_bytes());
    for change in changes {
        out.extend(change.revision.to_le_bytes());
        for text in [&*change.key.resource, &change.key.namespace, &change.key.name] {
            out.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend(text.as_bytes());
        }
        match &change.value {
            Some(value) => {
                out.push(1);
                out.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
                out.extend_from_slice(value);
            }
            None => out.push(0),
        }
    }
    let length = u32::try_from(out.len() - FRAME_HEAD).unwrap_or(u32::MAX).to_le_bytes();
    let sum = crc32c::crc32c_append(crc32c::crc32c(&length), &out[FRAME_HEAD..]).to_le_bytes();
    out[..4].copy_from_slice(&length);
    out[4..8].copy_from_slice(&sum);
    out
}

/// The frame at `at`: its revision, its changes and where the next one begins. `None` when it is torn or damaged.
fn read_frame(bytes: &Bytes, at: usize) -> Option<(u64, Vec<Change>, usize)> {
    let (payload, next) = frame_payload(bytes, at)?;
    let mut reader = Reader { bytes: payload, at: 0 };
    let revision = reader.u64()?;
    let mut changes = Vec::new();
    while reader.at < reader.bytes.len() {
        let revision = reader.u64()?;
        let (resource, namespace, name) = (reader.text()?, reader.text()?, reader.text()?);
        let value = if reader.take(1)?[0] == 1 {
            let length = reader.u32()?;
            Some(reader.take(length)?)
        } else {
            None
        };
        changes.push(Change { key: Key { resource: resource.into(), namespace, name }, revision, value });
    }
    Some((revision, changes, next))
}

fn frame_payload(bytes: &Bytes, at: usize) -> Option<(Bytes, usize)> {
    let length_bytes: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    let sum = u32::from_le_bytes(bytes.get(at + 4..at + 8)?.try_into().ok()?);
    let end = (at + FRAME_HEAD).checked_add(u32::from_le_bytes(length_bytes) as usize)?;
    let payload = bytes.get(at + FRAME_HEAD..end)?;
    let right = crc32c::crc32c_append(crc32c::crc32c(&length_bytes), payload) == sum;
    right.then(|| (bytes.slice(at + FRAME_HEAD..end), end))
}

/// Whether the damaged frame at `at` says it ends where an intact one begins.
fn intact_frame_behind(bytes: &Bytes, at: usize) -> bool {
    let Some(length) = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes) else {
        return false;
    };
    (at + FRAME_HEAD).checked_add(length as usize).is_some_and(|next| frame_payload(bytes, next).is_some())
}

struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    fn take(&mut self, n: usize) -> Option<Bytes> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len())?;
        let taken = self.bytes.slice(self.at..end);
        self.at = end;
        Some(taken)
    }

    fn u32(&mut self) -> Option<usize> {
        Some(u32::from_le_bytes(self.take(4)?[..].try_into().ok()?) as usize)
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?[..].try_into().ok()?))
    }

    fn text(&mut self) -> Option<String> {
        let length = self.u32()?;
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(name: &str, revision: u64, value: &str) -> Change {
        let key = Key { resource: "configmaps".into(), namespace: "default".into(), name: name.into() };
        Change { key, revision, value: Some(Bytes::copy_from_slice(value.as_bytes())) }
    }

    fn gone(name: &str, revision: u64) -> Change {
        Change { value: None, ..put(name, revision, "") }
    }

    fn names(loaded: &Loaded) -> Vec<(String, String)> {
        let text = |c: &Change| String::from_utf8(c.value.clone().unwrap().to_vec()).unwrap();
        let mut names: Vec<_> = loaded.objects.iter().map(|c| (c.key.name.clone(), text(c))).collect();
        names.sort();
        names
    }

    fn reopen(dir: &Path) -> (Log, Loaded) {
        let mut log = Log::open(dir).unwrap();
        let loaded = log.load().unwrap();
        (log, loaded)
    }

    #[test]
    fn what_was_appended_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, loaded) = reopen(dir.path());
        assert_eq!(loaded.revision, 0);
        log.append(&[put("a", 1, "1"), put("b", 2, "2")]).unwrap();
        log.append(&[put("a", 3, "3"), gone("b", 4)]).unwrap();
        drop(log);
        let (_, loaded) = reopen(dir.path());
        assert_eq!(loaded.revision, 4, "the revision of a deletion counts");
        assert_eq!(names(&loaded), [("a".into(), "3".into())]);
    }

    #[test]
    fn a_torn_tail_is_cut_off_wherever_it_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = reopen(dir.path());
        log.append(&[put("a", 1, "1")]).unwrap();
        let whole = log.size;
        log.append(&[put("b", 2, "2")]).unwrap();
        let full = std::fs::read(dir.path().join("objects.log")).unwrap();
        drop(log);
        for cut in whole as usize..full.len() {
            std::fs::write(dir.path().join("objects.log"), &full[..cut]).unwrap();
            let (mut log, loaded) = reopen(dir.path());
            assert_eq!(names(&loaded), [("a".into(), "1".into())], "cut at {cut}");
            log.append(&[put("c", 3, "3")]).unwrap();
            drop(log);
            assert_eq!(names(&reopen(dir.path()).1).len(), 2, "and it goes on after a cut at {cut}");
        }
    }

    #[test]
    fn damage_before_intact_records_is_not_taken_for_a_torn_tail() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = reopen(dir.path());
        log.append(&[put("a", 1, "11111")]).unwrap();
        log.append(&[put("b", 2, "22222")]).unwrap();
        drop(log);
        let path = dir.path().join("objects.log");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[30] ^= 0xff;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(Log::open(dir.path()).unwrap().load(), Err(Error::Damaged { offset: 8, .. })));
    }

    #[test]
    fn it_is_rewritten_when_most_of_it_is_dead() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = reopen(dir.path());
        log.rewrite_from = 4096;
        let value = "x".repeat(100);
        for revision in 1..500 {
            log.append(&[put(if revision % 2 == 0 { "a" } else { "b" }, revision, &value)]).unwrap();
        }
        log.append(&[gone("b", 500)]).unwrap();
        assert!(log.size < 8192, "{}", log.size);
        drop(log);
        let (_, loaded) = reopen(dir.path());
        assert_eq!((loaded.revision, loaded.objects.len()), (500, 1));
    }

    #[test]
    fn two_processes_do_not_share_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let _log = Log::open(dir.path()).unwrap();
        assert!(matches!(Log::open(dir.path()), Err(Error::InUse { .. })));
    }

    /// A disk that does what it is told to, until it does not.
    struct Faulty {
        inner: File,
        room: usize,
        sync_fails: bool,
    }

    impl Medium for Faulty {
        fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
            let fits = bytes.len().min(self.room);
            self.room -= fits;
            Write::write_all(&mut self.inner, &bytes[..fits])?;
            if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }

        fn sync(&mut self) -> io::Result<()> {
            if self.sync_fails { Err(io::Error::other("I/O error")) } else { self.inner.sync_data() }
        }
    }

    #[test]
    fn a_full_disk_and_a_failing_sync_stop_writes_for_good() {
        for (room, sync_fails) in [(10, false), (usize::MAX, true)] {
            let dir = tempfile::tempdir().unwrap();
            let (mut log, _) = reopen(dir.path());
            log.append(&[put("a", 1, "1")]).unwrap();
            let inner = open_for_append(&log.path).unwrap();
            log.medium = Box::new(Faulty { inner, room, sync_fails });
            assert!(matches!(log.append(&[put("b", 2, "2")]), Err(Error::Io { .. })));
            log.medium = Box::new(open_for_append(&log.path).unwrap());
            assert!(matches!(log.append(&[put("c", 3, "3")]), Err(Error::Stopped)), "never retried");
            drop(log);
            let loaded = names(&reopen(dir.path()).1);
            assert!(loaded.contains(&("a".into(), "1".into())), "what was acknowledged is there");
            assert!(!loaded.iter().any(|(name, _)| name == "c"));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn no_file_makes_the_reader_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let dir = tempfile::tempdir().unwrap();
            let mut bytes = MAGIC.to_vec();
            bytes.extend(frame(&[put("a", 1, "1")], 1));
            bytes.extend(tail);
            std::fs::write(dir.path().join("objects.log"), bytes).unwrap();
            let loaded = Log::open(dir.path()).unwrap().load();
            if let Ok(loaded) = loaded {
                prop_assert_eq!(names(&loaded).len(), 1);
            }
        }
    }
}
