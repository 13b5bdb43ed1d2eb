//! Who asked what of which member: a line of JSON each.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use stolos_serve::Stop;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Lines that may wait for the disk.
const WAITING: usize = 8192;
/// When a file is as large, the next is begun.
const LARGEST: u64 = 64 << 20;
/// Files that are kept besides the current one.
const KEPT: u32 = 4;
/// After so long it is said how many lines are missing, if nothing else is to be written.
const SOON: Duration = Duration::from_secs(10);
/// The longest path that is written whole, in bytes.
const LONGEST_PATH: usize = 2048;

/// What is written of one request: neither its query, which may hold what is typed into a pod, nor a body, nor a token.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    pub(super) time: String,
    pub(super) stage: Stage,
    pub(super) user: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) groups: Vec<String>,
    /// Who that really is, where they act for somebody else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) impersonated_by: Option<String>,
    pub(super) member: String,
    /// In whose name the member was asked.
    #[serde(rename = "as")]
    pub(super) name: Name,
    pub(super) verb: &'static str,
    pub(super) path: String,
    /// The answer's code; none where the client left before.
    pub(super) code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) duration_ms: Option<u64>,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Stage {
    /// It goes on from here: a watch, a log that is followed, a session.
    Begun,
    /// It is over.
    Ended,
}

/// In whose name a member was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Name {
    /// The caller's.
    Caller,
    /// The hub's own.
    Hub,
}

/// Takes lines, and forgets none without saying so.
#[derive(Clone)]
pub struct Audit {
    lines: mpsc::Sender<String>,
    missing: Arc<Missing>,
}

/// Lines that are not there, since the last that said so.
#[derive(Debug, Default)]
struct Missing {
    /// There was no room for them.
    lost: AtomicU64,
    /// They would have said that somebody was refused who had been refused all the time.
    refused: AtomicU64,
}

impl Missing {
    /// The line that says so, if there is something to say.
    fn line(&self) -> Option<String> {
        let (lost, refused) = (self.lost.swap(0, Ordering::Relaxed), self.refused.swap(0, Ordering::Relaxed));
        let line = serde_json::json!({"time": now(), "lost": lost, "refused": refused});
        (lost > 0 || refused > 0).then(|| format!("{line}\n"))
    }
}

/// The file that the lines go to, as long as it is open.
pub struct Log {
    stop: Stop,
    writing: JoinHandle<()>,
}

impl Log {
    /// Goes on with `path` (mode 0600), or begins it. Older files are `path.1` to `path.4`.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<(Self, Audit)> {
        let mut file = Rotated::open(path, LARGEST)?;
        let (lines, mut waiting) = mpsc::channel::<String>(WAITING);
        let (stop, missing) = (Stop::new(), Arc::<Missing>::default());
        let (asked, counted) = (stop.clone(), Arc::clone(&missing));
        let writing = tokio::spawn(async move {
            let mut batch = Vec::new();
            loop {
                let last = tokio::select! {
                    biased;
                    some = waiting.recv_many(&mut batch, 256) => some == 0,
                    () = asked.asked() => true,
                    () = tokio::time::sleep(SOON) => false,
                };
                batch.extend(counted.line());
                // Some kilobytes into the page cache: shorter than the way to a thread for it.
                if !batch.is_empty()
                    && let Err(error) = file.write(&batch.concat())
                {
                    counted.lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    tracing::error!(%error, file = %file.path.display(), "the audit log cannot be written");
                }
                batch.clear();
                if last {
                    return;
                }
            }
        });
        Ok((Self { stop, writing }, Audit { lines, missing }))
    }

    /// Writes what waits, and closes it.
    pub async fn close(self) {
        self.stop.ask();
        let _ = self.writing.await;
    }
}

