//! MailHog: takes every mail and shows what it took. SMTP is a protocol in which the server speaks first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use stolos_serve::Stream;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::{Launch, tcp, web};

const SMTP: u16 = 1025;
const HTTP: u16 = 8025;
/// How many mails are kept; the oldest go first.
const MOST: usize = 100;
const LARGEST: usize = 1 << 20;

type Mails = Arc<Mutex<VecDeque<Value>>>;

pub(super) async fn run(launch: Launch) -> i32 {
    launch.container.output.line("built-in stand-in for mailhog/mailhog");
    let mails = Mails::default();
    let (kept, hostname) = (Arc::clone(&mails), launch.hostname.clone());
    let smtp = tcp::serve(&launch, &[SMTP], move |client| talk(client, hostname.clone(), Arc::clone(&kept)));
    let http = web::serve(&launch, HTTP, move |request| {
        let reply = match (request.method().as_str(), request.uri().path()) {
            ("GET", "/api/v1/messages") => web::json(&all(&mails).into()),
            ("GET", "/api/v2/messages") => {
                let all = all(&mails);
                web::json(&json!({"total": all.len(), "count": all.len(), "start": 0, "items": all}))
            }
            ("DELETE", "/api/v1/messages") => {
                mails.lock().unwrap_or_else(PoisonError::into_inner).clear();
                web::json(&Value::Null)
            }
            _ => web::missing(),
        };
        std::future::ready(reply)
    });
    let (smtp, http) = tokio::join!(smtp, http);
    smtp.max(http)
}

fn all(mails: &Mails) -> Vec<Value> {
    mails.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
}

/// One session (RFC 5321), as far as clients that only deliver need it.
async fn talk(mut client: Stream, hostname: String, mails: Mails) -> std::io::Result<()> {
    let (read, mut write) = tokio::io::split(&mut client);
    let mut read = BufReader::new(read);
    write.write_all(format!("220 {hostname} ESMTP MailHog\r\n").as_bytes()).await?;
    let (mut from, mut to) = (String::new(), Vec::new());
    loop {
        let mut line = Vec::new();
        if (&mut read).take(tcp::LONGEST_LINE).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        let upper = line.to_ascii_uppercase();
        let argument = |prefix: &str| line[prefix.len()..].trim().trim_matches(['<', '>']).to_owned();
        let answer = if upper.starts_with("EHLO") {
            format!("250-Hello\r\n250-PIPELINING\r\n250 SIZE {LARGEST}")
        } else if upper.starts_with("HELO") {
            "250 Hello".to_owned()
        } else if upper.starts_with("MAIL FROM:") {
            (from, to) = (argument("MAIL FROM:"), Vec::new());
            format!("250 Sender {from} ok")
        } else if upper.starts_with("RCPT TO:") && to.len() < MOST {
            to.push(argument("RCPT TO:"));
            "250 Recipient ok".to_owned()
        } else if upper == "DATA" && !to.is_empty() {
            write.write_all(b"354 End data with <CR><LF>.<CR><LF>\r\n").await?;
            let text = data(&mut read).await?;
            let mut mails = mails.lock().unwrap_or_else(PoisonError::into_inner);
            if mails.len() == MOST {
                mails.pop_front();
            }
            mails.push_back(json!({"From": from, "To": to, "Raw": {"Data": text}}));
            "250 Ok: queued".to_owned()
        } else if matches!(upper.as_str(), "NOOP" | "RSET") {
            "250 Ok".to_owned()
        } else if upper == "QUIT" {
            write.write_all(b"221 Bye\r\n").await?;
            return write.shutdown().await;
        } else {
            "500 Unrecognised command".to_owned()
        };
        write.write_all(format!("{answer}\r\n").as_bytes()).await?;
    }
}

/// The text up to the lonely dot.
async fn data(read: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> std::io::Result<String> {
    let mut text = String::new();
    loop {
        let mut line = Vec::new();
        if (&mut *read).take(tcp::LONGEST_LINE).read_until(b'\n', &mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8_lossy(&line);
        if line.trim_end() == "." {
            return Ok(text);
        }
        if text.len() + line.len() > LARGEST {
            return Err(std::io::Error::other("the mail is too large"));
        }
        text += line.strip_prefix('.').unwrap_or(&line);
    }
}
