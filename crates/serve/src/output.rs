use std::fmt;
use std::sync::Arc;

/// Where a container's log lines go: standard output in a real container, the kubelet's log in the lab.
#[derive(Clone)]
pub struct Output(Arc<dyn Fn(&str) + Send + Sync>);

impl Output {
    /// An output that hands every line to `write`. The line carries no newline.
    pub fn new(write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
    }

    /// An output that forgets.
    #[must_use]
    pub fn discard() -> Self {
        Self::new(|_| {})
    }

    /// Writes one line.
    pub fn line(&self, line: impl AsRef<str>) {
        (self.0)(line.as_ref());
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Output")
    }
}
