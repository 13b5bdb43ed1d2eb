use tokio_util::sync::CancellationToken;

/// The one signal that asks a part to end.
///
/// Cheap to clone. A [`child`](Stop::child) stops with its parent, and can be asked alone.
#[derive(Clone, Debug, Default)]
pub struct Stop(CancellationToken);

impl Stop {
    /// A signal that nobody has given yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal, to this part and all its children. Giving it twice is the same as once.
    pub fn ask(&self) {
        self.0.cancel();
    }

    /// Waits until the signal is given.
    pub async fn asked(&self) {
        self.0.cancelled().await;
    }

    /// Whether the signal has been given.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.0.is_cancelled()
    }

    /// A signal that follows this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }
}
