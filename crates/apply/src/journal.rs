use std::fs::File;
use std::io::Write as _;

use serde::Serialize;
use stolos_plan::StepId;
use tokio::sync::{mpsc, oneshot};

use crate::crash;

/// What happened to a step.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "event", content = "why")]
pub(crate) enum Event {
    Started,
    Succeeded,
    Failed(String),
}

#[derive(Serialize)]
struct Note<'a> {
    at: jiff::Timestamp,
    run: &'a str,
    step: &'a StepId,
    #[serde(flatten)]
    event: &'a Event,
}

/// The record of a run, one JSON object per line. A note is on disk before the caller goes on; notes that come at the
/// same time share one `fsync`.
#[derive(Clone)]
pub(crate) struct Journal {
    run: std::sync::Arc<str>,
    lines: mpsc::Sender<(String, oneshot::Sender<Result<(), String>>)>,
}

impl Journal {
    /// Starts the one writer of `file`; it ends when the last journal is dropped.
    pub(crate) fn new(file: File) -> Self {
        let (lines, waiting) = mpsc::channel(256);
        tokio::task::spawn_blocking(move || write(file, waiting));
        Self { run: uuid::Uuid::new_v4().to_string().into(), lines }
    }

    /// Writes a note.
    pub(crate) async fn note(&self, step: &StepId, event: &Event) -> Result<(), String> {
        let note = Note { at: jiff::Timestamp::now(), run: &self.run, step, event };
        let line = serde_json::to_string(&note).map_err(|e| e.to_string())?;
        let (written, wait) = oneshot::channel();
        let closed = || "could not write the journal: its writer has ended".to_owned();
        self.lines.send((line, written)).await.map_err(|_| closed())?;
        wait.await.map_err(|_| closed())?
    }
}

fn write(mut file: File, mut waiting: mpsc::Receiver<(String, oneshot::Sender<Result<(), String>>)>) {
    while let Some(first) = waiting.blocking_recv() {
        let mut batch = vec![first];
        while let Ok(next) = waiting.try_recv() {
            batch.push(next);
        }
        let mut text = String::new();
        for (line, _) in &batch {
            text.push_str(line);
            text.push('\n');
        }
        let result = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
        let result = result.map_err(|error| format!("could not write the journal: {error}"));
        for (_, written) in batch {
            crash::pass(crash::Point::Journal);
            // Nobody waits any more when the run was dropped.
            let _ = written.send(result.clone());
        }
    }
}
