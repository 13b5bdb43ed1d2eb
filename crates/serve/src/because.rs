use std::error::Error;

/// An error with its causes, in one line. What a wrapper repeats of what it wraps is said once.
#[must_use]
pub fn because(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}