impl Audit {
    fn put(&self, entry: &Entry) {
        let Ok(line) = serde_json::to_string(entry) else { return };
        if self.lines.try_send(line + "\n").is_err() {
            self.missing.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Begins the record of a request, which is written when it is dropped.
    pub(super) fn begin(&self, mut entry: Entry) -> Record {
        if entry.path.len() > LONGEST_PATH {
            let end = (0..=LONGEST_PATH).rev().find(|end| entry.path.is_char_boundary(*end)).unwrap_or(0);
            entry.path.truncate(end);
            entry.path.push('…');
        }
        Record { audit: self.clone(), entry: Some(entry), began: Instant::now() }
    }
}

/// One request, until it is over.
pub(super) struct Record {
    audit: Audit,
    entry: Option<Entry>,
    began: Instant,
}

impl Record {
    /// Who asks.
    pub(super) fn user(&self) -> Option<&str> {
        self.entry.as_ref().map(|entry| entry.user.as_str())
    }

    /// The answer's code.
    pub(super) fn answered(&mut self, code: u16) {
        if let Some(entry) = &mut self.entry {
            entry.code = Some(code);
        }
    }

    /// Says that it goes on from here.
    pub(super) fn goes_on(&self) {
        if let Some(entry) = &self.entry {
            self.audit.put(entry);
        }
    }

    /// Counts this refusal instead of writing it: who is refused all the time must not push out what was done.
    pub(super) fn count(mut self) {
        self.entry = None;
        self.audit.missing.refused.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Some(entry) = &mut self.entry else { return };
        entry.stage = Stage::Ended;
        entry.duration_ms = Some(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.audit.put(entry);
    }
}

/// The time as audit logs have it.
pub(super) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// A file that is put aside when it is large.
struct Rotated {
    path: PathBuf,
    file: File,
    size: u64,
    largest: u64,
}

impl Rotated {
    fn open(path: &Path, largest: u64) -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let known = file.metadata()?;
        if known.is_file() && known.permissions().mode() & 0o077 != 0 {
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        }
        // What is no file, such as a terminal or a pipe, is never put aside.
        let largest = if known.is_file() { largest } else { u64::MAX };
        Ok(Self { path: path.to_owned(), file, size: known.len(), largest })
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if self.size > 0 && self.size + text.len() as u64 > self.largest {
            let old = |number: u32| {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{number}"));
                PathBuf::from(name)
            };
            // It is not there when the last attempt got as far as that, or somebody has moved it: no reason to move more.
            if self.path.exists() {
                let files = (1..KEPT).rev().map(|number| (old(number), old(number + 1)));
                for (from, to) in files.chain([(self.path.clone(), old(1))]) {
                    match std::fs::rename(from, to) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
            }
            *self = Self::open(&self.path, self.largest)?;
        }
        self.file.write_all(text.as_bytes())?;
        self.size += text.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn entry(path: &str) -> Entry {
        Entry {
            time: "2026-01-01T00:00:00.000000Z".into(),
            stage: Stage::Begun,
            user: "jane".into(),
            groups: vec!["dev".into()],
            impersonated_by: None,
            member: "eu".into(),
            name: Name::Caller,
            verb: "get",
            path: path.into(),
            code: None,
            duration_ms: None,
        }
    }

    #[tokio::test]
    async fn a_request_is_a_line_and_one_that_goes_on_is_two() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, "").unwrap();
        let (log, audit) = Log::open(&path).unwrap();
        let mut record = audit.begin(entry("/api/v1/pods"));
        record.answered(200);
        record.goes_on();
        drop(record);
        audit.begin(entry("/api/v1/secrets")).count();
        drop(audit.begin(entry(&"ä".repeat(LONGEST_PATH))));
        log.close().await;
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mut shown = lines[1].clone();
        assert!(shown["durationMs"].take().is_u64());
        insta::assert_snapshot!(text.lines().next().unwrap(), @r#"{"time":"2026-01-01T00:00:00.000000Z","stage":"begun","user":"jane","groups":["dev"],"member":"eu","as":"caller","verb":"get","path":"/api/v1/pods","code":200}"#);
        insta::assert_snapshot!(shown, @r#"{"as":"caller","code":200,"durationMs":null,"groups":["dev"],"member":"eu","path":"/api/v1/pods","stage":"ended","time":"2026-01-01T00:00:00.000000Z","user":"jane","verb":"get"}"#);
        assert_eq!((&lines[3]["refused"], &lines[3]["lost"], lines.len()), (&1.into(), &0.into(), 4));
        assert_eq!((lines[2]["code"].is_null(), lines[2]["path"].as_str().unwrap().chars().count()), (true, 1025));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_somebody_moved_is_begun_again_and_older_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut file = Rotated::open(&path, 10).unwrap();
        file.write("line 0\n").unwrap();
        file.write("line 1\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write("line 2\n").unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!((read("audit.jsonl").as_str(), read("audit.jsonl.1").as_str()), ("line 2\n", "line 0\n"));
    }

    #[test]
    fn what_is_no_file_is_never_put_aside() {
        let mut nowhere = Rotated::open(Path::new("/dev/null"), 10).unwrap();
        for _ in 0..4 {
            nowhere.write("much more than ten bytes\n").unwrap();
        }
    }

    #[test]
    fn large_files_are_put_aside_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut file = Rotated::open(&path, 10).unwrap();
        for number in 0..7 {
            file.write(&format!("line {number}\n")).unwrap();
        }
        let mut found: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                format!("{name}: {}", std::fs::read_to_string(path).unwrap().trim_end())
            })
            .collect();
        found.sort();
        let expected = ["", ".1", ".2", ".3", ".4"];
        let mut expected: Vec<_> =
            expected.iter().enumerate().map(|(age, name)| format!("audit.jsonl{name}: line {}", 6 - age)).collect();
        expected.sort();
        assert_eq!(found, expected);
    }
}
