//! A certificate authority behind a program: a request on its standard input, a chain on its standard output.
//!
//! What it answers is checked like files that somebody brings, before anything of it is used; and the first answer's root
//! is kept in the state folder, so that no later one can split the mesh in two.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use stolos_pki::{CaCerts, Certificate, IntermediateRequest};
use stolos_spec::Mesh;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::{CERTIFICATE, State, read};
use crate::Error;

/// How long the program may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer that is read: a chain is a few kilobytes.
const LONGEST: u64 = 1 << 20;
/// How much of what it said last is repeated.
const LAST_WORDS: usize = 2000;

impl State {
    /// A signing certificate for `cluster` by the program `command`.
    pub(super) async fn issue_by(
        &self,
        command: &[String],
        mesh: &Mesh,
        cluster: &str,
        now: SystemTime,
    ) -> Result<CaCerts, Error> {
        // One at a time: the first one's root is what the others are compared with.
        let _turn = self.turn.lock().await;
        let trust = &mesh.trust;
        let failed = |why: String| Error::Root(format!("the program `{}` {why}", command.join(" ")));
        let request = IntermediateRequest::new(cluster, &trust.organization, &trust.domain);
        let request = request.map_err(|error| Error::Root(error.to_string()))?;
        let hours = trust.intermediates.validity.as_secs() / 3600;
        let facts = [
            ("STOLOS_MESH", mesh.name.to_string()),
            ("STOLOS_CLUSTER", cluster.to_owned()),
            ("STOLOS_VALIDITY_HOURS", hours.to_string()),
        ];
        let answer = ask(command, &request.csr_pem, &facts, PATIENCE).await.map_err(failed)?;
        let answer = String::from_utf8(answer).map_err(|_| failed("answered with something that is no text".into()))?;
        let files = CaCerts::from_answer(&request, &answer)
            .map_err(|why| failed(format!("answered with a chain that cannot be used: {why}")))?;
        // It may have become valid just now, after we began.
        let checked = files.check(now.max(SystemTime::now()));
        let checked = checked.map_err(|why| failed(format!("answered with a chain that cannot be used: {why}")))?;
        let root = &checked.roots[0];
        let path = self.folder.join(CERTIFICATE);
        if path.exists() {
            let known = Certificate::from_pem(&read(&path)?).map_err(|error| Error::Root(error.to_string()))?;
            if known != *root {
                return Err(failed(format!(
                    "answered with a chain to another root than before:\n  now    {}\n  before {} ({})",
                    root.fingerprint(),
                    known.fingerprint(),
                    path.display()
                )));
            }
        } else {
            self.write(CERTIFICATE, &root.pem())?;
        }
        Ok(files)
    }
}

/// What the program answers to `input`.
async fn ask(command: &[String], input: &str, facts: &[(&str, String)], patience: Duration) -> Result<Vec<u8>, String> {
    let Some((program, arguments)) = command.split_first() else { return Err("is not named".to_owned()) };
    let mut command = Command::new(Path::new(program));
    command.args(arguments).envs(facts.iter().map(|(name, value)| (*name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The passphrase of a root of ours is none of its business.
    command.env_remove("STOLOS_PASSPHRASE").process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("could not be run: {error}"))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let talk = async {
        let asking = async {
            if let Some(mut stdin) = stdin {
                // One that answers without reading its input is no less of a program.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let answering = async {
            let mut answer = Vec::new();
            if let Some(stdout) = stdout {
                let _ = stdout.take(LONGEST).read_to_end(&mut answer).await;
            }
            answer
        };
        let ((), answer, words) = tokio::join!(asking, answering, last_words(stderr));
        (child.wait().await, answer, words)
    };
    match tokio::time::timeout(patience, talk).await {
        Ok((Ok(status), answer, _)) if status.success() => Ok(answer),
        Ok((Ok(status), _, words)) => {
            let how = status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"));
            let words = if words.is_empty() { "it said nothing".to_owned() } else { format!("it said: {words}") };
            Err(format!("ended with {how}; {words}"))
        }
        Ok((Err(error), ..)) => Err(format!("could not be waited for: {error}")),
        Err(_) => Err(format!("had not answered after {} s, and was stopped", patience.as_secs())),
    }
}

/// The end of what it says, however much that is.
async fn last_words(from: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let (mut kept, mut buffer) = (Vec::new(), vec![0; 4096]);
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        let extra = kept.len().saturating_sub(LAST_WORDS);
        kept.drain(..extra);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn a_program_is_heard_and_bounded() {
        let long = Duration::from_secs(60);
        let said = |result: Result<Vec<u8>, String>| String::from_utf8(result.unwrap()).unwrap();
        assert_eq!(said(ask(&shell("cat; echo $X"), "request\n", &[("X", "y".into())], long).await), "request\ny\n");
        let lost = ask(&shell("echo no such profile >&2; exit 3"), "", &[], long).await;
        assert_eq!(lost.unwrap_err(), "ended with exit code 3; it said: no such profile");
        assert_eq!(ask(&shell("exit 1"), "", &[], long).await.unwrap_err(), "ended with exit code 1; it said nothing");
        let silent = ask(&shell("sleep 600"), "", &[], Duration::from_millis(50)).await;
        assert_eq!(silent.unwrap_err(), "had not answered after 0 s, and was stopped");
        let nowhere = ask(&["/nowhere/ca".to_owned()], "", &[], long).await.unwrap_err();
        assert!(nowhere.starts_with("could not be run: No such file"), "{nowhere}");
        // It need not read what it is given, and may say more than anybody wants to keep.
        let big = "x".repeat(1 << 20);
        let lost = ask(&shell("seq 1 100000 >&2; exit 2"), &big, &[], long).await.unwrap_err();
        assert!(lost.ends_with("99999\n100000") && lost.len() < 2 * LAST_WORDS, "{lost}");
    }
}
