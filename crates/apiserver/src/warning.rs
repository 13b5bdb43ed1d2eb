//! Warnings to whoever sent a request: `Warning: 299 - "unknown field \"spec.foo\""`.
//!
//! As Kubernetes carries them in a request's context, they are carried here beside the request's future: any code that
//! answers a request may [`add`] one, and [`collect`] puts them into the answer.

use std::cell::RefCell;
use std::future::Future;

use http::{HeaderValue, Response, header};

tokio::task_local! {
    static WARNINGS: RefCell<Vec<String>>;
}

/// The most characters of all warnings of an answer, and of one where there are more; as in Kubernetes.
const MOST: usize = 4 << 10;
const MOST_OF_ONE: usize = 256;

/// Warns the client of the request that is being answered. Outside a request nobody hears it.
pub(crate) fn add(text: impl Into<String>) {
    let text = text.into();
    let _ = WARNINGS.try_with(|warnings| {
        let mut warnings = warnings.borrow_mut();
        if !text.is_empty() && !warnings.contains(&text) {
            warnings.push(text);
        }
    });
}

/// Answers a request and puts the warnings of the way into the answer, whether it is good or bad.
pub(crate) async fn collect<B>(answer: impl Future<Output = Response<B>>) -> Response<B> {
    let answered = async {
        let response = answer.await;
        (response, WARNINGS.with(RefCell::take))
    };
    let (mut response, warnings) = WARNINGS.scope(RefCell::default(), answered).await;
    let many = warnings.iter().map(|text| text.chars().count()).sum::<usize>() > MOST;
    let mut left = MOST;
    for text in warnings {
        let text: String = if many { text.chars().take(MOST_OF_ONE.min(left)).collect() } else { text };
        left = left.saturating_sub(text.chars().count());
        if text.is_empty() {
            break;
        }
        if let Ok(value) = HeaderValue::from_str(&format!("299 - {}", quoted(&text))) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}

/// A quoted string of RFC 7230; what may not stand in a header is left out.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            ' '..='~' => out.push(letter),
            _ if letter.is_control() => out.push(' '),
            _ => out.push('?'),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn warnings_are_said_once_and_quoted() {
        add("nobody hears this");
        let response = collect(async {
            add("unknown field \"spec.foo\"");
            add("two\nlines");
            add("unknown field \"spec.foo\"");
            Response::new(())
        });
        let response = response.await;
        let said: Vec<_> = response.headers().get_all(header::WARNING).iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(said, [r#"299 - "unknown field \"spec.foo\"""#, r#"299 - "two lines""#]);
        let many = collect(async {
            (0..100).for_each(|n| add(format!("{n}{}", "x".repeat(1000))));
            Response::new(())
        });
        assert_eq!(many.await.headers().get_all(header::WARNING).iter().count(), 16);
    }
}
